"""A model as a batched Gymnasium environment: what learns from environments learns from the calibrated model unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import ModelError

try:
    import gymnasium
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space
except ImportError as error:
    raise ModelError("ModelEnv needs gymnasium: pip install residual-mbrl[gym]") from error

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Start = Callable[[np.random.Generator, int], Array]
"""From a generator and a count to first states [count, nx]."""
Reward = Callable[[Array, Array, Array], Array]
"""From states [N, nx], actions [N, nu] and next states [N, nx] to rewards [N]."""


class ModelEnv(VectorEnv[Any, Any, Any]):
    """N worlds of one model, stepped in one batch.

    An environment that ends is reset in its next step, whose action is ignored (``AutoresetMode.NEXT_STEP``). A world whose
    state is no longer finite has terminated, with ``infos["failed"]`` set.

    Args:
        dynamics: The model, calibrated or not; of an ensemble each step of a world is of a member drawn anew.
        count: N.
        start: First states, drawn at every reset.
        reward: Reward of a step.
        horizon: Steps after which an episode is truncated; None for never.
        ends: From states [N, nx] to where the task is over, [N]; None for nowhere.
        observe: From states [N, nx] to observations [N, k]; the baseline's state where None.
        action_range: Lowest and highest action, each [nu] or a number; actions are clipped to it.
        dtype: Of the simulation.

    Raises:
        ModelError: if ``start`` does not give states of the model.
    """

    def __init__(self, dynamics: ResidualDynamics, *, count: int, start: Start, reward: Reward, horizon: int | None = None,
                 ends: Callable[[Array], Mask] | None = None, observe: Callable[[Array], Array] | None = None,
                 action_range: tuple[float | Array, float | Array] = (-1.0, 1.0), dtype: torch.dtype = torch.float64) -> None:
        self.dynamics, self.num_envs = dynamics, count
        self._start, self._reward, self._ends = start, reward, ends
        self._observe: Callable[[Array], Array] = observe or (lambda x: x)
        self._horizon, self._dtype = horizon, dtype
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}
        nu = len(dynamics.space.action)
        self._low, self._high = (np.broadcast_to(np.asarray(x, np.float32), (nu,)).copy() for x in action_range)
        self.single_action_space = gymnasium.spaces.Box(self._low, self._high, dtype=np.float32)
        shown = self._observe(self._first(np.random.default_rng(0), 1)).shape[1:]
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, shown, np.float64)
        self.action_space = batch_space(self.single_action_space, count)
        self.observation_space = batch_space(self.single_observation_space, count)
        self._state = torch.zeros(count, dynamics.space.nx, dtype=dtype)
        self._steps = np.zeros(count, int)
        self._over: Mask = np.ones(count, bool)

    def reset(self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Draw first states for all worlds, or for those in ``options["reset_mask"]`` [N]."""
        if isinstance(seed, list):
            raise ValueError("ModelEnv: one seed serves all worlds; received a list")
        super().reset(seed=seed)
        mask = None if options is None else options.get("reset_mask")
        self._restart(np.ones(self.num_envs, bool) if mask is None else np.asarray(mask, bool))
        return self._shown(), {}

    def step(self, actions: Any) -> tuple[Array, Array, Mask, Mask, dict[str, Any]]:
        """Advance every world by one step of the model, those that were over to a first state.

        Raises:
            ValueError: if actions have another shape, or a reward is not finite where the states are.
        """
        commands = np.asarray(actions, np.float64)
        if commands.shape != (self.num_envs, len(self._low)):
            raise ValueError(f"ModelEnv: expected actions of shape {(self.num_envs, len(self._low))}, received {commands.shape}")
        commands = np.clip(commands, self._low, self._high)
        fresh = self._over.copy()
        before = self._known()
        with torch.no_grad():
            action = torch.tensor(commands, dtype=self._dtype)
            self._state = self._advanced(self._remembering(action, fresh | (self._steps == 0)), action)
        after = self._known()
        failed = ~np.isfinite(after).all(1) & ~fresh
        reward = np.where(fresh | failed, 0.0, self._reward(before, commands, after))
        if not np.isfinite(reward).all():
            k = int(np.flatnonzero(~np.isfinite(reward))[0])
            raise ValueError(f"ModelEnv: the reward of world {k} is {reward[k]}, of state {before[k]}, action {commands[k]} and next state "
                             f"{after[k]}; expected a finite number")
        self._steps += 1
        terminated = (failed | (self._ends(after) if self._ends is not None else False)) & ~fresh
        truncated = (self._steps >= self._horizon if self._horizon is not None else np.zeros(self.num_envs, bool)) & ~terminated & ~fresh
        self._over = terminated | truncated
        self._restart(fresh)
        return self._shown(), reward, terminated, truncated, {"failed": failed}

    def _advanced(self, state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Return the next states, of an ensemble each by a member drawn anew."""
        members = self.dynamics.members
        if not members:
            return self.dynamics.step(state, action)
        every = self.dynamics.step(state.expand(members, *state.shape), action.expand(members, *action.shape))
        return every[torch.from_numpy(self.np_random.integers(members, size=self.num_envs)), torch.arange(self.num_envs)]

    def _restart(self, mask: Mask) -> None:
        if mask.any():
            first = torch.tensor(self._first(self.np_random, int(mask.sum())), dtype=self._dtype)
            self._state[torch.from_numpy(mask), : first.shape[-1]] = first
            self._steps[mask], self._over[mask] = 0, False

    def _remembering(self, action: torch.Tensor, first: Mask) -> torch.Tensor:
        """Return the states; where an episode begins, the residuals' memory starts from its first command."""
        known = self.dynamics.baseline.space.nx
        if self._state.shape[-1] == known or not first.any():
            return self._state
        begun = self.dynamics.initial_state(self._state[:, :known], action)
        return torch.where(torch.from_numpy(first)[:, None], begun, self._state)

    def _first(self, rng: np.random.Generator, count: int) -> Array:
        first = np.asarray(self._start(rng, count), np.float64)
        expected = (count, self.dynamics.baseline.space.nx)
        if first.shape != expected:
            raise ModelError(f"ModelEnv: start must give states of shape {expected}, received {first.shape}")
        return first

    def _known(self) -> Array:
        known: Array = self._state[:, : self.dynamics.baseline.space.nx].double().numpy()
        return known.copy()

    def _shown(self) -> Array:
        return self._observe(self._known())
