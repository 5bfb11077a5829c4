"""Bands of forecasts that are made again and again along a log: scales from its own past, fixed factors, and factors that follow it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from residual_mbrl.uncertainty.conformal import adaptive_factors, conformal_quantile
from residual_mbrl.uncertainty.past_errors import PastScale, Stream

Array = NDArray[np.float64]
RATE, MEMORY = 0.005, 300
"""Of the adaptive form, chosen on known gains and types among .002 to .05 and 100 to 4000: the quickest that hardly ever asked for all."""
LENGTH = 200
"""Forecasts that a scale looks back: ten seconds of the drone, five of the servo."""


@dataclass(frozen=True, kw_only=True)
class Halves:
    """Errors of all forecasts and half widths of their bands, shapes [N, H + 1, n]; ``log`` is the stream that each belongs to [N]."""

    error: Array
    past: Array
    adaptive: Array
    log: NDArray[np.int64]


def halves(at: Sequence[Stream], known: Mapping[str, Sequence[Stream]], level: float, *, carry: bool, floor: float) -> Halves:
    """Make bands for streams of forecasts from streams of other kinds.

    Args:
        at: To be forecast.
        known: Held-out streams by kind; kinds count alike.
        level: Wanted coverage.
        carry: Whether one stream goes on where the last one ended; else each begins with what is known.
        floor: Smallest error that counts.
    """
    scale = PastScale.of(list(known.values()), length=LENGTH, floor=floor)
    scores = alike([np.concatenate([s.error / scale(s) for s in streams]) for streams in known.values()])
    factor = conformal_quantile(scores, level)
    shuffled = np.random.default_rng(0).permutation(scores)
    scales = [scale(s) for s in at]
    runs = [(np.concatenate([s.error / x for s, x in zip(at, scales, strict=True)]), at[0])] if carry else [
        (s.error / x, s) for s, x in zip(at, scales, strict=True)]
    followed = np.concatenate([_followed(run, stream, shuffled, level) for run, stream in runs])
    joined = np.concatenate(scales)
    return Halves(error=np.concatenate([s.error for s in at]), past=factor * joined, adaptive=followed * joined,
                  log=np.repeat(np.arange(len(at)), [len(s.error) for s in at]))


def alike(scores: Sequence[Array]) -> Array:
    """Return as many scores of each kind, those that stand evenly in it; shapes [N_k, ...] to [N, ...]."""
    count = min(len(s) for s in scores)
    return np.concatenate([s[np.linspace(0, len(s) - 1, count).round().astype(int)] for s in scores])


def _followed(scores: Array, stream: Stream, known: Array, level: float) -> Array:
    """Return the factor that each score was given; none is larger than the largest held-out score, so that no band is infinite."""
    out = np.empty_like(scores)
    for h in range(scores.shape[1]):
        for k in range(scores.shape[2]):
            found = adaptive_factors(known[:, h, k], scores[:, h, k], level=level, rate=RATE, delay=stream.delay(h), memory=MEMORY)
            out[:, h, k] = np.minimum(found, known[:, h, k].max())
    return out
