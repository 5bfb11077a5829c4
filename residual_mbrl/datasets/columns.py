"""Columns of a log table and the clock that they were sampled by."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from residual_mbrl.datasets.recording import FloatArray, Recording, Signal
from residual_mbrl.errors import LogError

TimeUnit = Literal["s", "ms", "us", "ns"]
TIME_NAMES = ("t", "time", "times", "timestamp", "timestamps", "time_stamp", "stamp", "elapsed", "elapsed_time", "seconds")
"""Names under which a column is taken for the time, whatever their case and leading underscores."""

SLOWEST_INTERVAL = 1.0
"""Median interval [s] from which on a clock without a unit is refused: milliseconds, or a count of samples, look like this."""

_PER_SECOND = {"s": 1.0, "sec": 1.0, "secs": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e3, "msec": 1e3, "millis": 1e3,
               "us": 1e6, "µs": 1e6, "μs": 1e6, "usec": 1e6, "micros": 1e6, "ns": 1e9, "nsec": 1e9, "nanos": 1e9}
_UNIT = re.compile(r"^(?P<name>.*\S)\s*(?:\[(?P<square>[^\[\]]+)\]|\((?P<round>[^()]+)\))$")
_TIME_SUFFIX = re.compile(r"_(s|sec|secs|ms|msec|us|usec|ns|nsec)$")
_ROUNDING = 0.05
_LISTED = 40


@dataclass(frozen=True, kw_only=True)
class ClockOptions:
    """What the user says about the time of a log that does not say it itself.

    Args:
        time: Name of the time column; found by its name (``TIME_NAMES``) where None.
        unit: Unit of the time column where the file states none; seconds where None.
        rate: Samples per second of a file that records no time [Hz].

    Raises:
        ValueError: if the unit is unknown or the rate is not positive.
    """

    time: str | None = None
    unit: TimeUnit | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        """Check unit and rate."""
        if self.unit is not None and self.unit not in get_args(TimeUnit):
            raise ValueError(f"time_unit: expected one of {list(get_args(TimeUnit))}, received {self.unit!r}")
        if self.rate is not None and not 0 < self.rate < np.inf:
            raise ValueError(f"rate: expected a positive number of samples per second, received {self.rate!r}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Column:
    """One column of a table.

    Args:
        name: Its name, without a unit.
        values: Shape [N].
        unit: Unit as the file states it.
        is_time: Whether the file's own type says that it holds points in time; the values are then in seconds.
    """

    name: str
    values: FloatArray
    unit: str | None = None
    is_time: bool = False


def is_time_name(name: str) -> bool:
    """Whether a column of this name is taken for the time."""
    plain = name.lower().lstrip("_#% ")
    return plain in TIME_NAMES or _TIME_SUFFIX.sub("", plain) in TIME_NAMES


def split_units(names: Sequence[str]) -> list[tuple[str, str | None]]:
    """Take the units off column names: ``q1 [rad]`` and ``q1 (rad)`` become ``q1`` in rad; ``q[0]`` keeps its index.

    Where names would coincide without their brackets, the brackets hold elements and stay (``state[pan]``, ``state[lift]``).
    """
    split: list[tuple[str, str | None]] = []
    for name in names:
        match = _UNIT.match(name.strip())
        unit = (match["square"] or match["round"]).strip() if match else None
        split.append((name.strip(), None) if match is None or not unit or unit.isdigit() else (match["name"].strip(), unit))
    count = Counter(name for name, _ in split)
    return [(whole.strip(), None) if unit and count[name] > 1 else (name, unit)
            for whole, (name, unit) in zip(names, split, strict=True)]


def columns_of(name: str, array: NDArray[Any], *, unit: str | None = None, elements: Sequence[str] | None = None) -> list[Column] | str:
    """Turn an array into columns, or say why it holds none.

    Args:
        name: Name of the array.
        array: Shape [N] or [N, k].
        unit: Unit of its values.
        elements: Names of the k elements, where the file gives them.

    Returns:
        One column, or one for each element (``name.element``, or ``name[0]`` without names); or the reason why there is none.
    """
    if array.dtype.kind == "M":
        seconds = (array - np.datetime64(0, "s")) / np.timedelta64(1, "s")
        return [Column(name=name, values=np.asarray(seconds, dtype=np.float64), unit="s", is_time=True)] if array.ndim == 1 else "dates"
    if array.dtype.kind == "m":
        return columns_of(name, array / np.timedelta64(1, "s"), unit="s", elements=elements)
    if array.dtype.kind not in "biuf":
        return "complex numbers" if array.dtype.kind == "c" else "no numbers"
    if array.ndim == 1:
        return [Column(name=name, values=array.astype(np.float64), unit=unit)]
    if array.ndim != 2:
        return f"{array.ndim} axes {list(array.shape)}"
    named = elements is not None and len(set(elements)) == len(elements) == array.shape[1]
    labels = [f".{e}" for e in elements or ()] if named else [f"[{i}]" for i in range(array.shape[1])]
    # one contiguous copy of each element: a view would keep the whole table alive and stride over it at every use
    return [Column(name=name + label, values=np.ascontiguousarray(v, dtype=np.float64), unit=unit)
            for label, v in zip(labels, array.T, strict=True)]


def find_time(path: Path, columns: Sequence[Column], options: ClockOptions) -> Column | None:
    """Return the time column in seconds, or None where there is none and a rate is given instead.

    Raises:
        LogError: naming the columns, if there is no time column and no rate, several, or one in an unknown unit.
    """
    if options.time is not None:
        chosen = [c for c in columns if c.name == options.time]
        if not chosen:
            raise LogError(f"{path}: no time column '{options.time}'; there are {_names(columns)}")
    else:
        chosen = [c for c in columns if c.is_time] or [c for c in columns if is_time_name(c.name)]
    if len(chosen) > 1:
        raise LogError(f"{path}: {_names(chosen)} may each be the time; say which (time='{chosen[0].name}')")
    if not chosen:
        if options.rate is not None:
            return None
        raise LogError(f"{path}: no time column among {_names(columns)}; name it (time='...'), or give the rate of a file without one "
                       "(rate=... in Hz)")
    return replace(chosen[0], values=_in_seconds(path, chosen[0], options), unit="s", is_time=True)


def make_recording(path: Path, columns: Sequence[Column], options: ClockOptions, *, name: str,
                   metadata: Mapping[str, object]) -> Recording:
    """Give every column its clock: its own (``q_t`` beside ``q``, ``t_raw`` beside ``q_raw``), or else the time column.

    Raises:
        LogError: for names that occur twice, columns of another length than their clock, or a rate that the clock contradicts.
    """
    check_names(path, [c.name for c in columns])
    by_name = {c.name: c for c in columns}
    owned = {c.name: by_name[clock] for c in columns if (clock := _own_clock(c, by_name)) is not None}
    own_clocks = {c.name: _in_seconds(path, c, options) for c in owned.values()}
    others = [c for c in columns if c.name not in owned and c.name not in own_clocks]
    main = find_time(path, others, options) if others else None
    shared = [c for c in others if main is None or c.name != main.name]
    if main is not None:
        _check_rate(path, main, options)
    _check_lengths(path, ([main] if main else []) + shared)
    time = main.values if main else np.arange(len(shared[0].values)) / options.rate if shared and options.rate else np.zeros(0)
    clocks = dict.fromkeys((c.name for c in shared), time)
    for owner, own in owned.items():
        _check_lengths(path, [own, by_name[owner]])
        clocks[owner] = own_clocks[own.name]
    signals = {c.name: Signal(name=c.name, time=clocks[c.name], values=c.values, unit=c.unit) for c in columns if c.name in clocks}
    return Recording(name=name, path=path, signals=signals, group=name, metadata=metadata)


def check_names(path: Path, names: Iterable[str]) -> None:
    """Refuse column names that occur twice.

    Raises:
        LogError: naming them.
    """
    twice = [n for n, k in Counter(names).items() if k > 1]
    if twice:
        raise LogError(f"{path}: column names occur more than once: {', '.join(map(repr, twice))}")


def _stated_unit(column: Column) -> str | None:
    if column.unit is not None:
        return column.unit
    suffix = _TIME_SUFFIX.search(column.name.lower())
    return suffix[1] if suffix and is_time_name(column.name) else None


def _in_seconds(path: Path, column: Column, options: ClockOptions) -> FloatArray:
    """Return stamps in seconds by the unit that the file states, or else the user; never by their size."""
    stated = _stated_unit(column)
    unit = stated or options.unit or "s"
    if unit.lower() not in _PER_SECOND:
        raise LogError(f"{path}: time column '{column.name}' is in '{unit}'; expected one of {list(get_args(TimeUnit))}")
    if not np.isfinite(column.values).all():
        row = int(np.flatnonzero(~np.isfinite(column.values))[0])
        raise LogError(f"{path}: time column '{column.name}' is {column.values[row]} at row {row}; expected a finite number")
    if stated is None and options.unit is None and len(column.values) > 1:
        interval = float(np.median(np.diff(column.values)))
        if interval >= SLOWEST_INTERVAL:
            raise LogError(f"{path}: time column '{column.name}' advances by {interval:g} a row and states no unit; give it "
                           "(time_unit='s', 'ms', 'us' or 'ns'), or the rate if these are sample counts (rate=... and another time=)")
    return column.values / _PER_SECOND[unit.lower()]


def _own_clock(column: Column, columns: Mapping[str, Column]) -> str | None:
    name = column.name.split("[")[0]
    for clock in (f"{name}_t", f"{name}_time"):
        if clock in columns:
            return clock
    stem, _, suffix = name.rpartition("_")
    for clock in (f"t_{suffix}", f"time_{suffix}") if stem and stem not in TIME_NAMES else ():
        if clock in columns and not is_time_name(clock) and len(columns[clock].values) == len(column.values):
            return clock
    return None


def _check_rate(path: Path, time: Column, options: ClockOptions) -> None:
    if options.rate is None or len(time.values) < 2:
        return
    interval = float(np.median(np.diff(time.values)))
    if abs(interval * options.rate - 1) > _ROUNDING:
        raise LogError(f"{path}: time column '{time.name}' runs at {1 / interval if interval else np.inf:.6g} Hz, the given rate is "
                       f"{options.rate:g} Hz; leave the rate out, or correct the time")


def _check_lengths(path: Path, columns: Sequence[Column]) -> None:
    lengths = dict.fromkeys(len(c.values) for c in columns)
    if len(lengths) > 1:
        told = "; ".join(f"{k} rows {_names([c for c in columns if len(c.values) == k])}" for k in lengths)
        raise LogError(f"{path}: columns differ in length: {told}; one of another length needs a clock of its own (q_t beside q)")


def _names(columns: Sequence[Column]) -> str:
    more = [f"{len(columns) - _LISTED} more"] if len(columns) > _LISTED else []
    return f"[{', '.join([c.name for c in columns[:_LISTED]] + more)}]"
