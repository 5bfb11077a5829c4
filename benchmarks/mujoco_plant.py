"""A MuJoCo model that stands for a plant: its state, and what is measured of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def drawn_about(usual: Any, seed: int, spread: float = 0.1) -> Any:
    """Return a dataclass of numbers like the usual one, each drawn within a share of it."""
    rng = np.random.default_rng(seed)
    return replace(usual, **{n: x * float(rng.uniform(1 - spread, 1 + spread)) for n, x in vars(usual).items()})


class MujocoPlant:
    """A plant whose state is all seen, with noise.

    Args:
        model: What it is.
        noise: Standard deviation of what is measured, broadcastable to the state.
        seed: Of the noise.
    """

    def __init__(self, model: mujoco.MjModel, noise: Array, seed: int) -> None:
        self.model, self.data = model, mujoco.MjData(model)
        self._noise, self._rng = noise, np.random.default_rng(seed)

    @property
    def state(self) -> Array:
        """As it is, shape [nq + nv]."""
        return np.concatenate([self.data.qpos, self.data.qvel])

    @state.setter
    def state(self, x: Array) -> None:
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:] = np.split(x, [self.model.nq])

    def read(self) -> Array:
        """Return what is measured, shaped as the state."""
        state = self.state
        return state + self._noise * self._rng.standard_normal(len(state))
