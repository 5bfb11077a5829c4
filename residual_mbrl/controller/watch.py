"""Whether an observation is one: of the right size, finite, new, and where the plant can be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from residual_mbrl.controller.chain import Doubt

Array = NDArray[np.float64]
Ratio = Callable[[Array], float]

MISSING, SIZE, NAN, STALE = "observation missing", "observation of the wrong size", "observation not finite", "observation stale"
FROZEN, RANGE, JUMP = "observation frozen", "observation out of range", "observation implausible"


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """What an observation is refused for, and how long the loop does without.

    Args:
        frozen: Error of prediction, in half widths, at which an observation that repeats the last one to the bit counts as frozen.
        jump: Error of prediction, in half widths, at which an observation counts as implausible.
        insist: Observations in a row that agree with each other and not with the prediction, after which the plant is where they say.
        stale: Age in periods beyond which an observation is stale.
        lower: Least plausible observation, shape [n]; None without a bound.
        upper: Greatest plausible observation, shape [n].
        coast: Seconds that commands go on by prediction alone; then the last law of the chain takes over.
    """

    frozen: float = 1.0
    jump: float = 15.0
    insist: int = 3
    stale: float = 3.0
    lower: Array | None = None
    upper: Array | None = None
    coast: float = 0.3


class Watch:
    """Judges the observations of a run, one a tick.

    Args:
        size: Entries of an observation.
        period: Seconds between ticks.
        options: What is refused.
    """

    def __init__(self, size: int, period: float, options: WatchOptions) -> None:
        self.size, self._period, self._options = size, period, options
        self._last: Array | None = None
        self._frozen = False
        self._agreeing = 0

    def judge(self, observation: object, age: float, error: Ratio, follows: Ratio) -> tuple[Array | None, Doubt | None]:
        """Return the observation if it is to be used, and otherwise why not.

        Args:
            observation: What came in.
            age: Seconds since it was measured.
            error: Tells the distance of an observation from the prediction, in half widths of the model that does best.
            follows: Tells the distance of an observation from a prediction that starts at the last one that came in.
        """
        seen, doubt = self.read(observation, age)
        if seen is None:
            return None, doubt
        repeated = self._last is not None and np.array_equal(seen, self._last)
        distance = error(seen)
        if repeated and (self._frozen or distance > self._options.frozen):
            self._frozen = True
            return None, Doubt(FROZEN, {"error in half widths": distance})
        self._frozen = False
        before, self._last = self._last, seen
        if distance <= self._options.jump:
            self._agreeing = 0
            return seen, None
        self._agreeing = self._agreeing + 1 if self._agreeing and before is not None and follows(before) <= self._options.jump else 1
        if self._agreeing >= self._options.insist:
            self._agreeing = 0
            return seen, None
        return None, Doubt(JUMP, {"error in half widths": distance})

    def read(self, observation: object, age: float) -> tuple[Array | None, Doubt | None]:
        """Return an observation that can be compared at all."""
        if observation is None:
            return None, Doubt(MISSING)
        try:
            seen = np.array(observation, dtype=np.float64).reshape(-1)
        except (TypeError, ValueError) as error:
            return None, Doubt(SIZE, {"error": str(error)})
        doubt = None
        if len(seen) != self.size:
            doubt = Doubt(SIZE, {"received": len(seen), "expected": self.size})
        elif not np.isfinite(seen).all():
            doubt = Doubt(NAN, {"entries": str(np.flatnonzero(~np.isfinite(seen)).tolist())})
        elif age > self._options.stale * self._period:
            doubt = Doubt(STALE, {"age": age})
        if doubt is not None:
            return None, doubt
        return self._within(seen)

    def _within(self, seen: Array) -> tuple[Array | None, Doubt | None]:
        """Return an observation that is where the plant can be."""
        lower, upper = self._options.lower, self._options.upper
        outside = np.zeros(self.size, bool) if lower is None else seen < lower
        if upper is not None:
            outside |= seen > upper
        if not outside.any():
            return seen, None
        i = int(np.flatnonzero(outside)[0])
        return None, Doubt(RANGE, {"entry": i, "value": float(seen[i])})
