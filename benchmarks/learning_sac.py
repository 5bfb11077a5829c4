"""stable-baselines3's SAC on the plants of the learning benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from learning_plants import Case, Seen
from numpy.typing import NDArray
from stable_baselines3 import SAC

if TYPE_CHECKING:
    from learning_cells import Cell, Points

Array = NDArray[np.float64]


class PlantEnv(gymnasium.Env[Array, Array]):
    """A plant with the reward that all are judged by; angles are shown as sine and cosine, actions are shares of the largest.

    Args:
        case: The kind of plant.
        seed: Which one, and of its starts.
    """

    def __init__(self, case: Case, seed: int) -> None:
        self.case, self.plant, self.task, self.reward = case, Seen(case.plant(seed), case.noise), case.task(seed), case.reward(seed)
        space = self.plant.space
        self.turned = [space.position.index(n) for n in case.angles]
        self.rest = [i for i in range(space.nx) if i not in self.turned]
        self.episode, self.steps = 1_000_000 + 10_000 * seed, 0
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (space.nu,), np.float32)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (len(self.rest) + 2 * len(self.turned),), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin another episode."""
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return self.shown(self.plant.reset(self.episode, self.task.starts(self.episode, 1)[0].numpy())), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Act; the reward is of the state before and the action."""
        force = self.case.limit * np.asarray(action, np.float64)
        reward = float(self.reward(torch.from_numpy(self.plant.state), torch.from_numpy(force)))
        state, over = self.plant.step(force)
        self.steps += 1
        return self.shown(state), reward, over, self.steps >= self.task.steps and not over, {}

    def shown(self, state: Array) -> Array:
        """Return the observation of a state."""
        angles = state[self.turned]
        return np.concatenate([np.sin(angles), np.cos(angles), state[self.rest]]).astype(np.float32)


def soft_actor_critic(cell: Cell, points: Sequence[float]) -> Points:
    """Return returns of the mean policy after each amount of data; one gradient step a step of the plant, as the defaults have it."""
    env = PlantEnv(cell.case, cell.seed)
    learner = SAC("MlpPolicy", env, seed=cell.seed, learning_starts=500, verbose=0, device="cpu")
    found: Points = {}
    for at in points:
        learner.learn(round(at / cell.case.dt) - learner.num_timesteps, reset_num_timesteps=False)
        found[f"{at:g}"] = cell.returns(lambda _: lambda state, t: cell.case.limit * np.asarray(
            learner.predict(env.shown(state), deterministic=True)[0], np.float64))
    return found
