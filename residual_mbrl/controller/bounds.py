"""The last word on a command: inside its limits, and no faster than its rates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from residual_mbrl.planners.limits import Limits

Array = NDArray[np.float64]


class Bounds:
    """Limits of the commands of one loop.

    Args:
        limits: What must be kept; those of states are the planner's business.
        nu: Actions.
        period: Seconds from command to command.

    Raises:
        ValueError: if a limit does not fit, is NaN, or lower limits are above upper ones.
    """

    def __init__(self, limits: Limits, nu: int, period: float) -> None:
        lower, upper = limits.action(nu)
        if not bool((lower <= upper).all()):
            raise ValueError(f"Controller: action_lower must be at most action_upper, received {lower.tolist()} and {upper.tolist()}")
        rate = limits.rate(nu, period)
        if rate is not None and not bool((rate > 0).all()):
            raise ValueError(f"Controller: action_rate must be above zero, received {(rate / period).tolist()}")
        self.lower, self.upper = lower.numpy().copy(), upper.numpy().copy()
        self.step: Array | None = None if rate is None else rate.numpy().copy()

    def keep(self, command: Array, previous: Array) -> Array:
        """Return the allowed command nearest to one, shape [nu]; what is not a number becomes the previous one."""
        kept = np.clip(np.where(np.isnan(command), previous, command), self.lower, self.upper)
        if self.step is not None:
            kept = np.clip(np.clip(kept, previous - self.step, previous + self.step), self.lower, self.upper)
        return np.asarray(kept, dtype=np.float64)

    def holds(self, command: Array) -> bool:
        """Tell whether a command is within the limits of values."""
        return bool(np.all((command >= self.lower) & (command <= self.upper)))
