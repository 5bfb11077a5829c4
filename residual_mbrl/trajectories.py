"""Recorded trajectories with their own command and measurement clocks, checked when they are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from residual_mbrl.errors import LogError

FloatArray = NDArray[np.float64]
GAP = 1.5
"""An interval longer than this many median intervals is a gap."""


SLOWEST = 20
"""Model steps between samples beyond which a log is taken to be in another unit of time, such as milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One log: commands and measurements, each with its own time stamps.

    Args:
        name: Name of the log, used in every message and report.
        command_time: Time of each command [s], shape [M]; a command holds until the next.
        commands: Shape [M, nu].
        command_names: Name of each command column.
        measurement_time: Time of each measurement [s], shape [N].
        measurements: Shape [N, ny]; NaN only where ``missing`` allows it.
        measurement_names: Name of each measured column.
        units: Unit of any column above; "1" where it is missing.
        group: Name of the group that cross-validation leaves out together (a gain, a day, a robot).
        metadata: Anything else worth keeping (supply voltage, payload), JSON values.
        missing: Whether NaN in measurements marks a sample that was not recorded.

    Raises:
        LogError: naming log, column and row, for NaN, time going backwards, wrong shapes, or fewer than two samples.
    """

    name: str
    command_time: FloatArray
    commands: FloatArray
    command_names: tuple[str, ...]
    measurement_time: FloatArray
    measurements: FloatArray
    measurement_names: tuple[str, ...]
    units: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)
    missing: bool = False

    def __post_init__(self) -> None:
        """Convert to float64 arrays and check them."""
        for attribute in ("command_time", "commands", "measurement_time", "measurements"):
            object.__setattr__(self, attribute, np.ascontiguousarray(getattr(self, attribute), dtype=np.float64))
        _check_table(self.name, "command", self.command_time, self.commands, self.command_names, allow_nan=False)
        _check_table(self.name, "measurement", self.measurement_time, self.measurements, self.measurement_names,
                     allow_nan=self.missing)

    @property
    def duration(self) -> float:
        """Seconds from the first measurement to the last."""
        return float(self.measurement_time[-1] - self.measurement_time[0])

    @property
    def interval(self) -> float:
        """Median time between measurements [s]."""
        return float(np.median(np.diff(self.measurement_time)))

    def gaps(self, factor: float = GAP) -> list[tuple[int, float]]:
        """Return (row before, seconds) of every interval longer than ``factor`` times the median."""
        steps = np.diff(self.measurement_time)
        return [(int(i), float(steps[i])) for i in np.flatnonzero(steps > factor * self.interval)]

    def column(self, name: str) -> FloatArray:
        """Return one measured or commanded column, shape [N] or [M].

        Raises:
            LogError: if there is no such column.
        """
        if name in self.measurement_names:
            return self.measurements[:, self.measurement_names.index(name)]
        if name in self.command_names:
            return self.commands[:, self.command_names.index(name)]
        raise LogError(f"{self.name}: no column {name!r}; there are {[*self.measurement_names, *self.command_names]}")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A log on the model's time grid: row k is time ``start + k dt``.

    Args:
        trajectory: Where it comes from.
        time: Shape [H + 1] [s].
        actions: Commands held over each step, shape [H, nu].
        measurements: Shape [H + 1, ny]; NaN where nothing was measured.
    """

    trajectory: Trajectory
    time: FloatArray
    actions: FloatArray
    measurements: FloatArray


def on_grid(trajectory: Trajectory, dt: float, *, resample: bool = False, tolerance: float = 0.1) -> Grid:
    """Put a log on a grid of ``dt`` seconds: commands held, measurements where their stamps fall on the grid.

    Args:
        trajectory: The log.
        dt: Seconds per step of the model.
        resample: Interpolate measurements that do not fall on the grid, except across gaps, instead of refusing the log.
        tolerance: How far a stamp may lie from the grid, as a fraction of dt.

    Raises:
        LogError: if the log was recorded at another rate and ``resample`` is off, or commands start too late.
    """
    t = trajectory.measurement_time
    steps = round((t[-1] - t[0]) / dt)
    if steps < 1:
        raise LogError(f"{trajectory.name}: {trajectory.duration:.4g} s of measurements is less than one model step of {dt:g} s")
    grid = t[0] + dt * np.arange(steps + 1)
    place = (t - t[0]) / dt
    row = np.rint(place).astype(int)
    off = np.abs(place - row) > tolerance
    values = np.full((steps + 1, trajectory.measurements.shape[1]), np.nan)
    if not resample:
        if off.any() or trajectory.interval > SLOWEST * dt:
            i = int(np.flatnonzero(off)[0]) if off.any() else 1
            raise LogError(f"{trajectory.name}: sample {i} at {t[i]:.6g} s lies off the model's {dt:g} s grid (median interval "
                           f"{trajectory.interval:.6g} s): expected data at {1 / dt:.6g} Hz; resample it or build the model at "
                           "the log's rate")
        keep = row <= steps
        values[row[keep]] = trajectory.measurements[keep]
    else:
        for j, column in enumerate(trajectory.measurements.T):
            values[:, j] = _interpolate(grid, t, column)
    if trajectory.command_time[0] > grid[0] + dt:
        raise LogError(f"{trajectory.name}: commands start at {trajectory.command_time[0]:.6g} s, after the first measurement at "
                       f"{grid[0]:.6g} s")
    held = np.searchsorted(trajectory.command_time, grid[:-1] + tolerance * dt, side="right") - 1
    return Grid(trajectory=trajectory, time=grid, actions=trajectory.commands[np.maximum(held, 0)], measurements=values)


def _interpolate(grid: FloatArray, time: FloatArray, column: FloatArray) -> FloatArray:
    """Interpolate one column linearly; NaN outside its samples and inside its gaps."""
    good = np.isfinite(column)
    if good.sum() < 2:
        return np.full(len(grid), np.nan)
    known, slack = time[good], 1e-9
    values = np.interp(grid, known, column[good], left=np.nan, right=np.nan)
    steps = np.diff(known)
    for i in np.flatnonzero(steps > GAP * np.median(np.diff(time))):
        values[(grid > known[i] + slack) & (grid < known[i + 1] - slack)] = np.nan
    return values


def by_group(trajectories: Sequence[Trajectory]) -> dict[str, list[Trajectory]]:
    """Sort logs by their group, in order of first appearance."""
    groups: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        groups.setdefault(trajectory.group, []).append(trajectory)
    return groups


def _check_table(name: str, kind: str, time: FloatArray, table: FloatArray, columns: tuple[str, ...], *, allow_nan: bool) -> None:
    if time.ndim != 1 or table.ndim != 2 or len(time) != len(table) or table.shape[1] != len(columns):
        raise LogError(f"{name}: expected {kind} time [N] and values [N, {len(columns)}] for columns {list(columns)}, received "
                       f"{time.shape} and {table.shape}")
    if len(time) < 2:
        raise LogError(f"{name}: {len(time)} {kind} sample(s); at least two are needed")
    if not np.isfinite(time).all():
        raise LogError(f"{name}: {kind} time is not finite at row {int(np.flatnonzero(~np.isfinite(time))[0])}")
    backwards = np.flatnonzero(np.diff(time) <= 0)
    if len(backwards):
        i = int(backwards[0])
        raise LogError(f"{name}: {kind} time goes from {time[i]:.6g} to {time[i + 1]:.6g} s at row {i + 1}; it must increase")
    bad = ~np.isfinite(table) if not allow_nan else np.isinf(table)
    if bad.any():
        row, column = (int(x) for x in np.argwhere(bad)[0])
        raise LogError(f"{name}: {kind} column {columns[column]!r} is {table[row, column]} at row {row} ({int(bad.sum())} such "
                       f"values in all)")
