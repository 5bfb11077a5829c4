"""Bootstrap intervals of means over logs: whole logs are drawn again, since samples within one log are not independent."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEVEL = 0.95


class Band(NamedTuple):
    """A number (or an array of them) with its 95 % bootstrap interval; NaN bounds where there was nothing to draw from."""

    value: Array
    lower: Array
    upper: Array


def draw(units: int, *, resamples: int = 2000, seed: int = 0) -> Array:
    """Return how often each unit (a log) occurs in each resample, shape [resamples, units].

    Args:
        units: Independent units; at least one.
        resamples: Resamples.
        seed: Of the draws; the same seed pairs the resamples of different models.
    """
    if units < 1 or resamples < 1:
        raise ValueError(f"draw: expected units >= 1 and resamples >= 1, received {units}, {resamples}")
    return np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=resamples).astype(float)


def ratio(sums: Array, counts: Array, draws: Array) -> Array:
    """Return the mean over all samples of every resample, ``Σ_u n_u sum_u / Σ_u n_u count_u``, shape [resamples, ...].

    Args:
        sums: Sum of the samples of each unit, shape [units, ...]; infinite where a prediction diverged.
        counts: Number of samples of each unit, shape [units, ...].
        draws: Occurrences n_u, shape [resamples, units].
    """
    shape = (len(draws), *sums.shape[1:])
    flat, number = sums.reshape(len(sums), -1), counts.reshape(len(counts), -1)
    infinite = np.isinf(flat)
    total = draws @ np.where(infinite, 0.0, flat)  # 0 * inf would be NaN: a diverged log must count only where it is drawn
    total[draws @ infinite.astype(float) > 0] = np.inf
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(total / (draws @ number)).reshape(shape)


def band(value: Array, samples: Array) -> Band:
    """Return a value with the percentile interval of its resamples.

    Args:
        value: Shape [...].
        samples: Shape [resamples, ...]; NaN where a resample held no data. Efron, Annals of Statistics 7 (1979).
    """
    tail = (1 - LEVEL) / 2
    value = np.asarray(value, dtype=float)
    known = np.isfinite(samples).any(0) | np.isinf(samples).any(0)
    filled = np.where(known, samples, 0.0)
    # "nearest" does not interpolate, so that resamples with infinite error stay usable
    lower, upper = np.nanquantile(filled, [tail, 1 - tail], axis=0, method="nearest")
    unknown = ~known | np.isnan(value)
    return Band(value, np.where(unknown, np.nan, lower), np.where(unknown, np.nan, upper))


def mean_band(sums: Array, counts: Array, draws: Array) -> Band:
    """Return the mean over all samples with its interval, shape [...]; no interval where there is one unit only."""
    return band(ratio(sums, counts, np.ones((1, len(sums))))[0], hidden_if_single(ratio(sums, counts, draws), len(sums)))


def hidden_if_single(samples: Array, units: int) -> Array:
    """Return resamples as they are, or all NaN where they were drawn from a single unit and so have no spread."""
    return samples if units > 1 else np.full_like(samples, np.nan)


def per_unit(error: Array, unit: NDArray[np.int64], units: int) -> tuple[Array, Array]:
    """Return sum and number of the known (not NaN) values of each unit, both [units, ...].

    Args:
        error: Shape [B, ...].
        unit: Unit of each row, shape [B].
        units: Number of units.
    """
    known = ~np.isnan(error)
    sums, counts = np.zeros((units, *error.shape[1:])), np.zeros((units, *error.shape[1:]))
    np.add.at(sums, unit, np.where(known, error, 0.0))
    np.add.at(counts, unit, known.astype(float))
    return sums, counts


def divide(sums: Array, counts: Array) -> Array:
    """Return ``sums / counts``, NaN where there is nothing to divide by."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(counts > 0, sums / counts, np.nan)


def fraction_better(reference: Array, model: Array) -> Array:
    """Return the fraction of units, of those with data, on which ``model`` errs less; shapes [units, ny] and [ny]."""
    known = ~np.isnan(model) & ~np.isnan(reference)
    return divide((model < reference).sum(0).astype(float), known.sum(0).astype(float))


def interval(values: Array, statistic: Callable[..., Array] = np.mean, *, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a statistic of independent values.

    Args:
        values: Shape [N].
        statistic: Takes an array and ``axis``.
        resamples: How many times to draw.
        seed: Seed of the draws.
    """
    drawn = statistic(values[np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))], axis=-1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)
