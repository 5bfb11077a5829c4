"""What is known of the plant at each tick: the observation judged, every model's belief corrected, and what speaks against each model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.controller.belief import Belief, Prediction
from residual_mbrl.controller.chain import Doubt
from residual_mbrl.controller.delay import CommandLine
from residual_mbrl.controller.interval import Interval
from residual_mbrl.controller.level import Level
from residual_mbrl.controller.trust import NOT_FINITE, Trust, TrustOptions
from residual_mbrl.controller.watch import Watch, WatchOptions

Array = NDArray[np.float64]


class Estimator(Protocol):
    """Makes a state of what is observed."""

    def update(self, observation: Array, predicted: Array, time: float) -> Array:
        """Return the baseline's state, shape [nx], or its first entries.

        Args:
            observation: Shape [n], finite.
            predicted: State that the first model expected for now, shape [nx] with memory.
            time: When it was measured [s].
        """


class Look(NamedTuple):
    """What came of an observation."""

    doubt: Doubt | None
    """Why it was not used; None where it was."""
    doubts: list[Doubt | None]
    """What speaks against each model."""


class Perception:
    """Keeps a belief for each model of a chain.

    Args:
        levels: The models, with their intervals.
        size: Entries of an observation.
        unseen: The other entries of the baseline's state at the start.
        period: Seconds between ticks.
        trust: How soon a model loses trust.
        watch: What an observation is refused for.
        estimator: Makes states of observations; None where these are the first entries of the state.
        settling: Time constant with which forces that a model lacks are estimated [s].
    """

    def __init__(self, levels: Sequence[Level], size: int, unseen: Array, period: float, trust: TrustOptions, watch: WatchOptions,
                 estimator: Estimator | None, settling: float) -> None:
        self.beliefs = [Belief(level.dynamics, size, unseen, settling) for level in levels]
        self.trust = Trust([(level.interval or Interval()).copy() for level in levels], trust)
        self.size, self.at, self.lost = size, -np.inf, 0.0
        self._period, self._options, self._estimator = period, watch, estimator
        self._watch = Watch(size, period, watch)

    def look(self, observation: object, time: float, stamp: float, line: CommandLine) -> Look:
        """Judge what came in at ``time``, measured at ``stamp``, and bring every belief to ``stamp``."""
        expected, seconds = [b.look_ahead(line, self.at, stamp) for b in self.beliefs], stamp - self.at
        predicted = [None if p is None else p.state for p in expected]
        seen, doubt = self._watch.judge(observation, time - stamp, lambda y: self._distance(y, predicted),
                                        lambda before: self._follows(before, observation, stamp, line))
        doubts: list[Doubt | None] = [None if p is not None else Doubt(NOT_FINITE) for p in predicted]
        fresh = seen is not None and self.lost == 0.0 and stamp > self.at  # after a prediction from a state that was itself seen
        if seen is not None and fresh:
            errors = self._errors(seen, predicted)
            own = [e if e is None or p is None else b.observer.without(e, *p)
                   for b, e, p in zip(self.beliefs, errors, expected, strict=True)]
            doubts = self.trust.judge(errors, own)
        self._correct(expected, seen, stamp, line, seconds if fresh else 0.0, doubts)
        self.at, self.lost = stamp, 0.0 if seen is not None else self.lost + self._period
        return Look(doubt, doubts)

    def restart(self, observation: object, stamp: float, line: CommandLine) -> None:
        """Begin anew from an observation: at the first tick, and after a gap in time."""
        self._watch = Watch(self.size, self._period, self._options)
        seen, _ = self._watch.read(observation, 0.0)
        for belief in self.beliefs:
            belief.state = None
            if seen is not None:
                belief.start(seen, line.last)
        self.at = stamp

    def spread(self, law: int, apart: Array) -> float:
        """Return the disagreement of an ensemble in half widths of its model."""
        return float(self.trust.intervals[law].ratio(apart[: self.beliefs[law].entries]).max())

    def ahead(self, line: CommandLine, end: float) -> Tensor | None:
        """Return the state at a later time by the last model that has one, the simplest of the chain."""
        return next((s for b in reversed(self.beliefs) if (s := b.predict(line, self.at, end)) is not None), None)

    def _errors(self, seen: Array, predicted: Sequence[Tensor | None]) -> list[Array | None]:
        return [None if p is None else b.error(seen, p) for b, p in zip(self.beliefs, predicted, strict=True)]

    def _distance(self, seen: Array, predicted: Sequence[Tensor | None]) -> float:
        """Return how far an observation is from the prediction nearest to it, in half widths."""
        found = min(self.trust.ratios(self._errors(seen, predicted)))
        return found if np.isfinite(found) else 0.0  # nothing to compare with

    def _follows(self, before: Array, observation: object, stamp: float, line: CommandLine) -> float:
        """Return how far an observation is from where the one before would have led, in half widths."""
        seen = np.asarray(observation, np.float64).reshape(-1)
        predicted = []
        for belief in self.beliefs:
            known = belief.state
            belief.state = None if known is None else torch.cat([torch.from_numpy(before), known[len(before) :]])
            predicted.append(belief.predict(line, self.at, stamp))
            belief.state = known
        return self._distance(seen, predicted)

    def _correct(self, expected: Sequence[Prediction | None], seen: Array | None, stamp: float, line: CommandLine,
                 seconds: float, doubts: Sequence[Doubt | None]) -> None:
        known, first = seen, next((p.state for p in expected if p is not None), None)
        if seen is not None and first is not None and self._estimator is not None:
            known = np.asarray(self._estimator.update(seen, first.numpy(), stamp), np.float64)
        for belief, prediction, doubt in zip(self.beliefs, expected, doubts, strict=True):
            if prediction is not None:
                belief.correct(prediction, known, seconds, doubted=doubt is not None)
            elif seen is not None:
                belief.start(seen, line.last)
