"""Where data come from: a plant that is acted on, or logs of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.spaces import StateSpace
from residual_mbrl.trajectories import Trajectory

Array = NDArray[np.float64]


class Plant(ABC):
    """Something that shows its state, takes an action, and shows its state ``dt`` seconds later.

    Attributes:
        space: Names of state and action entries.
        dt: Seconds of a step.
    """

    space: StateSpace
    dt: float

    @abstractmethod
    def reset(self, seed: int, first: Array) -> Array:
        """Begin an episode; return the first state as measured, shape [nx].

        Args:
            seed: Of everything that is random in the episode: with the same one and the same actions it is the same.
            first: Where the task would have it begin, shape [nx]; a plant that begins where it likes need not heed it.
        """

    @abstractmethod
    def step(self, action: Array) -> tuple[Array, bool]:
        """Act, shape [nu]; return the next state as measured, shape [nx], and whether the plant has stopped there."""


class ModelPlant(Plant):
    """A model in place of the plant, with noise on what is measured.

    Args:
        dynamics: Any.
        noise: Standard deviation of each measured state entry, shape [nx] or a number.
    """

    def __init__(self, dynamics: ResidualDynamics, noise: float | Sequence[float] = 0.0) -> None:
        self.dynamics, self.space, self.dt = dynamics, dynamics.baseline.space, dynamics.dt
        self._noise = np.broadcast_to(np.asarray(noise, np.float64), (self.space.nx,))
        self._state: Tensor | None = None
        self._rng = np.random.default_rng(0)

    def reset(self, seed: int, first: Array) -> Array:
        """Begin where the task says."""
        self._rng = np.random.default_rng(seed)
        self._state = torch.tensor(first, dtype=torch.float64)
        return self._shown()

    def step(self, action: Array) -> tuple[Array, bool]:
        """Act."""
        if self._state is None:
            raise RuntimeError("ModelPlant: reset comes before the first step")
        command = torch.tensor(action, dtype=torch.float64)
        with torch.no_grad():
            if self._state.shape[-1] < self.dynamics.space.nx:
                self._state = self.dynamics.initial_state(self._state, command)
            self._state = self.dynamics.step(self._state, command)
        return self._shown(), False

    def _shown(self) -> Array:
        if self._state is None:
            raise RuntimeError("ModelPlant: reset comes before the first step")
        known: Array = self._state[: self.space.nx].numpy()
        return known + self._noise * self._rng.standard_normal(self.space.nx)


class GymnasiumPlant(Plant):
    """A Gymnasium environment whose state can be seen.

    Args:
        env: The environment; its rewards are not looked at, the task says what counts.
        space: Of its state, as the model has it.
        dt: Seconds of a step.
        read: From the environment to its state [nx].
        write: Sets the state, so that episodes begin where the task says; they begin where the environment does where missing.

    Raises:
        ValueError: if the environment's actions do not fit the space.
    """

    def __init__(self, env: Any, *, space: StateSpace, dt: float, read: Callable[[Any], Array],
                 write: Callable[[Any, Array], None] | None = None) -> None:
        shape = getattr(env.action_space, "shape", None)
        if shape != (space.nu,):
            raise ValueError(f"GymnasiumPlant: the environment takes actions {env.action_space}, the model has {space.nu}: "
                             f"{list(space.action)}")
        self.env, self.space, self.dt, self._read, self._write = env, space, dt, read, write

    def reset(self, seed: int, first: Array) -> Array:
        """Begin where the task says if the environment can be put there."""
        self.env.reset(seed=seed)
        if self._write is not None:
            self._write(self.env, first)
        return self._state()

    def step(self, action: Array) -> tuple[Array, bool]:
        """Act."""
        _, _, terminated, truncated, _ = self.env.step(action.astype(self.env.action_space.dtype))
        return self._state(), bool(terminated or truncated)

    def _state(self) -> Array:
        state = np.asarray(self._read(self.env), np.float64).reshape(-1)
        if state.shape != (self.space.nx,):
            raise ValueError(f"GymnasiumPlant: the environment shows a state of {state.shape}, the model has {self.space.nx} entries: "
                             f"{list(self.space.state_names)}")
        return state


class LoggedPlant:
    """Recorded logs, handed out round by round: learning without a plant at hand.

    Args:
        rounds: Logs of each round, their columns named as the model's states and actions.
    """

    def __init__(self, rounds: Sequence[Sequence[Trajectory]]) -> None:
        self.rounds = tuple(tuple(r) for r in rounds)
