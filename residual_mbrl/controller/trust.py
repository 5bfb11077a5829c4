"""Whether a model still speaks for the plant: its one-step errors against its interval, and against those of the next model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from residual_mbrl.controller.chain import Doubt
from residual_mbrl.controller.interval import Interval

Array = NDArray[np.float64]

BEYOND, WORSE, SPREAD = "one-step errors beyond the interval", "predicts worse than the next model", "ensemble disagrees"
NOT_FINITE = "prediction not finite"


@dataclass(frozen=True, kw_only=True)
class TrustOptions:
    """How soon a model loses trust; each test adds up evidence tick by tick and lets go of it again (Page, Biometrika 41, 1954).

    Args:
        beyond: Sum of errors in half widths, less ``allowed`` at each tick, at which a model is doubted.
        allowed: Error in half widths that speaks neither for nor against a model. What comes after the last model knows no more than it:
            a plant that is somewhat off is better left to the model that predicts it best.
        largest: Error in half widths above which more counts no more: one tick alone never condemns a model.
        worse: Sum of half the differences of squared errors, in half widths and less ``edge`` at each tick, at which a model is
            doubted that the next one predicts better than.
        edge: By how much the next model must be better for it to count.
        spread: Disagreement of an ensemble on a step of the plan, in half widths, at which its model is doubted.
        dwell: Seconds without doubt after which a model is used again.
    """

    beyond: float = 15.0
    allowed: float = 3.0
    largest: float = 8.0
    worse: float = 4.0
    edge: float = 0.3
    spread: float = 4.0
    dwell: float = 0.5


class Cusum:
    """``g ← clip(g + increment, 0, 2 threshold)``: past evidence is remembered only as far as it speaks against."""

    def __init__(self, threshold: float) -> None:
        self.threshold, self.value = threshold, 0.0

    def add(self, increment: float) -> bool:
        """Add evidence; tell whether the threshold is reached."""
        self.value = min(max(0.0, self.value + increment), 2 * self.threshold)
        return self.value >= self.threshold


class Trust:
    """Judges the models of a chain by their one-step errors on the same plant.

    Args:
        intervals: Of each model, the best model first.
        options: How soon.
    """

    def __init__(self, intervals: list[Interval], options: TrustOptions) -> None:
        self.intervals, self.options = intervals, options
        self._beyond = [Cusum(options.beyond) for _ in intervals]
        self._worse = [Cusum(options.worse) for _ in intervals]

    def ratios(self, errors: list[Array | None]) -> list[float]:
        """Return the largest error of each model in its half widths; infinite where there is no prediction."""
        return [np.inf if e is None or not np.isfinite(e).all() else float(i.ratio(e).max(initial=0.0))
                for e, i in zip(errors, self.intervals, strict=True)]

    def judge(self, errors: list[Array | None], own: list[Array | None] | None = None) -> list[Doubt | None]:
        """Take the errors of a tick into account and return what speaks against each model.

        Args:
            errors: Measured state ⊖ predicted state of each model, shape [ndx]; None where it predicted nothing finite.
            own: The same without what was estimated in the loop to make up for a model, by which models are held against each other: an
                estimate hides for a while what is wrong with one.
        """
        own = errors if own is None else own
        options, ratios, doubts = self.options, self.ratios(errors), list[Doubt | None]()
        for i, (error, ratio) in enumerate(zip(errors, ratios, strict=True)):
            if error is None or not np.isfinite(ratio):
                doubts.append(Doubt(NOT_FINITE))
                continue
            doubt = None
            if self._beyond[i].add(min(ratio, options.largest) - options.allowed):
                doubt = Doubt(BEYOND, {"error in half widths": ratio, "evidence": self._beyond[i].value})
            elif ratio < options.largest:
                self.intervals[i].learn(error)
            doubts.append(self._compare(i, own[i], own[i + 1] if i + 1 < len(own) else None) or doubt)
        return doubts

    def _compare(self, i: int, error: Array | None, other: Array | None) -> Doubt | None:
        """Hold a model against the next one."""
        if error is None or other is None or not np.isfinite(other).all() or not self._worse[i].add(self._advantage(i, error, other)):
            return None
        size, next_ = (float(self.intervals[i].ratio(e).max()) for e in (error, other))
        return Doubt(WORSE, {"error in half widths": size, "of the next model": next_, "evidence": self._worse[i].value})

    def _advantage(self, i: int, error: Array, other: Array) -> float:
        """Return how much better the next model did, both in the half widths of this one."""
        if not self.intervals[i].known:
            return 0.0
        most = self.options.largest
        own, next_ = (np.minimum(self.intervals[i].ratio(e), most) for e in (error, other))
        return 0.5 * float((own**2 - next_**2).sum()) - self.options.edge
