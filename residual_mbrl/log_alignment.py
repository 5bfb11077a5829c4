"""Signals on clocks of their own, put on one time grid: commands held, measurements where their stamps fall on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from residual_mbrl.errors import LogError
from residual_mbrl.trajectories import GAP, SLOWEST

FloatArray = NDArray[np.float64]
TOLERANCE = 0.1
"""How far a stamp may lie from the grid, as a fraction of a step."""

LONGEST_GAP = 5.0
"""Median intervals without any sample after which a log goes on as another one: nobody knows what was commanded meanwhile."""

SHORTEST = 10
"""Samples below which a piece of a log is dropped."""

_REGULAR = 0.5
"""Jitter over interval below which commands are taken to be sent regularly, so that their end means something."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One column in the model's unit.

    Args:
        name: State or action entry.
        time: Stamps [s], shape [N], increasing.
        values: Shape [N]; NaN where a sample is missing.
    """

    name: str
    time: FloatArray
    values: FloatArray


@dataclass(frozen=True, kw_only=True)
class Clock:
    """How regularly a column was sampled.

    Args:
        interval: Median time between samples [s].
        jitter: Standard deviation of the stamps' intervals, gaps left out [s].
        gaps: Intervals longer than 1.5 median ones.
        repeats: Fraction of samples equal to the one before while the column moves: a slower sensor read too often.
    """

    interval: float
    jitter: float
    gaps: int
    repeats: float

    @property
    def rate(self) -> float:
        """Samples per second [Hz]."""
        return 1 / self.interval


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns on one grid.

    Args:
        start: Stamp of the first row on the log's own clock [s].
        time: Since the first row [s], shape [T].
        measurements: Shape [T, ny]; NaN where nothing was measured.
        commands: Shape [T, nu].
    """

    start: float
    time: FloatArray
    measurements: FloatArray
    commands: FloatArray


def read_clock(series: Series) -> Clock:
    """Return how regularly a column was sampled."""
    steps = np.diff(series.time)
    interval = float(np.median(steps))
    near = steps[steps <= GAP * interval]
    changes = np.diff(series.values[np.isfinite(series.values)])
    moving = float(np.mean(changes == 0)) if np.any(changes) else 0.0
    return Clock(interval=interval, jitter=float(np.std(near)) if len(near) else 0.0, gaps=int((steps > GAP * interval).sum()),
                 repeats=moving)


def clean(where: str, series: Series) -> tuple[Series, int]:
    """Drop samples that carry the stamp of the one before; return how many.

    Raises:
        LogError: if fewer than two samples are left, or none has a value.
    """
    keep = np.concatenate([[True], np.diff(series.time) > 0])
    if keep.sum() < 2 or not np.isfinite(series.values).any():
        found = int(np.isfinite(series.values[keep]).sum())
        raise LogError(f"{where}: {series.name!r} has {found} samples at different times; at least two are needed")
    return Series(name=series.name, time=series.time[keep], values=series.values[keep]), int((~keep).sum())


def align(where: str, measured: Sequence[Series], commanded: Sequence[Series], dt: float, *,
          resample: bool = False) -> tuple[list[Table], list[str]]:
    """Put one recording on a grid of ``dt`` seconds.

    The grid starts at a sample of the densest measured column, once every column has begun. A log that goes silent for long
    is cut there.

    Args:
        where: What messages call the log.
        measured: Measured columns.
        commanded: Command columns; NaN counts as not sent.
        dt: Seconds per step of the model.
        resample: Interpolate measurements between their stamps, except over gaps.

    Returns:
        The pieces, and what to tell the user.

    Raises:
        LogError: if a column's stamps do not fall on the grid and ``resample`` is off, or columns do not overlap.
    """
    commanded = [Series(name=c.name, time=c.time[np.isfinite(c.values)], values=c.values[np.isfinite(c.values)]) for c in commanded]
    notes: list[str] = []
    reference = max(measured, key=lambda s: len(s.time))
    first = max(s.time[0] for s in (*measured, *commanded))
    begin = max([m.time[0] for m in measured] + [c.time[0] - TOLERANCE * dt for c in commanded])
    later = reference.time[reference.time >= begin - 1e-9]
    ends = {s.name: s.time[-1] for s in measured} | {c.name: c.time[-1] + max(dt, read_clock(c).interval) for c in commanded if _regular(c)}
    earliest = min(ends, key=lambda n: ends[n])
    if len(later) < 2 or ends[earliest] - later[0] < dt:
        last = max((*measured, *commanded), key=lambda s: s.time[0]).name
        raise LogError(f"{where}: {earliest!r} ends at {ends[earliest]:.6g} s, before {last!r} begins at {first:.6g} s: columns must "
                       "overlap; another clock, or another unit of time?")
    start, stop = float(later[0]), float(ends[earliest])
    whole = min(s.time[0] for s in measured), max(s.time[-1] for s in measured)
    cuts = (start - whole[0], "at the start, before every column has begun"), (whole[1] - stop, f"at the end, after {earliest!r}")
    for seconds, text in cuts:
        if seconds > max(dt, LONGEST_GAP * read_clock(reference).interval):
            notes.append(f"{where}: {seconds:.3g} s left out {text}")
    rows = int(np.floor((stop - start) / dt + TOLERANCE)) + 1
    grid: FloatArray = start + dt * np.arange(rows, dtype=np.float64)
    place = _interpolated if resample else _placed
    measurements = np.stack([place(where, s, grid, dt) for s in measured], 1)
    commands = np.stack([_held(c, grid, dt) for c in commanded], 1) if commanded else np.zeros((rows, 0))
    pieces = _pieces(measurements, commanded, grid, read_clock(reference).interval)
    kept = [(a, b) for a, b in pieces if np.isfinite(measurements[a:b]).all(1).sum() >= min(SHORTEST, rows)]
    if not kept:
        raise LogError(f"{where}: no stretch of {SHORTEST} samples without a gap of {LONGEST_GAP:g} intervals")
    if len(pieces) > 1:
        notes.append(f"{where}: cut at {len(pieces) - 1} gap(s) into {len(kept)} piece(s)"
                     + (f", {len(pieces) - len(kept)} too short left out" if len(kept) < len(pieces) else ""))
    tables = [Table(start=float(grid[a]), time=dt * np.arange(b - a, dtype=np.float64), measurements=measurements[a:b],
                    commands=commands[a:b]) for a, b in kept]
    return tables, notes


def _placed(where: str, series: Series, grid: FloatArray, dt: float) -> FloatArray:
    """Values at the grid rows on which their stamps fall; NaN elsewhere."""
    place = (series.time - grid[0]) / dt
    inside = (place > -0.5) & (place < len(grid) - 0.5)
    row = np.rint(place).astype(int)
    off = inside & (np.abs(place - row) > TOLERANCE)
    clock = read_clock(series)
    if off.any() or clock.interval > SLOWEST * dt:
        raise LogError(_off_grid(where, series, clock, dt, int(off.argmax()) if off.any() else 1))
    values = np.full(len(grid), np.nan)
    values[row[inside]] = series.values[inside]
    return values


def _off_grid(where: str, series: Series, clock: Clock, dt: float, row: int) -> str:
    ratio = clock.interval / dt
    said = (f"{where}: {series.name!r} was recorded at {clock.rate:.6g} Hz (every {1e3 * clock.interval:.6g} ms), the model steps every "
            f"{1e3 * dt:.6g} ms")
    if ratio > SLOWEST:
        return f"{said}: is its time in another unit (state it as [time] unit)? Otherwise --resample interpolates between samples"
    drift = abs(ratio - max(round(ratio), 1)) * len(series.time)
    if clock.jitter > TOLERANCE * dt and drift < len(series.time) * TOLERANCE:
        return (f"{said}, but its stamps vary by {1e3 * clock.jitter:.3g} ms and sample {row} at {series.time[row]:.6g} s lies off the "
                "grid: --resample interpolates between samples")
    return (f"{said}: sample {row} at {series.time[row]:.6g} s lies off the grid; set the model's time step to the log's rate "
            f"({clock.interval:.6g} s, or a whole fraction of it with --dt {clock.interval:.6g}), or --resample to interpolate between "
            "samples")


def _interpolated(where: str, series: Series, grid: FloatArray, dt: float) -> FloatArray:
    """Values interpolated linearly; NaN inside gaps."""
    good = np.isfinite(series.values)
    time, values = series.time[good], series.values[good]
    if len(time) < 2:
        raise LogError(f"{where}: {series.name!r} has {len(time)} finite samples; at least two are needed")
    out: FloatArray = np.interp(grid, time, values, left=np.nan, right=np.nan)
    steps = np.diff(time)
    for i in np.flatnonzero(steps > max(GAP * np.median(np.diff(series.time)), GAP * dt)):
        out[(grid > time[i] + 1e-9) & (grid < time[i + 1] - 1e-9)] = np.nan
    return out


def _held(series: Series, grid: FloatArray, dt: float) -> FloatArray:
    """The last command sent by each row."""
    last = np.searchsorted(series.time, grid + TOLERANCE * dt, side="right") - 1
    return series.values[np.maximum(last, 0)]


def _regular(series: Series) -> bool:
    clock = read_clock(series) if len(series.time) >= SHORTEST else None
    return clock is not None and clock.jitter < _REGULAR * clock.interval and clock.gaps < 0.1 * len(series.time)


def _pieces(measurements: FloatArray, commanded: Sequence[Series], grid: FloatArray, interval: float) -> list[tuple[int, int]]:
    """Rows [a, b) between long silences, in which nothing was measured and nothing commanded."""
    heard = np.flatnonzero(np.isfinite(measurements).any(1))
    sent = np.unique(np.concatenate([c.time for c in commanded])) if commanded else np.zeros(0)
    edges = [int(heard[0])]
    pieces: list[tuple[int, int]] = []
    for a, b in zip(heard[:-1], heard[1:], strict=True):
        if grid[b] - grid[a] > LONGEST_GAP * interval:
            slack = GAP * interval
            between = np.searchsorted(sent, grid[b] - slack) - np.searchsorted(sent, grid[a] + slack, side="right")
            if not len(sent) or between <= 0:
                pieces.append((edges.pop(), int(a) + 1))
                edges.append(int(b))
    return [*pieces, (edges.pop(), int(heard[-1]) + 1)]

