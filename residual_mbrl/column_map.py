"""``mapping.toml``: which column of a log is which joint or actuator, and in what unit, sign, scale and delay.

    ignore = ["camera.*"]                       # columns that are not wanted, as glob patterns

    [time]
    column = "stamp"                            # clock of the columns beside it
    unit = "ms"

    [units]                                     # of columns whose unit nothing else states
    position = "deg"

    [position]
    joints = "q"                                # q[0], q[1], ... in the order of the model's joints
    elbow = { sign = -1, offset = 90.0 }        # one joint of them differs: (sign * scale * column + offset) [unit]
    wrist = { column = "wrist_angle", unit = "rad", noise = 0.001 }
    base = { column = "pose", order = "xyzw" }  # a free joint: x, y, z and a quaternion

    [velocity]                                  # by the joint's name; left out, velocities are estimated from positions
    joints = "dq"

    [action]
    actuators = "tau"
    gripper = 0.0                               # no column: a constant
    lift = { column = "u7", delay = [0.0, 0.1] }

A single ``delay`` [s] is taken as known, a pair bounds one to be estimated. Names with dots may stand without quotes.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from residual_mbrl.datasets.columns import ClockOptions
from residual_mbrl.errors import LogError
from residual_mbrl.spaces import StateSpace
from residual_mbrl.state_layout import Section, entry_groups, names_of, quaternion_names, velocity_of
from residual_mbrl.units import factor

SECTIONS: tuple[Section, ...] = ("position", "velocity", "activation", "action")
ENTRY_KEYS = ("column", "constant", "unit", "sign", "scale", "offset", "delay", "noise", "order")
TIME_KEYS = ("column", "unit", "rate")
_PLACES = {"wxyz": (0, 1, 2, 3), "xyzw": (3, 0, 1, 2)}
"""Place of w, x, y, z in a logged quaternion."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is stated about one entry of state or action; None where nothing is.

    Args:
        column: Column of the log, or the vector it is an element of.
        place: Element of that vector; None for a column of its own.
        length: Number of elements that the vector must have.
        constant: Value in ``unit`` that stands in for a column.
        unit: Unit of ``(sign * scale * column + offset)``.
        sign: 1 or -1.
        scale: Factor to ``unit``.
        offset: Added, in ``unit``.
        delay: Known delay [s], or bounds of one to estimate.
        noise: Standard deviation of the noise, in ``unit``.
    """

    column: str | None = None
    place: int | None = None
    length: int = 0
    constant: float | None = None
    unit: str | None = None
    sign: int = 1
    scale: float = 1.0
    offset: float = 0.0
    delay: float | tuple[float, float] | None = None
    noise: float | None = None


@dataclass(frozen=True, kw_only=True)
class ColumnMap:
    """A mapping, checked against a model's state space.

    Args:
        source: File it was read from, for messages.
        entries: What is stated of each state or action entry, by its name.
        units: Units stated for whole sections.
        clock: What is stated of the time; readers take it.
        ignore: Glob patterns of columns that automatic mapping must not consider.
    """

    source: str = "mapping"
    entries: Mapping[str, Entry] = field(default_factory=dict)
    units: Mapping[Section, Sequence[str]] = field(default_factory=dict)
    clock: ClockOptions = field(default_factory=ClockOptions)
    ignore: Sequence[str] = ()

    def default_unit(self, section: Section, expected: str) -> str | None:
        """Return the unit stated for a section that fits an entry of unit ``expected``; None where there is none."""
        for unit in self.units.get(section, ()):
            try:
                factor(unit, expected)
            except LogError:
                continue
            return unit
        return None


def read_map(path: Path, space: StateSpace) -> ColumnMap:
    """Read a mapping.

    Args:
        path: TOML file.
        space: State space of the model, whose names the mapping uses.

    Raises:
        LogError: naming file and key, and the names, keys or values that are allowed there.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise LogError(f"{path}: cannot be read ({e.strerror})") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise LogError(f"{path}: no valid TOML ({e})") from e
    return parse_map(table, space, str(path))


def parse_map(table: Mapping[str, Any], space: StateSpace, source: str = "mapping") -> ColumnMap:
    """Check a mapping that is already read.

    Args:
        table: As ``tomllib`` reads it.
        space: State space of the model.
        source: What messages call it.

    Raises:
        LogError: as ``read_map``.
    """
    _known(table, ("ignore", "time", "units", *SECTIONS), source)
    for key in ("time", "units", *SECTIONS):
        if not isinstance(table.get(key, {}), dict):
            raise LogError(f"{source}: {key}: expected a table [{key}], received {table[key]!r}")
    entries: dict[str, Entry] = {}
    for section in SECTIONS:
        entries |= _section(table.get(section, {}), section, space, source)
    ignore = table.get("ignore", [])
    if not isinstance(ignore, list) or not all(isinstance(p, str) for p in ignore):
        raise LogError(f"{source}: ignore: expected a list of column names or patterns, received {ignore!r}")
    return ColumnMap(source=source, entries=entries, units=_units(table.get("units", {}), space, source),
                     clock=_clock(table.get("time", {}), f"{source}: [time]"), ignore=tuple(ignore))


def _section(table: Mapping[str, Any], section: Section, space: StateSpace, source: str) -> dict[str, Entry]:
    names, groups = names_of(space, section), entry_groups(space, section)
    aliases = {q: v for q, v in velocity_of(space).items() if v in names} if section == "velocity" else {}
    found: dict[str, Entry] = {}
    single: dict[str, Mapping[str, Any]] = {}
    for name, value in _flattened(table, {*names, *groups, *aliases}):
        where = f"{source}: [{section}] {name}"
        if name not in names and name not in groups and name not in aliases:
            known = [*names, *aliases, *groups]
            raise LogError(f"{source}: [{section}]: the model has no {section} {name!r}{_meant(name, known)}; there are {', '.join(known)}")
        options: Mapping[str, Any] = _options(value, where)
        own = aliases.get(name, name)
        if own in names:
            if own in single:
                raise LogError(f"{where}: {own!r} is given twice")
            single[own] = options
        else:
            for member, entry in _members(groups[name], options, space, where):
                if member in found and found[member].column is not None and entry.column is not None:
                    raise LogError(f"{where}: {member!r} has column {found[member].column!r} already")
                found[member] = entry
    for name, options in single.items():  # last: one joint may differ from its group
        base = found.get(name, Entry())
        if "column" in options or "constant" in options:
            base = replace(base, column=None, place=None, length=0, constant=None)
        if "order" in options:
            raise LogError(f"{source}: [{section}] {name}: order is for a whole quaternion; expected one of {', '.join(groups)}")
        found[name] = replace(base, **options)
    for name, entry in found.items():
        if entry.unit is not None:
            _fitting(entry.unit, space.unit(name), f"{source}: [{section}] {name}")
    return found


def _members(members: Sequence[str], options: Mapping[str, Any], space: StateSpace, where: str) -> Iterator[tuple[str, Entry]]:
    """Every entry of a group with its element of the group's vector."""
    quaternions = quaternion_names(space)
    held = [q for q in quaternions if q[0] in members]
    plain = {k: v for k, v in options.items() if k != "order"}
    if "order" in options and not held:
        raise LogError(f"{where}: order: there is no quaternion in it")
    if held and "column" in options and "order" not in options:
        raise LogError(f'{where}: order of the quaternion is not stated: expected order = "wxyz" or "xyzw" (ROS logs x-y-z-w)')
    places = list(range(len(members)))
    for q in held:
        first = members.index(q[0])
        places[first : first + 4] = [first + k for k in _PLACES[options.get("order", "wxyz")]]
    for place, member in zip(places, members, strict=True):
        turning = any(member in q for q in held)  # unit and noise of a pose are those of its lengths
        kept = {k: v for k, v in plain.items() if not (turning and k in ("unit", "sign", "scale", "offset"))}
        yield member, Entry(**kept, place=place, length=len(members)) if "column" in options else Entry(**kept)


def _options(value: object, where: str) -> dict[str, Any]:
    if isinstance(value, str):
        return {"column": value}
    if _is_number(value):
        return {"constant": float(value)}  # type: ignore[arg-type]
    if not isinstance(value, dict):
        raise LogError(f"{where}: expected a column's name, a constant, or a table with {', '.join(ENTRY_KEYS)}; received {value!r}")
    _known(value, ENTRY_KEYS, where)
    if "column" in value and "constant" in value:
        raise LogError(f"{where}: expected column or constant, received both")
    return {key: _checked(key, x, where) for key, x in value.items()}


def _checked(key: str, value: Any, where: str) -> Any:
    wrong = {"column": (isinstance(value, str), "a column's name"), "unit": (isinstance(value, str), 'a unit such as "deg"'),
             "sign": (_is_number(value) and value in (1, -1), "1 or -1"),
             "scale": (_is_number(value) and math.isfinite(value) and value != 0, "a number other than zero"),
             "offset": (_is_number(value) and math.isfinite(value), "a number"),
             "constant": (_is_number(value) and math.isfinite(value), "a number"),
             "noise": (_is_number(value) and value > 0, "a positive number; inf for a column that only serves first states"),
             "delay": (_is_delay(value), "seconds that are known, or a pair [lower, upper] between which to estimate them"),
             "order": (isinstance(value, str) and value in _PLACES, '"wxyz" or "xyzw"')}
    good, expected = wrong[key]
    if not good:
        raise LogError(f"{where}: {key}: expected {expected}, received {value!r}")
    if key == "delay" and isinstance(value, list):
        return float(value[0]), float(value[1])
    return value if isinstance(value, str) else int(value) if key == "sign" else float(value)


def _units(table: Mapping[str, Any], space: StateSpace, source: str) -> dict[Section, list[str]]:
    where = f"{source}: [units]"
    _known(table, SECTIONS, where)
    units: dict[Section, list[str]] = {}
    for section in SECTIONS:
        stated = table.get(section, [])
        stated = [stated] if isinstance(stated, str) else stated
        if not isinstance(stated, list) or not all(isinstance(u, str) for u in stated):
            raise LogError(f"{where} {section}: expected a unit or a list of units, received {stated!r}")
        for unit in stated:
            expected = sorted({space.unit(n) for n in names_of(space, section)})
            if expected and not any(_fits(unit, e) for e in expected):
                _fitting(unit, expected[0], f"{where} {section}")
        units[section] = stated
    return units


def _clock(table: Mapping[str, Any], where: str) -> ClockOptions:
    _known(table, TIME_KEYS, where)
    column, rate = table.get("column"), table.get("rate")
    if column is not None and not isinstance(column, str):
        raise LogError(f"{where} column: expected a column's name, received {column!r}")
    if rate is not None and not _is_number(rate):
        raise LogError(f"{where} rate: expected samples per second, received {rate!r}")
    try:
        return ClockOptions(time=column, unit=table.get("unit"), rate=rate)
    except ValueError as e:
        raise LogError(f"{where} {e}") from e


def _flattened(table: Mapping[str, Any], names: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Read a name with dots that stood without quotes, which TOML takes for nested tables, as one name."""
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and not value.keys() & set(ENTRY_KEYS) and any(f"{name}.{k}" in names for k in value):
            yield from _flattened(value, names, f"{name}.")
        else:
            yield name, value


def _known(table: Mapping[str, Any], allowed: Sequence[str], where: str) -> None:
    for key in table:
        if key not in allowed:
            raise LogError(f"{where}: unknown key {key!r}{_meant(key, allowed)}; expected {', '.join(allowed)}")


def _meant(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _fitting(unit: str, expected: str, where: str) -> None:
    try:
        factor(unit, expected)
    except LogError as e:
        raise LogError(f"{where}: {e}") from e


def _fits(unit: str, expected: str) -> bool:
    try:
        factor(unit, expected)
    except LogError:
        return False
    return True


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_delay(value: object) -> bool:
    if isinstance(value, list):
        return len(value) == 2 and all(map(_is_number, value)) and 0 <= value[0] < value[1] < math.inf
    return _is_number(value) and 0 <= value < math.inf  # type: ignore[operator]

