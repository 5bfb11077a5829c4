"""Fields of a MuJoCo model by the names that ``mujoco.batch`` gives them, "opt." before an option."""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def read_field(model: mujoco.MjModel, name: str) -> Array:
    """Return a copy of a field."""
    owner, last = (model.opt, name.removeprefix("opt.")) if name.startswith("opt.") else (model, name)
    return np.array(getattr(owner, last), dtype=np.float64)


def write_field(model: mujoco.MjModel, name: str, value: Array) -> None:
    """Set a field, of its own shape."""
    owner, last = (model.opt, name.removeprefix("opt.")) if name.startswith("opt.") else (model, name)
    if value.ndim:
        getattr(owner, last)[...] = value
    else:
        setattr(owner, last, float(value))
