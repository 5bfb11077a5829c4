"""From recordings, whose columns have any name, unit, sign and rate, to logs of a model's state and commands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from residual_mbrl.column_map import ColumnMap, Entry
from residual_mbrl.column_match import Match, Matches, match_columns
from residual_mbrl.datasets.recording import Recording
from residual_mbrl.dry_run import FIRST_ROWS, ColumnReport, DryRun, LogReport
from residual_mbrl.effects import Delay
from residual_mbrl.errors import LogError
from residual_mbrl.log_conversion import Converted, Piece, Setup, convert
from residual_mbrl.log_delays import Delays, column_delays, command_delays
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.signal_estimates import choose_window, fit_locally
from residual_mbrl.spaces import StateSpace
from residual_mbrl.state_layout import Section, degrees_of_freedom, names_of
from residual_mbrl.trajectories import Trajectory

FloatArray = NDArray[np.float64]

_ENOUGH_ROWS = 20_000
"""Rows in which delays are sought: from the middle of the longest stretch of log."""

"""Samples to either side of one, over which the velocity of a free body is taken where it was not recorded."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Logs of a model's state and commands, ready to be cut into windows.

    Args:
        trajectories: On the model's time grid; measured columns are called as the state entries that they show.
        sensor: Noise and delays of the columns.
        report: What was understood.
    """

    trajectories: tuple[Trajectory, ...]
    sensor: Sensor
    report: DryRun


@dataclass(frozen=True, kw_only=True)
class _Logs:
    """All recordings, converted, with what concerns them together."""

    setup: Setup
    matches: Sequence[Matches]
    converted: Sequence[Converted]
    notes: list[str] = field(default_factory=list)

    @property
    def longest(self) -> Piece:
        return max((p for c in self.converted for p in c.pieces), key=lambda p: len(p.path))


def prepare(recordings: Sequence[Recording], space: StateSpace, mapping: ColumnMap | None = None, *, dt: float,
            ranges: Mapping[str, tuple[float, float]] | None = None, drives: Mapping[str, str] | None = None,
            resample: bool = False, velocity_lag: float = 0.0) -> Prepared:
    """Find the columns of a model's state and commands, convert them, check them and put them on its time grid.

    What a log does not say is not guessed: a column is taken by its name only where no other fits, and units, signs and rates
    that speak against each other are asked for.

    Args:
        recordings: The logs.
        space: State space of the model.
        mapping: What the user states about the columns.
        dt: Seconds per step of the model.
        ranges: Range of joints and commands in the model's unit, by state or action entry.
        drives: For an actuator, the joint that it drives.
        resample: Interpolate measurements that were recorded at another rate.
        velocity_lag: Time [s] by which the model's velocities are behind the slope of its positions; half a step where the new
            velocity moves the positions (semi-implicit Euler).

    Raises:
        LogError: naming log and column, what was found, and what to state in the mapping.
    """
    if not recordings:
        raise LogError("no logs: expected at least one recording")
    stated = mapping or ColumnMap()
    matches = [match_columns(r, space, stated, drives) for r in recordings]
    measured, notes = _shared(matches, space)
    setup = Setup(space=space, mapping=stated, measured=measured, ranges=ranges or {}, dt=dt, resample=resample,
                  velocity_lag=velocity_lag)
    converted = [convert(r, m.entries, setup) for r, m in zip(recordings, matches, strict=True)]
    logs = _Logs(setup=setup, matches=matches, converted=converted, notes=notes)
    delays = _delays(logs, drives or {})
    sensor = _sensor(logs, delays)
    trajectories = tuple(_trajectory(r, k, p, sensor, setup)
                         for r, c in zip(recordings, converted, strict=True) for k, p in enumerate(c.pieces))
    return Prepared(trajectories=trajectories, sensor=sensor, report=_report(logs, delays, sensor, trajectories))


def _shared(matches: Sequence[Matches], space: StateSpace) -> tuple[list[str], list[str]]:
    """State entries that every log has, and what to tell of those that only some have or that change columns."""
    measured, notes = [], []
    for name in space.state_names:
        having = sum(name in m.entries for m in matches)
        if having == len(matches):
            measured.append(name)
        elif having:
            notes.append(f"{name} is in {having} of {len(matches)} logs: not used")
    for name in (*measured, *space.action):
        columns = list(dict.fromkeys(_origin(m.entries[name]) for m in matches))
        if len(columns) > 1:
            notes.append(f"{name} is another column in some logs: {', '.join(columns)}")
    return measured, notes


def _delays(logs: _Logs, drives: Mapping[str, str]) -> Delays:
    """Delays of all columns and commands, as the longest stretch of log shows them."""
    setup, space, piece = logs.setup, logs.setup.space, logs.longest
    first = max(len(piece.path) - _ENOUGH_ROWS, 0) // 2
    rows = slice(first, first + _ENOUGH_ROWS)
    measurements, commands, path = piece.table.measurements[rows], piece.table.commands[rows], piece.path[rows]
    entries = {n: m.entry for n, m in logs.matches[0].entries.items()}
    joints = [q.rpartition(".")[0] or q for _, q, _ in degrees_of_freedom(space)]
    recorded = [(d, q, v) for d, q, v in degrees_of_freedom(space) if v in setup.measured]
    values = {v: measurements[:, setup.measured.index(v)] for _, _, v in recorded}
    own = column_delays([(q, v) for _, q, v in recorded], {v: path[:, d] for d, _, v in recorded}, values, setup.dt, entries)
    velocities = np.stack([values[v] for v in space.velocity], 1) if len(recorded) == space.nv else None
    asked = [k for k, n in enumerate(space.action) if entries[n].constant is None]
    response = command_delays([space.action[k] for k in asked], joints, path, velocities, commands[:, asked], setup.dt, entries, drives)
    return Delays(effects={**own.effects, **response.effects}, found={**own.found, **response.found},
                  warnings=[*own.warnings, *response.warnings])


def _sensor(logs: _Logs, delays: Delays) -> Sensor:
    space, noises = logs.setup.space, _noise(logs)
    columns = [Column(name=n, source=n, noise=noises[n], effects=_effects(delays, n)) for n in logs.setup.measured]
    columns += [Column(name=n, source=n, noise=math.inf) for n in _filled(logs.setup)]
    return Sensor(space=space, columns=tuple(columns), commands={n: _effects(delays, n) for n in space.action if n in delays.effects})


def _noise(logs: _Logs) -> dict[str, float]:
    """Median noise over the logs; infinite for constants, which only serve first states."""
    found = {n: [c.noise[n] for c in logs.converted if n in c.noise] for n in logs.setup.measured}
    return {n: float(np.median(x)) if x else math.inf for n, x in found.items()}


def _effects(delays: Delays, name: str) -> tuple[Delay, ...]:
    return (delays.effects[name],) if name in delays.effects else ()


def _filled(setup: Setup) -> list[str]:
    """Velocities and activations without a column of their own."""
    return [n for n in (*setup.space.velocity, *setup.space.activation) if n not in setup.measured]


def _filling(name: str, piece: Piece, setup: Setup) -> FloatArray:
    """Values for an entry without a column: the slope of a path, the command that an activation is in balance with, or zero."""
    if name in setup.space.velocity:
        path = piece.path[:, setup.space.velocity.index(name)]
        return fit_locally(path, setup.dt, order=1, lag=setup.velocity_lag, window=choose_window(path, setup.dt))
    command = _command_of(name, setup.space)
    return np.zeros(len(piece.path)) if command is None else piece.table.commands[:, setup.space.action.index(command)]


def _command_of(activation: str, space: StateSpace) -> str | None:
    """Return the command of the actuator that an activation belongs to."""
    owner = activation.rpartition(".act")[0]
    return next((a for a in space.action if owner and a.removesuffix(".ctrl") == owner), None)


def _trajectory(recording: Recording, k: int, piece: Piece, sensor: Sensor, setup: Setup) -> Trajectory:
    table, names = piece.table, tuple(c.name for c in sensor.columns)
    values = np.column_stack([table.measurements, *(_filling(n, piece, setup) for n in _filled(setup))])
    units = {n: setup.space.unit(n) for n in (*names, *setup.space.action)}
    return Trajectory(name=recording.name + (f"#{k + 1}" if k else ""), command_time=table.time, commands=table.commands,
                      command_names=setup.space.action, measurement_time=table.time, measurements=values, measurement_names=names,
                      units=units, group=recording.group, metadata={**recording.metadata, "start": table.start}, missing=True)


def _report(logs: _Logs, delays: Delays, sensor: Sensor, trajectories: Sequence[Trajectory]) -> DryRun:
    space, setup = logs.setup.space, logs.setup
    sections: tuple[Section, ...] = ("position", "velocity", "activation", "action")
    columns = [_column(logs, delays, section, name, trajectories) for section in sections for name in names_of(space, section)]
    rows = [LogReport(name=t.name, group=t.group, seconds=t.duration, rows=len(t.measurements),
                      missing=float(np.isnan(t.measurements).mean())) for t in trajectories]
    balanced = [(n, _command_of(n, space)) for n in _filled(setup) if n in space.activation]
    warnings = [*logs.notes, *(w for c in logs.converted for w in c.warnings), *delays.warnings,
                *(f"{n} was not recorded: windows start with it {f'in balance with {c}' if c else 'at zero'}" for n, c in balanced)]
    estimated = [*(f"{v} from positions" for v in space.velocity if v not in setup.measured),
                 *(f"{p.name}, from {p.nominal:.3g} {p.unit}" for p in sensor.parameters.free())]
    return DryRun(columns=columns, logs=rows, dt=setup.dt, unused=list(dict.fromkeys(s for m in logs.matches for s in m.unused)),
                  estimated=estimated, warnings=list(dict.fromkeys(warnings)))


def _column(logs: _Logs, delays: Delays, section: Section, name: str, trajectories: Sequence[Trajectory]) -> ColumnReport:
    match = logs.matches[0].entries.get(name) if name in logs.setup.measured or section == "action" else None
    unit, first = logs.setup.space.unit(name), logs.converted[0]
    tables = [t.column(name) for t in trajectories if name in (*t.measurement_names, *t.command_names)]
    finite = [x[np.isfinite(x)] for x in tables]
    everything = np.concatenate(finite) if finite else np.zeros(0)
    low, high = (float(everything.min()), float(everything.max())) if len(everything) else (math.nan, math.nan)
    return ColumnReport(name=name, section=section, column=_origin(match), unit=unit, low=low, high=high,
                        conversion=_conversion(match.entry, first.units.get(name, unit), unit) if match is not None else "",
                        limits=logs.setup.ranges.get(name), noise=None if section == "action" else _noise(logs).get(name),
                        clock=first.clocks.get(name), delay=delays.found.get(name, ""),
                        first=tuple(float(x) for x in finite[0][:FIRST_ROWS]) if finite else ())


def _origin(match: Match | None) -> str:
    if match is None:
        return "(estimated)"
    return f"constant {match.entry.constant:g}" if match.signal is None else match.signal + ("" if match.stated else " (by name)")


def _conversion(entry: Entry, stated: str, unit: str) -> str:
    """Describe how a column becomes an entry; a question mark stands behind a unit that nobody states."""
    parts = [stated.replace("1?", "") if stated.endswith("?") else f"{stated} → {unit}"] if stated != unit else []
    parts += ["sign -1"] if entry.sign == -1 else []
    parts += [f"scale {entry.scale:g}"] if entry.scale != 1 else []
    parts += [f"offset {entry.offset:g}"] if entry.offset else []
    return ", ".join(p for p in parts if p)
