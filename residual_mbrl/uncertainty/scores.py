"""Scores of predictive bands, by horizon: coverage, width, CRPS, negative log likelihood; and AUROC of a detector.

Errors have shape [N, H + 1, n] for N windows and n quantities, NaN where nothing was recorded, which every mean leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from residual_mbrl.bootstrap import Band, draw, mean_band, per_unit
from residual_mbrl.uncertainty import density

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class BandScore:
    """How good intervals are at each step, each with its 95 % interval over units, shape [K, n].

    Args:
        steps: Steps ahead [K].
        level: What the intervals were meant to hold.
        coverage: Fraction of the recorded samples that the intervals held.
        width: Mean width, in the unit of the quantity.
        crps: Mean continuous ranked probability score, in the unit of the quantity.
        nll: Mean negative log likelihood [nat].
    """

    steps: tuple[int, ...]
    level: float
    coverage: Band
    width: Band
    crps: Band
    nll: Band


def score_bands(error: Array, scale: Array, *, steps: Sequence[int], level: float = 0.9, factor: Array | float | None = None,
                dof: float = math.inf, unit: NDArray[np.int64] | None = None, seed: int = 0) -> BandScore:
    """Score bands ``mean ± factor · scale``.

    Args:
        error: Observed minus predicted mean, shape [N, H + 1, n].
        scale: Of the predictive density, broadcastable to it.
        steps: Steps to score.
        level: What the bands are meant to hold.
        factor: Half width in scales, [H + 1, n] or a number; that of the density where None. CRPS and likelihood are those of
            the density with its scale brought in line with the factor.
        dof: Degrees of freedom of the density.
        unit: Log of each row, shape [N], that the intervals of the scores draw from; rows where None.
        seed: Of those draws.
    """
    steps = tuple(steps)
    if error.ndim != 3 or not all(0 <= h < error.shape[1] for h in steps):
        raise ValueError(f"score_bands: expected errors [N, H + 1, n] and steps within H, received {error.shape} and {steps}")
    own = density.half_width(level, dof)
    factor = own if factor is None else factor
    half = np.broadcast_to(scale * factor, error.shape)[:, steps]
    e = error[:, steps]
    units = np.arange(len(e)) if unit is None else np.unique(unit, return_inverse=True)[1]
    count = int(units.max()) + 1
    draws = draw(count, resamples=500, seed=seed)

    def mean(x: Array) -> Band:
        return mean_band(*per_unit(np.where(np.isnan(e), np.nan, x), units, count), draws)

    with np.errstate(invalid="ignore"):
        fitted = np.maximum(half / own, 1e-300)
        nll = density.negative_log_density(torch.from_numpy(np.nan_to_num(e)), torch.from_numpy(fitted.copy()), dof).numpy()
        covered = (np.abs(e) <= half).astype(float)
        return BandScore(steps=steps, level=level, coverage=mean(covered), width=mean(2 * half), crps=mean(density.crps(e, fitted, dof)),
                         nll=mean(nll))


def crps_of_samples(samples: Array, observed: Array, *, fair: bool = True) -> Array:
    """Return the continuous ranked probability score ``E|X - y| - E|X - X'| / 2`` of samples, shape [...].

    Gneiting and Raftery, JASA 102 (2007), eq. 20. ``fair`` takes X and X' from different samples, which is unbiased for the score
    of the distribution they come from (Ferro 2014); else that of the samples' own distribution function.

    Args:
        samples: Shape [P, ...].
        observed: Shape [...].
        fair: Unbiased form; needs two samples.
    """
    p = len(samples)
    if p < (2 if fair else 1):
        raise ValueError(f"crps_of_samples: expected at least {2 if fair else 1} samples, received {p}")
    ordered = np.sort(samples, axis=0)
    # Σ_ij |x_i - x_j| / 2 = Σ_i (2 i - p - 1) x_(i)
    weight = (2 * np.arange(1, p + 1) - p - 1).reshape(-1, *(1,) * (samples.ndim - 1))
    return np.asarray(np.abs(samples - observed).mean(0) - (weight * ordered).sum(0) / (p * (p - 1 if fair else p)))


def interval_score(lower: Array, upper: Array, observed: Array, level: float) -> Array:
    """Return the interval score, width plus 2/α times how far the value lies outside (Gneiting and Raftery 2007, eq. 43)."""
    miss = np.maximum(lower - observed, 0) + np.maximum(observed - upper, 0)
    return np.asarray(upper - lower + 2 / (1 - level) * miss)


def auroc(inside: Array, outside: Array) -> float:
    """Return the probability that a score of something outside is larger than one of something inside, ties counting half.

    Args:
        inside: Scores of what belongs, shape [N].
        outside: Scores of what does not, shape [M].
    """
    if not len(inside) or not len(outside):
        raise ValueError(f"auroc: expected scores of both kinds, received {len(inside)} and {len(outside)}")
    ranks = stats.rankdata(np.concatenate([inside, outside]))
    return float((ranks[len(inside) :].sum() - len(outside) * (len(outside) + 1) / 2) / (len(inside) * len(outside)))
