"""Logs in HDF5: Minari (``episode_0/observations``), robomimic (``data/demo_0/obs``), or arrays at the root of the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residual_mbrl.datasets.columns import ClockOptions, Column, columns_of, make_recording
from residual_mbrl.datasets.optional_modules import load_module
from residual_mbrl.datasets.recording import FloatArray, Recording, Signal
from residual_mbrl.errors import LogError

_TREE_LINES = 20


@dataclass(frozen=True, kw_only=True)
class Episode:
    """Arrays of one episode, whose rows are steps.

    Args:
        name: Name of its group.
        arrays: Arrays by their path inside it; those of observations may have one row more than those of actions.
        units: Units that data sets state as an attribute.
        metadata: Attributes of its group.
        skipped: Data sets that are not read, and why.
    """

    name: str
    arrays: Mapping[str, NDArray[Any]]
    units: Mapping[str, str]
    metadata: Mapping[str, object]
    skipped: Mapping[str, str]


def read_hdf5(path: Path, options: ClockOptions) -> list[Recording]:
    """Read the episodes of a Minari or robomimic file, or the arrays of a plain one.

    Minari records no time and no rate, so the rate must be given; robomimic has ``control_freq`` in its ``env_args``. A time array
    inside the episode is taken where ``options.time`` names it.

    Raises:
        LogError: naming file and data set; for another layout it shows the file's tree.
    """
    h5py = load_module("h5py", path)
    try:
        with h5py.File(path, "r") as file:
            if any(_number(n, "episode_") is not None for n in file):
                return _read_minari(path, h5py, file, options)
            if isinstance(file.get("data"), h5py.Group) and any(_number(n, "demo_") is not None for n in file["data"]):
                return _read_robomimic(path, h5py, file, options)
            if "observations" in file and ("terminals" in file or "timeouts" in file):
                raise LogError(f"{path}: is in D4RL's layout, which joins its episodes; use the Minari edition of this data set")
            root = _read_group(h5py, file, [n for n in file if isinstance(file[n], h5py.Dataset)])
            if root.arrays:
                return [_read_plain(path, root, options)]
            raise LogError(f"{path}: neither Minari (episode_0/observations), robomimic (data/demo_0/obs) nor arrays at the root; "
                           f"it holds {_tree(h5py, file)}")
    except LogError:
        raise
    except Exception as e:  # a damaged block shows as almost any of h5py's errors
        raise LogError(f"{path}: not a readable HDF5 file, cut off or damaged ({type(e).__name__}: {e})") from e


def _read_minari(path: Path, h5py: Any, file: Any, options: ClockOptions) -> list[Recording]:
    common = _attributes(file)
    beside = path.parent / "metadata.json"
    if beside.is_file():
        try:
            common |= json.loads(beside.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError) as e:
            raise LogError(f"{beside}: not readable as JSON ({e})") from e
    where = path.resolve()
    stem = path.stem if path.stem != "main_data" else where.parents[1].name if where.parent.name == "data" else where.parent.name
    names = _in_order(file, "episode_")
    asked = f"Minari records no time (environment {_environment(common)}); give the rate of its steps (rate=... in Hz)"
    return [_episode(path, stem, _read_group(h5py, file[n], list(file[n]), name=n), common, options.rate, asked, options)
            for n in names]


def _read_robomimic(path: Path, h5py: Any, file: Any, options: ClockOptions) -> list[Recording]:
    data = file["data"]
    common = _attributes(data)
    rate = options.rate
    stated = common.get("env_args")
    frequency = _lookup(stated, "env_kwargs", "control_freq") or _lookup(stated, "control_freq")
    if isinstance(frequency, int | float) and frequency > 0:
        if rate is not None and abs(rate / frequency - 1) > 1e-3:
            raise LogError(f"{path}: control_freq in env_args is {frequency:g} Hz, the given rate {rate:g} Hz; leave the rate out")
        rate = float(frequency)
    asked = "no control_freq in the attribute env_args of data; give the rate (rate=... in Hz)"
    # next_obs repeats obs one step later
    return [_episode(path, path.stem, _read_group(h5py, data[n], [k for k in data[n] if k != "next_obs"], name=n), common, rate, asked,
                     options) for n in _in_order(data, "demo_")]


def _read_plain(path: Path, root: Episode, options: ClockOptions) -> Recording:
    skipped = dict(root.skipped)
    columns = _columns(root, skipped)
    return make_recording(path, columns, options, name=path.stem, metadata=dict(root.metadata) | {"skipped": skipped})


def _episode(path: Path, stem: str, episode: Episode, common: Mapping[str, object], rate: float | None, asked: str,
             options: ClockOptions) -> Recording:
    """Give the rows of an episode their times: row k at k / rate, for H actions and H + 1 observations alike."""
    skipped = dict(episode.skipped)
    columns = _columns(episode, skipped)
    metadata = {**common, **episode.metadata, "skipped": skipped}
    name = f"{stem}-{episode.name}"
    if options.time is not None and options.time in [c.name for c in columns]:
        clock = next(c for c in columns if c.name == options.time)
        time = make_recording(path, [clock, Column(name="row", values=clock.values)],
                              ClockOptions(time=clock.name, unit=options.unit), name=name, metadata={}).signals["row"].time
        columns = [c for c in columns if c is not clock]
    elif options.time is not None:
        raise LogError(f"{path}: {episode.name} has no array '{options.time}' for the time; there are {[c.name for c in columns]}")
    elif rate is None:
        raise LogError(f"{path}: {asked}")
    else:
        time = np.arange(max((len(c.values) for c in columns), default=0)) / rate
        metadata["rate"] = rate
    return Recording(name=name, path=path, group=name, metadata=metadata,
                     signals={c.name: _signal(path, episode.name, c, time, columns) for c in columns})


def _signal(path: Path, episode: str, column: Column, time: FloatArray, columns: Sequence[Column]) -> Signal:
    rows = len(column.values)
    if not len(time) - 1 <= rows <= len(time):
        raise LogError(f"{path}: {episode}/{column.name} has {rows} rows where others have {max(len(c.values) for c in columns)}; expected "
                       "as many, or one fewer (actions)")
    return Signal(name=column.name, time=time[:rows] if rows < len(time) else time, values=column.values, unit=column.unit)


def _columns(episode: Episode, skipped: dict[str, str]) -> list[Column]:
    columns: list[Column] = []
    for name, array in episode.arrays.items():
        found = columns_of(name, array, unit=episode.units.get(name))
        if isinstance(found, str):
            skipped[name] = found
        else:
            columns += found
    return columns


def _read_group(h5py: Any, group: Any, members: Sequence[str], name: str = "") -> Episode:
    arrays: dict[str, NDArray[Any]] = {}
    units: dict[str, str] = {}
    skipped: dict[str, str] = {}
    metadata = _attributes(group)
    for member in members:
        for path, dataset in _datasets(h5py, group[member], member):
            if dataset.dtype.kind not in "biuf":
                skipped[path] = "text"
            elif dataset.ndim > 2:
                skipped[path] = f"{dataset.ndim} axes {list(dataset.shape)}"  # pictures: not read from the disk
            elif dataset.ndim == 0:
                metadata[path] = dataset[()].item()
            else:
                arrays[path] = dataset[()]
                unit = _decode(dataset.attrs.get("unit", dataset.attrs.get("units")))
                if isinstance(unit, str):
                    units[path] = unit
    return Episode(name=name, arrays=arrays, units=units, metadata=metadata, skipped=skipped)


def _datasets(h5py: Any, node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, h5py.Dataset):
        yield path, node
        return
    for name in node:
        # Minari writes the parts of a tuple space as _index_0, _index_1
        yield from _datasets(h5py, node[name], f"{path}/{name}")


def _attributes(group: Any) -> dict[str, object]:
    """Return the attributes that are short enough to be metadata; a robot's whole MJCF is not."""
    decoded = {str(n): _decode(v) for n, v in group.attrs.items() if n != "model_file"}
    return {n: v for n, v in decoded.items() if v is not None}


def _decode(value: object) -> object:
    """Return plain Python for what h5py gives: numbers, texts, and JSON inside texts."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str) and value[:1] in {"{", "["}:
        try:
            return json.loads(value)
        except ValueError:
            return value
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist() if value.dtype.kind in "biufU" else None
    return value if isinstance(value, str | int | float | bool | dict | list) else None


def _lookup(value: object, *keys: str) -> object:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _environment(metadata: Mapping[str, object]) -> object:
    return _lookup(_decode(metadata.get("env_spec")), "id") or "unknown"


def _number(name: str, prefix: str) -> int | None:
    match = re.fullmatch(rf"{prefix}(\d+)", name)
    return int(match[1]) if match else None


def _in_order(group: Any, prefix: str) -> list[str]:
    return sorted((n for n in group if _number(n, prefix) is not None), key=lambda n: _number(n, prefix) or 0)


def _tree(h5py: Any, file: Any) -> str:
    lines: list[str] = []
    file.visititems(lambda n, node: lines.append(f"{n} {list(node.shape)}" if isinstance(node, h5py.Dataset) else f"{n}/"))
    more = [f"{len(lines) - _TREE_LINES} more"] if len(lines) > _TREE_LINES else []
    return ", ".join(lines[:_TREE_LINES] + more) or "nothing"
