"""What a log's columns tell about themselves: their noise, and how late one follows another."""

from __future__ import annotations

from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

LONGEST_DELAY = 0.25
"""Delays are searched up to this [s]."""

LEAST_CORRELATION = 0.1
"""Correlation below which a delay is not believed; more where averaging leaves few independent samples."""

_SIGNIFICANT = 5.0
"""Standard deviations by which a correlation must exceed that of unrelated signals."""

_NORMAL = 1.4826
"""Standard deviation over median absolute deviation of a normal distribution."""

_SMALLEST_NOISE = 1e-5
"""Smallest noise, as a fraction of a column's span: below it, model errors dominate any log."""

_CONSTANT_NOISE = 1e-3
_WIDTHS = (1, 3, 7, 15, 31, 63)
"""Rows over which signals are averaged before a delay is sought."""


FIT_ROWS = 11
"""Rows of a local cubic."""
FIT_WINDOWS = (5, 7, 9, 11, 15, 21, 31)
_MOTION_LEFT = 1.15
"""Ratio to the noise alone beyond which what a local cubic leaves is taken to hold motion."""


class Lag(NamedTuple):
    """How late one signal follows another."""

    seconds: float
    """Negative where it leads."""
    correlation: float
    """At that lag, in magnitude."""
    spread: float
    """Standard deviation of ``seconds`` that noise leaves."""


def estimate_noise(values: FloatArray) -> float:
    """Estimate the standard deviation of a column's white noise.

    Differences of order n suppress smooth motion and turn noise of σ into √C(2n, n) σ. The median absolute deviation of orders
    2 to 4 is taken and the smallest believed, since what is left of the motion only adds. Samples that repeat the one before
    are left out.

    Args:
        values: Shape [N]; NaN where missing.

    Returns:
        The noise, in the column's unit; at least 1e-5 of its span and the rounding of its values.
    """
    good = values[np.isfinite(values)]
    changes, values_in_all = np.diff(good), len(np.unique(good)) / max(len(good), 1)
    good = good[np.concatenate([[True], changes != 0])]
    span = float(np.ptp(good)) if len(good) else 0.0
    if span == 0.0:
        return _CONSTANT_NOISE
    found = [_NORMAL * float(np.median(np.abs(np.diff(good, n)))) / np.sqrt(comb(2 * n, n)) for n in (2, 3, 4) if len(good) > 4 * n]
    step = float(np.abs(changes[changes != 0]).min())
    rounding = step / np.sqrt(12) if values_in_all < 0.5 else 0.0
    return max(min(found, default=0.0), rounding, _SMALLEST_NOISE * span)


def fit_locally(path: FloatArray, dt: float, *, order: int, lag: float = 0.0, window: int = FIT_ROWS) -> FloatArray:
    """Return a derivative of a path on the grid, from a cubic through the rows around each, shape [T].

    A Savitzky-Golay filter that reads the cubic ``lag`` seconds before the row, and near an end off its middle. Rows around which a
    sample is missing take what lies between the nearest ones that are there.

    Args:
        path: Shape [T]; NaN where nothing was recorded.
        dt: Seconds per row.
        order: 0 for the path itself, smoothed; 1 for its slope.
        lag: How long before a row it is wanted [s], below dt. Half a step of a semi-implicit integrator, whose velocity is
            ``(q[t] - q[t-1]) / dt``: the slope at the row itself would be off by what passes for friction and delay.
        window: Rows of one cubic.
    """
    rows, count = np.arange(len(path)), min(window, len(path))
    first = np.clip(rows - count // 2, 0, len(path) - count)
    place = rows - first
    powers = np.arange(count)[:, None] - (np.arange(count) - lag / dt)[:, None, None]  # [place, row, 1]
    weights = np.linalg.pinv(powers ** np.arange(min(4, count)))[:, min(order, count - 1)] / dt**order
    found: FloatArray = (weights[place] * path[first[:, None] + np.arange(count)]).sum(1)
    good, missing = np.flatnonzero(np.isfinite(path)), ~np.isfinite(found)
    if missing.any() and len(good) > 1:
        coarse = np.gradient(path[good], dt * good) if order else path[good]
        found[missing] = np.interp(rows[missing], good, coarse)
    return found


def choose_window(path: FloatArray, dt: float) -> int:
    """Return the longest window of ``fit_locally`` whose cubics leave of a path no more than its noise.

    Args:
        path: Shape [T]; NaN where nothing was recorded.
        dt: Seconds per row.
    """
    noise, best = estimate_noise(path), FIT_WINDOWS[0]
    for window in FIT_WINDOWS:
        left = path - fit_locally(path, dt, order=0, window=window)
        own = np.linalg.pinv((np.arange(window)[:, None] - window // 2) ** np.arange(4.0))[0, window // 2]  # weight of a row's own sample
        if 2 * window > len(path) or not np.nanstd(left) <= _MOTION_LEFT * noise * np.sqrt(1 - own):
            break
        best = window
    return best


def velocity_lag(position: FloatArray, velocity: FloatArray, dt: float) -> Lag | None:
    """Return how late a velocity column follows the derivative of its position column.

    Args:
        position: On a uniform grid, shape [T]; NaN where missing.
        velocity: Shape [T].
        dt: Seconds per row.

    Returns:
        None where the column does not move, or not as its position does.
    """
    slope = (position[2:] - position[:-2]) / (2 * dt)
    late = velocity[1:-1]
    return _peaks(slope[:, None], late[:, None], np.ones((len(slope), 1)), dt, negative=True)[0][0]


def response_lags(states: FloatArray, acceleration: FloatArray, commands: FloatArray, dt: float) -> list[list[Lag | None]]:
    """Return how late every acceleration follows every command.

    The correlation is partial: whatever positions and velocities explain (springs, gravity near a posture, friction, the
    feedback that made the command) is projected out of both first, so that what remains is the transport delay and not the
    response time of a loop. Accelerations are noisy: all signals are averaged alike over as many rows as leave the lag the
    least uncertain.

    Args:
        states: Positions and velocities, shape [T, n].
        acceleration: Over the step that follows each row, shape [T, nv].
        commands: Shape [T, nu].
        dt: Seconds per row.

    Returns:
        For every command, a lag for every acceleration; None where the two have nothing to do with each other.
    """
    known = np.concatenate([np.ones((len(states), 1)), states, np.sign(states)], 1)
    tried = []
    for width in _WIDTHS:
        if 8 * width < len(states):
            u, a, z = (_averaged(x, width) for x in (commands, acceleration, known))
            tried.append(_peaks(u, a, z, dt, negative=False, width=width))
    return [[min((x for x in lags if x is not None), key=lambda x: x.spread, default=None) for lags in zip(*rows, strict=True)]
            for rows in zip(*tried, strict=True)]


def _averaged(values: FloatArray, width: int) -> FloatArray:
    """Mean over ``width`` rows about each one, without delay; rows beside missing ones and the ends are NaN."""
    out = np.full(values.shape, np.nan)
    inner = np.lib.stride_tricks.sliding_window_view(values, width, axis=0).mean(-1)
    out[width // 2 : width // 2 + len(inner)] = inner
    return out


def _peaks(early: FloatArray, late: FloatArray, known: FloatArray, dt: float, *, negative: bool, width: int = 1) -> list[list[Lag | None]]:
    """Lag of largest partial correlation of every column of ``early`` [T, m] with every one of ``late`` [T, n], to a fraction of a row."""
    nothing: list[list[Lag | None]] = [[None] * late.shape[1] for _ in early.T]
    longest = min(int(LONGEST_DELAY / dt), len(early) // 4)
    lags = np.arange(-longest if negative else -2, longest + 1)
    if longest < 2:
        return nothing
    rows = np.arange(longest, len(early) - longest)
    # [row, column, lag]: a window of rows ends lags[0] rows after its row, so its last element is the smallest lag
    windows = np.lib.stride_tricks.sliding_window_view(early, len(lags), axis=0)[longest - lags[-1] :][: len(rows), :, ::-1]
    holes = np.concatenate([[0], np.cumsum(~np.isfinite(early).all(1))])
    whole = holes[rows - lags[0] + 1] == holes[rows - lags[-1]]
    good = np.flatnonzero(whole & np.isfinite(late[rows]).all(1) & np.isfinite(known[rows]).all(1))
    if len(good) < 8 * known.shape[1] + 8:
        return nothing
    raw, basis = late[rows[good]], _basis(known[rows[good]])
    y = raw - basis @ (basis.T @ raw)
    still = np.linalg.norm(y, axis=0) <= 1e-9 * np.abs(raw).max(0) * np.sqrt(len(raw))
    return [[None if s else found for s, found in zip(still, _of_command(windows[good, k], basis, y, lags, dt, width), strict=True)]
            for k in range(early.shape[1])]


def _of_command(x: FloatArray, basis: FloatArray, y: FloatArray, lags: NDArray[np.int64], dt: float, width: int) -> list[Lag | None]:
    """Best lag of one command, given at all lags [N, L], for every response [N, n] from which ``basis`` is projected out."""
    x = x - basis @ (basis.T @ x)
    size = np.linalg.norm(x, axis=0)
    if not size.max() > 0:
        return [None] * y.shape[1]
    scale = np.outer(np.linalg.norm(y, axis=0), size)
    correlation = np.abs(np.divide(y.T @ x, scale, out=np.zeros(scale.shape), where=(size > 1e-9 * size.max()) & (scale > 0)))
    found: list[Lag | None] = []
    for r in correlation:
        k = int(r.argmax())
        if r[k] < max(LEAST_CORRELATION, _SIGNIFICANT * np.sqrt(width / len(x))):
            found.append(None)
            continue
        bend = r[k - 1] - 2 * r[k] + r[k + 1] if 0 < k < len(r) - 1 else 0.0
        shift = 0.5 * (r[k - 1] - r[k + 1]) / bend if bend < 0 else 0.0
        found.append(Lag(float((lags[k] + shift) * dt), float(r[k]), dt * _spread(float(r[k]), x, k, width)))
    return found


def _spread(correlation: float, x: FloatArray, k: int, width: int) -> float:
    """Standard deviation of a peak's place [rows], from the correlation there and the sharpness of the command's own peak."""
    beside = k - 1 if k else k + 1
    own = float(x[:, k] @ x[:, beside]) / max(float(np.linalg.norm(x[:, k]) * np.linalg.norm(x[:, beside])), 1e-300)
    sharpness = max(2 * (1 - own), 1e-12)
    return float(np.sqrt(max(1 - correlation**2, 1e-12) * width / (len(x) * sharpness)) / max(correlation, 1e-12))


def _basis(z: FloatArray) -> FloatArray:
    """Orthonormal columns that span those of ``z``; columns of zeros and repeats drop out."""
    scaled = z / np.maximum(np.abs(z).max(0), 1e-300)
    u, s, _ = np.linalg.svd(scaled, full_matrices=False)
    basis: FloatArray = u[:, s > 1e-9 * s[0]]
    return basis
