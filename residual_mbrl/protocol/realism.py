"""Do imagined rollouts look like real ones? Spectra and distributions of windows, whatever happens at which moment."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
FLOOR = 1e-6
"""Power below this share of the largest is noise of the computation and does not count."""


def spectral_distance(real: Array, imagined: Array) -> float:
    """Return the log-spectral distance [dB], root mean square over frequencies of the ratio of mean spectra.

    Windows are detrended by their ends and tapered (Hann); each spectrum is the mean over windows.

    Args:
        real: One quantity, shape [N, T].
        imagined: The same of the model's rollouts, shape [M, T].
    """
    a, b = (_spectrum(x) for x in (real, imagined))
    counts = a > FLOOR * a.max()
    floor = FLOOR * a.max()
    decibels = 10 * np.log10(np.maximum(b[counts], floor) / a[counts])
    return float(np.sqrt(np.mean(decibels**2)))


def distribution_distance(real: Array, imagined: Array) -> float:
    """Return the Wasserstein distance of two sets of values over the standard deviation of the real ones."""
    spread = float(np.std(real))
    return float(stats.wasserstein_distance(real.ravel(), imagined.ravel()) / (spread or 1.0))


def realism(real: Array, imagined: Array) -> dict[str, float]:
    """Return the distances of one quantity over windows [N, T]: spectrum [dB], values and increments [standard deviations].

    Windows in which either is not finite are left out; all are infinite where none is left.
    """
    if real.shape != imagined.shape or real.ndim != 2 or real.shape[1] < 4:
        raise ValueError(f"realism: expected two arrays [N, T >= 4] of one shape, received {real.shape} and {imagined.shape}")
    good = np.isfinite(real).all(1) & np.isfinite(imagined).all(1)
    if not good.any():
        return dict.fromkeys(("spectrum_db", "values", "increments"), float("inf"))
    a, b = real[good], imagined[good]
    return {"spectrum_db": spectral_distance(a, b), "values": distribution_distance(a, b),
            "increments": distribution_distance(np.diff(a), np.diff(b))}


def _spectrum(x: Array) -> Array:
    n = x.shape[1]
    line = x[:, :1] + (x[:, -1:] - x[:, :1]) * np.arange(n) / (n - 1)
    return np.asarray((np.abs(np.fft.rfft((x - line) * np.hanning(n), axis=1)) ** 2).mean(0)[1:])
