"""The scale of a forecast from how wrong earlier forecasts of the same log turned out to be, from past samples only.

How wrong a model is depends on what is flown, and a kind of motion that nobody has flown has a scale that no feature foretells. Its own
first seconds tell. So the level comes from the log's past, and features say only how the next forecast differs from those before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Forecasts of one log, started at every so many-th row in turn.

    Args:
        error: Sizes of their errors, shape [N, H + 1, n], not negative and known in all places.
        features: Positive numbers that are known when each forecast is made, shape [N, k]; k may be 0.
        stride: Rows between two starts.
    """

    error: Array
    features: Array
    stride: int

    def __post_init__(self) -> None:
        """Check shapes and signs."""
        if self.error.ndim != 3 or self.features.ndim != 2 or len(self.error) != len(self.features) or self.stride < 1:
            raise ValueError(f"Stream: expected errors [N, H + 1, n], features [N, k] and stride >= 1, received {self.error.shape}, "
                             f"{self.features.shape} and {self.stride}")
        if not (self.error >= 0).all() or not (self.features > 0).all():
            raise ValueError("Stream: expected errors that are not negative and features that are positive, all of them finite numbers")

    def delay(self, step: int) -> int:
        """Return how many forecasts later the outcome of a step is known."""
        return max(1, -(-step // self.stride))


@dataclass(frozen=True, kw_only=True)
class PastScale:
    """``log s_i = mean_P log(e + floor) + a + b · (log f_i - mean_P log f)``; P are the last forecasts whose outcome is known at i.

    Scales follow errors that grow by a constant factor, whatever the kind of motion: nothing in them is a level of the data that a and b
    were fitted on, but for the first forecasts, where nothing is known yet.

    Args:
        prior: Mean ``log(e + floor)`` before anything is known, shape [H + 1, n].
        usual: Mean log features before anything is known, shape [k].
        offset: a, shape [H + 1, n].
        slope: b, shape [H + 1, n, k].
        length: Forecasts that P goes back.
        weight: Of the prior, in forecasts.
        floor: Smallest error that counts.
    """

    prior: Array
    usual: Array
    offset: Array
    slope: Array
    length: int
    weight: float
    floor: float

    @classmethod
    def of(cls, groups: Sequence[Sequence[Stream]], *, length: int = 200, weight: float = 0.5, ridge: float = 0.01,
           floor: float = 1e-9) -> PastScale:
        """Fit a and b by least squares on log errors, each group of streams counting alike.

        Args:
            groups: Streams of forecasts of logs that the model was not fitted on, by kind.
            length: Forecasts to look back.
            weight: Of the prior, in forecasts.
            ridge: Pull of b to zero, relative to a mean square of one of the features' logs.
            floor: Smallest error that counts, in its own unit.

        Raises:
            ValueError: if there is no stream, or an option is out of range.
        """
        if not groups or not all(groups) or length < 1 or weight <= 0 or floor <= 0 or ridge < 0:
            raise ValueError(f"PastScale: expected groups of streams, length >= 1, weight, floor > 0 and ridge >= 0, received "
                             f"{[len(g) for g in groups]}, {length}, {weight}, {floor} and {ridge}")
        prior = np.mean([np.log(np.concatenate([s.error for s in g]) + floor).mean(0) for g in groups], 0)
        usual = np.mean([np.log(np.concatenate([s.features for s in g])).mean(0) for g in groups], 0)
        blank = cls(prior=prior, usual=usual, offset=np.zeros_like(prior), slope=np.zeros((*prior.shape, len(usual))), length=length,
                    weight=weight, floor=floor)
        offset, slope = blank.offset.copy(), blank.slope.copy()
        for h in range(len(prior)):
            inputs, targets, shares = [], [], []
            for g in groups:
                count = sum(len(s.error) for s in g)
                for s in g:
                    level, change = blank._past(s, h)
                    inputs.append(np.concatenate([np.ones((len(change), 1)), change], 1))
                    targets.append(np.log(s.error[:, h] + floor) - level)
                    shares.append(np.full(len(change), 1 / (count * len(groups))))
            x, y, w = np.concatenate(inputs), np.concatenate(targets), np.concatenate(shares)[:, None]
            pull = ridge * np.eye(x.shape[1])
            pull[0, 0] = 0.0
            found = np.linalg.solve((w * x).T @ x + pull, (w * x).T @ y)
            offset[h], slope[h] = found[0], found[1:].T
        return cls(prior=prior, usual=usual, offset=offset, slope=slope, length=length, weight=weight, floor=floor)

    def __call__(self, stream: Stream) -> Array:
        """Return the scale of each forecast, shape [N, H + 1, n]; that of a step uses outcomes that are known when the forecast starts."""
        if stream.error.shape[1:] != self.prior.shape or stream.features.shape[1] != len(self.usual):
            steps, n = self.prior.shape
            raise ValueError(f"PastScale: expected errors [N, {steps}, {n}] and {len(self.usual)} features, received {stream.error.shape} "
                             f"and {stream.features.shape[1]}")
        scale = np.empty_like(stream.error)
        for h in range(len(self.prior)):
            level, change = self._past(stream, h)
            scale[:, h] = np.exp(level + self.offset[h] + change @ self.slope[h].T)
        return scale

    def _past(self, stream: Stream, step: int) -> tuple[Array, Array]:
        """Return the mean log error [N, n] of forecasts that are known, and the features' difference from their mean over them [N, k]."""
        known = np.maximum(np.arange(len(stream.error)) - stream.delay(step) + 1, 0)
        first = np.maximum(known - self.length, 0)

        def mean(values: Array, before: Array) -> Array:
            total = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, 0)])
            return np.asarray((self.weight * before + total[known] - total[first]) / (self.weight + known - first)[:, None])

        logs = np.log(stream.features)
        return mean(np.log(stream.error[:, step] + self.floor), self.prior[step]), logs - mean(logs, self.usual)
