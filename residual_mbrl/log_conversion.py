"""One recording turned into rows of a model's state and commands: converted, checked, aligned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from residual_mbrl.column_map import ColumnMap
from residual_mbrl.column_match import Match
from residual_mbrl.datasets.recording import Recording
from residual_mbrl.errors import LogError
from residual_mbrl.log_alignment import Clock, Series, Table, align, clean, read_clock
from residual_mbrl.signal_checks import Checked, check_motion, check_quaternion, check_range, travelled
from residual_mbrl.signal_estimates import estimate_noise
from residual_mbrl.spaces import StateSpace
from residual_mbrl.state_layout import degrees_of_freedom, quaternion_names
from residual_mbrl.units import factor

FloatArray = NDArray[np.float64]

_MANY_REPEATS = 0.3
"""Fraction of repeated samples from which a column is said to come from a slower sensor."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What conversion needs to know of the model and the user's wishes.

    Args:
        space: State space of the model.
        mapping: What the user states.
        measured: State entries that every log has.
        ranges: Range of joints and commands, by entry.
        dt: Seconds per step of the model.
        resample: Interpolate measurements that were recorded at another rate.
        velocity_lag: Time [s] by which the model's velocities are behind the slope of its positions.
    """

    space: StateSpace
    mapping: ColumnMap
    measured: Sequence[str]
    ranges: Mapping[str, tuple[float, float]]
    dt: float
    resample: bool
    velocity_lag: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch of a recording without long silence.

    Args:
        table: Measured entries and commands in the model's units.
        path: Travelled path of every degree of freedom, shape [T, nv]; NaN between samples.
    """

    table: Table
    path: FloatArray


@dataclass(kw_only=True)
class Converted:
    """What became of one recording; entries by name."""

    pieces: list[Piece] = field(default_factory=list)
    units: dict[str, str] = field(default_factory=dict)
    """Unit of the column, with a question mark where nobody states it."""
    noise: dict[str, float] = field(default_factory=dict)
    clocks: dict[str, Clock] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def convert(recording: Recording, matches: Mapping[str, Match], setup: Setup) -> Converted:
    """Convert, check and align one recording.

    Args:
        recording: The log.
        matches: Where the values of each entry come from.
        setup: The model and what the user wants.

    Raises:
        LogError: for units, ranges, signs and rates that cannot be right.
    """
    where, space, out = name_log(recording), setup.space, Converted()
    wanted = [n for n in (*setup.measured, *space.action) if matches[n].signal is not None]
    series: dict[str, Series] = {}
    checked: dict[str, Checked] = {}
    for name in wanted:
        unit, stated = _unit(recording, matches[name], setup)
        out.units[name] = unit if stated else f"{unit}?"
        series[name] = _series(where, recording, matches[name], unit, space.unit(name), out)
    for names in quaternion_names(space):
        _normalise(where, names, series)
    for name in wanted:
        checked[name] = _check(where, matches[name], series[name], setup, out)
    measured = [series[n] for n in setup.measured if n in series]
    if not measured:
        raise LogError(f"{where}: every state entry is a constant: nothing was measured")
    tables, notes = align(where, measured, [series[n] for n in space.action if n in series], setup.dt, resample=setup.resample)
    out.warnings += notes
    for table in tables:
        whole = _with_constants(table, series, matches, setup)
        out.pieces.append(Piece(table=whole, path=travelled(space, whole.measurements[:, : space.nq])))
    longest = max(out.pieces, key=lambda p: len(p.path))
    pairs = [(d, checked[q], checked[v]) for d, q, v in degrees_of_freedom(space) if q in checked and v in checked]
    velocities = {v.name: longest.table.measurements[:, setup.measured.index(v.name)] for _, _, v in pairs}
    out.warnings += check_motion(where, longest.table.time, longest.path, pairs, velocities)
    return out


def name_log(recording: Recording) -> str:
    """Return what messages call a recording: its file, and its name where a file holds several."""
    path = str(recording.path)
    return path if recording.name in path else f"{path} ({recording.name})"


def _unit(recording: Recording, match: Match, setup: Setup) -> tuple[str, bool]:
    """Unit of a column, and whether anybody states it: the mapping for it, the file, or the mapping for its section."""
    expected = setup.space.unit(match.name)
    in_file = recording.signals[match.signal or ""].unit
    in_file = None if in_file in ("", "1", "-", "none") else in_file
    stated = match.entry.unit or in_file or setup.mapping.default_unit(match.section, expected)
    return (expected, False) if stated is None else (stated, True)


def _series(where: str, recording: Recording, match: Match, unit: str, expected: str, out: Converted) -> Series:
    signal, entry = recording.signals[match.signal or ""], match.entry
    try:
        size = factor(unit, expected)
    except LogError as e:
        raise LogError(f"{where}: column {signal.name!r}, {match.section} {match.name!r}: {e}; state it in a mapping, [{match.section}] "
                       f'"{match.name}" = {{ column = "{signal.name}", unit = "{expected}", scale = 1.0 }}') from e
    values = size * (entry.sign * entry.scale * signal.values + entry.offset)
    if np.isinf(values).any():
        raise LogError(f"{where}: column {signal.name!r} is infinite at row {int(np.isinf(values).argmax())}")
    series, repeated = clean(where, Series(name=match.name, time=signal.time, values=values))
    if repeated:
        out.warnings.append(f"{where}: {repeated} sample(s) of {signal.name!r} repeat the time stamp before and are left out")
    return series


def _normalise(where: str, names: Sequence[str], series: dict[str, Series]) -> None:
    """Give a logged quaternion unit length and a steady sign."""
    parts = [series[n] for n in names if n in series]
    if not parts:
        return
    if len(parts) < len(names) or any(not np.array_equal(p.time, parts[0].time) for p in parts):
        raise LogError(f"{where}: {', '.join(names)} must be four columns with the same time stamps")
    unit = check_quaternion(where, names, np.stack([p.values for p in parts], 1))
    for part, values in zip(parts, unit.T, strict=True):
        series[part.name] = Series(name=part.name, time=part.time, values=np.ascontiguousarray(values))


def _check(where: str, match: Match, series: Series, setup: Setup, out: Converted) -> Checked:
    unit, expected, stated = out.units[match.name], setup.space.unit(match.name), match.entry.noise
    noise = estimate_noise(series.values) if stated is None else factor(unit.removesuffix("?"), expected) * stated
    clock = read_clock(series)
    out.noise[match.name], out.clocks[match.name] = noise, clock
    column = Checked(name=match.name, column=match.signal or "", section=match.section, unit=expected, unit_stated=not unit.endswith("?"),
                     noise=noise)
    out.warnings += check_range(where, column, series.values, setup.ranges.get(match.name))
    if match.section != "action" and clock.repeats > _MANY_REPEATS:
        out.warnings.append(f"{where}: {clock.repeats:.0%} of the samples of {match.signal!r} equal the one before: a sensor slower than "
                            f"{clock.rate:.5g} Hz, or coarse steps")
    if clock.gaps:
        out.warnings.append(f"{where}: {match.signal!r} has {clock.gaps} gap(s)")
    return column


def _with_constants(table: Table, series: Mapping[str, Series], matches: Mapping[str, Match], setup: Setup) -> Table:
    """Fill in the entries that are constants; give quaternions their length back, which interpolation takes."""
    def columns(names: Sequence[str], values: FloatArray) -> FloatArray:
        filled, sources = np.empty((len(table.time), len(names))), iter(values.T)
        for k, n in enumerate(names):
            filled[:, k] = next(sources) if n in series else _constant(matches[n], setup.space.unit(n))
        return filled

    measured = columns(setup.measured, table.measurements)
    for names in quaternion_names(setup.space):
        at = [setup.measured.index(n) for n in names]
        measured[:, at] /= np.linalg.norm(measured[:, at], axis=1, keepdims=True)
    return Table(start=table.start, time=table.time, measurements=measured, commands=columns(setup.space.action, table.commands))


def _constant(match: Match, expected: str) -> float:
    return factor(match.entry.unit or expected, expected) * float(match.entry.constant or 0.0)
