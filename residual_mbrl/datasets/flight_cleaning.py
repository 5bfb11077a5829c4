"""What goes wrong in logs of flying robots, handled where that is safe and named in any case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from residual_mbrl.errors import LogError

Array = NDArray[np.float64]

SPEEDS = (0.3, 2.7)
"""Rotor speeds [krad/s] that a rotor in flight can have; beyond them a reading is a spike."""

MOST_SPIKES = 0.02
"""Share of a rotor's readings beyond which its column is not a spiked one but a wrong one."""

RINGING = 0.4
"""Seconds around a spike over which a filter that has seen it rings."""

MOST_HELD = 0.05
"""Share of repeated rows that is worth a warning."""

MOST_FLAT = 0.01
"""Share of rows at a motor's limit that is worth a warning."""

LONGEST_GAP = 5
"""Rows that may be missing in one place and are interpolated."""

CELL = (2.5, 4.6)
"""Volts of one lithium cell in flight."""


@dataclass(frozen=True)
class Cleaned:
    """A repaired signal and what was found, in words."""

    values: Array
    warnings: tuple[str, ...]


def without_spikes(name: str, speeds: Array, limits: tuple[float, float] = SPEEDS) -> tuple[Cleaned, NDArray[np.bool_]]:
    """Interpolate rotor speeds that no rotor can have, each rotor over its own readings before and after.

    Args:
        name: Of the log.
        speeds: Shape [T, rotors] [krad/s].
        limits: Lowest and highest speed.

    Returns:
        The speeds, and which readings were replaced, shape [T, rotors].

    Raises:
        LogError: if more than ``MOST_SPIKES`` of a column are beyond the limits, which looks like another unit or a motor at rest.
    """
    bad = (speeds < limits[0]) | (speeds > limits[1])
    for k, share in enumerate(bad.mean(0)):
        if share > MOST_SPIKES:
            raise LogError(f"{name}: {100 * share:.0f} % of the speeds of motor {k + 1} are outside {limits[0]:g} to {limits[1]:g} krad/s "
                           f"(median {np.median(speeds[:, k]):.4g}): expected rad/s in flight; eRPM is rad/s · 60 · pole pairs / 2π")
    fixed, rows = speeds.copy(), np.arange(len(speeds))
    for k in map(int, np.flatnonzero(bad.any(0))):
        fixed[bad[:, k], k] = np.interp(rows[bad[:, k]], rows[~bad[:, k]], speeds[~bad[:, k], k])
    found = [f"motor {k + 1}: {int(bad[:, k].sum())} speed spikes up to {np.abs(speeds[bad[:, k], k]).max():.4g} krad/s, interpolated"
             for k in map(int, np.flatnonzero(bad.any(0)))]
    return Cleaned(fixed, tuple(found)), bad


def around(rows: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """Return rows within a number of rows of those marked, shape [T]."""
    return np.convolve(rows, np.ones(2 * reach + 1), "same")[: len(rows)] > 0.5


def continuous(name: str, quaternions: Array) -> Cleaned:
    """Return unit quaternions of continuous sign; both signs stand for one attitude, and nothing wraps as an angle does.

    Raises:
        LogError: if one is too far from unit length to be a quaternion.
    """
    length = np.linalg.norm(quaternions, axis=1, keepdims=True)
    wrong = np.flatnonzero(np.abs(length[:, 0] - 1) > 0.1)
    if len(wrong):
        raise LogError(f"{name}: the quaternion of row {wrong[0]} has length {length[wrong[0], 0]:.4g}; expected unit quaternions")
    unit = quaternions / length
    flips = (unit[1:] * unit[:-1]).sum(1) < 0
    sign = np.concatenate([[1.0], np.cumprod(np.where(flips, -1.0, 1.0))])
    return Cleaned(unit * sign[:, None], (f"the quaternion changes its sign {int(flips.sum())} times",) if flips.any() else ())


def volts(name: str, battery: Array) -> Cleaned:
    """Return the voltage of a cell in V, from V or mV.

    Raises:
        LogError: if it is neither.
    """
    middle = float(np.median(battery))
    scale = 1e-3 if middle > 1000 * CELL[0] else 1.0
    if not CELL[0] <= scale * middle <= CELL[1]:
        raise LogError(f"{name}: the battery's median is {middle:.4g}; expected {CELL[0]:g} to {CELL[1]:g} V of one cell, or mV")
    return Cleaned(scale * battery, ("battery in mV, converted to V",) if scale != 1.0 else ())


def without_gaps(name: str, time: Array, columns: Sequence[Array], dt: float) -> tuple[Array, list[Array], tuple[str, ...]]:
    """Put rows on an even clock: interpolate where up to ``LONGEST_GAP`` rows in a row were lost.

    Args:
        name: Of the log.
        time: Shape [T] [s].
        columns: Each of shape [T, k].
        dt: Seconds per row.

    Returns:
        Time, columns, warnings.

    Raises:
        LogError: naming the place, if time does not rise, more rows are missing, or rows come at another rate.
    """
    steps = np.diff(time)
    if not (steps > 0).all():
        raise LogError(f"{name}: time does not rise at row {int(np.argmin(steps > 0)) + 1}")
    if abs(float(np.median(steps)) / dt - 1) > 0.05:
        raise LogError(f"{name}: rows come every {np.median(steps):.4g} s; expected {dt:g} s")
    worst = int(np.argmax(steps))
    if steps[worst] > (LONGEST_GAP + 1.5) * dt:
        raise LogError(f"{name}: {round(steps[worst] / dt) - 1} rows are missing after row {worst}, more than the {LONGEST_GAP} that are "
                       "interpolated: cut the log there")
    lost = int((np.round(steps / dt) - 1).clip(min=0).sum())
    if not lost:
        return time, list(columns), ()
    even = time[0] + dt * np.arange(round((time[-1] - time[0]) / dt) + 1)
    filled = [np.stack([np.interp(even, time, c) for c in x.T], 1) for x in columns]
    return even, filled, (f"{lost} rows of dropped packets, interpolated",)


def held_rows(measurements: Array) -> tuple[str, ...]:
    """Name repeated rows, which a radio link shows while it waits: their innovations are a jump after nothing."""
    share = float((np.diff(measurements, axis=0) == 0).all(1).mean())
    return (f"{100 * share:.0f} % of the rows repeat the one before",) if share > MOST_HELD else ()


def saturated(speeds: Array) -> tuple[str, ...]:
    """Name rotors that stay flat at their highest speed: what they were told is then not in the log."""
    top = speeds.max(0)
    flat = (speeds[1:] > 0.999 * top) & (np.abs(np.diff(speeds, axis=0)) < 1e-4 * top)
    return tuple(f"motor {k + 1} stays at its highest speed in {100 * share:.1f} % of the rows"
                 for k, share in enumerate(flat.mean(0)) if share > MOST_FLAT)
