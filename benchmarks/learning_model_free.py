"""stable-baselines3's SAC and PPO on the plants of the learning benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from learning_case import Case, Seen
from numpy.typing import NDArray
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm

if TYPE_CHECKING:
    from learning_cells import Cell, Points

Array = NDArray[np.float64]
AHEAD = (1, 5)
"""Steps after which what is followed is shown."""


class PlantEnv(gymnasium.Env[Array, Array]):
    """A plant with the reward that all are judged by; angles are shown as sine and cosine, actions are shares of the largest.

    Args:
        case: The kind of plant.
        seed: Which one, and of its starts.
    """

    def __init__(self, case: Case, seed: int) -> None:
        self.case, self.plant, self.task, self.earned = case, Seen(case.plant(seed), case.noise), case.task(seed), case.earned(seed)
        self.followed = None if case.followed is None else case.followed(seed)
        space = self.plant.space
        self.turned = [space.position.index(n) for n in case.angles]
        self.rest = [i for i in range(space.nx) if i not in self.turned]
        self.episode, self.steps = 1_000_000 + 10_000 * seed, 0
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (space.nu,), np.float32)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (len(self.shown(np.zeros(space.nx), 0)),), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin another episode."""
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return self.shown(self.plant.reset(self.episode, self.task.starts(self.episode, 1)[0].numpy()), 0), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Act; the reward is of the state before and the action."""
        force = self.case.limit * np.asarray(action, np.float64)
        reward = self.earned(self.plant.state, force, self.steps)
        state, over = self.plant.step(force)
        self.steps += 1
        return self.shown(state, self.steps), reward, over, self.steps >= self.task.steps and not over, {}

    def shown(self, state: Array, t: int) -> Array:
        """Return the observation of a state at a step: where something is followed, with the way to where it will be soon."""
        angles, parts = state[self.turned], list[Array]()
        if self.followed is not None:
            parts = [self.followed[min(t + k, len(self.followed) - 1)] - state for k in AHEAD]
        return np.concatenate([np.sin(angles), np.cos(angles), state[self.rest], *parts]).astype(np.float32)


def sac(env: PlantEnv, seed: int) -> BaseAlgorithm:
    """Return an untrained one: of five settings the best on the cart-pole and the double pendulum of seed 100."""
    return SAC("MlpPolicy", env, seed=seed, learning_starts=500, learning_rate=1e-3, gamma=0.98, verbose=0, device="cpu")


def ppo(env: PlantEnv, seed: int) -> BaseAlgorithm:
    """Return an untrained one: of three settings the best on the cart-pole and the double pendulum of seed 100."""
    return PPO("MlpPolicy", env, seed=seed, n_steps=500, batch_size=50, learning_rate=1e-3, gamma=0.98, verbose=0, device="cpu")


LEARNERS: Mapping[str, Callable[[PlantEnv, int], BaseAlgorithm]] = {"SAC": sac, "PPO": ppo}


def trained(cell: Cell, points: Sequence[float]) -> Points:
    """Return returns of the mean policy after each amount of data."""
    env = PlantEnv(cell.case, cell.seed)
    learner = LEARNERS[cell.method](env, cell.seed)
    found: Points = {}
    for at in points:
        learner.learn(round(at / cell.case.dt) - learner.num_timesteps, reset_num_timesteps=False)
        found[f"{at:g}"] = cell.returns(lambda _: lambda state, t: cell.case.limit * np.asarray(
            learner.predict(env.shown(state, t), deterministic=True)[0], np.float64))
    return found
