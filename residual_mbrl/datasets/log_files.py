"""Robot logs of any known format, told apart by the file's suffix and checked against its first bytes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from residual_mbrl.datasets.columns import ClockOptions, TimeUnit
from residual_mbrl.datasets.csv_table import read_csv
from residual_mbrl.datasets.hdf5 import read_hdf5
from residual_mbrl.datasets.lerobot_set import find_dataset, read_lerobot
from residual_mbrl.datasets.mcap_log import read_mcap
from residual_mbrl.datasets.npz import read_npz
from residual_mbrl.datasets.parquet import read_parquet
from residual_mbrl.datasets.recording import Recording
from residual_mbrl.errors import LogError


@dataclass(frozen=True, kw_only=True)
class Format:
    """One file format.

    Args:
        name: What users call it.
        suffixes: How its files end.
        magic: The bytes they begin with; empty where any text will do.
        read: Its reader.
    """

    name: str
    suffixes: tuple[str, ...]
    magic: bytes
    read: Callable[[Path, ClockOptions], list[Recording]]


FORMATS = (
    Format(name="NumPy npz", suffixes=(".npz",), magic=b"PK\x03\x04", read=read_npz),
    Format(name="CSV", suffixes=(".csv", ".tsv"), magic=b"", read=read_csv),
    Format(name="Parquet", suffixes=(".parquet", ".pq"), magic=b"PAR1", read=read_parquet),
    Format(name="HDF5", suffixes=(".h5", ".hdf5", ".hdf"), magic=b"\x89HDF\r\n\x1a\n", read=read_hdf5),
    Format(name="MCAP", suffixes=(".mcap",), magic=b"\x89MCAP0\r\n", read=read_mcap),
)

_CONVERT: Mapping[str, str] = {
    ".bag": "convert ROS 1 bags with `mcap convert`", ".db3": "convert ROS 2 bags of SQLite with `ros2 bag convert`",
    ".npy": "save time and signals together with numpy.savez",
    ".pkl": "pickled files are not read", ".pickle": "pickled files are not read",
    ".mat": "save it as HDF5 or CSV", ".xlsx": "save it as CSV", ".jsonl": "save it as CSV or Parquet", ".gz": "decompress it",
    ".zip": "decompress it",
}


def read_recordings(paths: Sequence[Path | str] | Path | str, *, time: str | None = None, time_unit: TimeUnit | None = None,
                    rate: float | None = None) -> list[Recording]:
    """Read logs: one recording a run, several where a file or a data set holds several episodes.

    Args:
        paths: npz, CSV, Parquet, HDF5 (Minari, robomimic) or MCAP files; or folders of a LeRobot or Minari data set or a ROS 2 bag.
        time: Name of the time column, where it has none of the usual names (``t``, ``time``, ``timestamp``, ...); for MCAP
            ``log_time`` takes the recorder's clock in place of the stamps in the messages.
        time_unit: Unit of a time column that states none; seconds by default, and refused where that makes a log slower than 1 Hz.
        rate: Samples per second of files that record no time [Hz].

    Returns:
        Recordings in the order of the paths and of the episodes inside; their names differ.

    Raises:
        LogError: naming the file, what is wrong with it and what was expected.
        ValueError: for a rate or unit that makes no sense, or no paths.
    """
    options = ClockOptions(time=time, unit=time_unit, rate=rate)
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(p) for p in paths]
    if not files:
        raise ValueError("paths: expected at least one log file, received none")
    twice = [str(p) for p, k in Counter(p.resolve() for p in files).items() if k > 1]
    if twice:
        raise LogError(f"{twice[0]}: given more than once; its samples would count twice")
    return _name_apart([recording for file in files for recording in _read(file, options)])


def _read(path: Path, options: ClockOptions) -> list[Recording]:
    if path.is_dir():
        return _read_folder(path, options)
    if not path.exists():
        raise LogError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            start = file.read(max(len(f.magic) for f in FORMATS))
    except OSError as e:
        raise LogError(f"{path}: cannot be read ({e.strerror})") from e
    if not start:
        raise LogError(f"{path}: the file is empty")
    held = next((f for f in FORMATS if f.magic and start.startswith(f.magic)), None)
    named = next((f for f in FORMATS if path.suffix.lower() in f.suffixes), None)
    if named is None:
        hint = f"; it holds {held.name}: rename it to {held.suffixes[0]}" if held else f"; {_CONVERT[path.suffix.lower()]}" \
            if path.suffix.lower() in _CONVERT else ""
        raise LogError(f"{path}: unknown format '{path.suffix}'; expected {_known()}{hint}")
    if held is not named and (held or named.magic):
        found = f"holds {held.name}: rename it to {held.suffixes[0]}" if held else f"does not begin as one (first bytes {start!r})"
        raise LogError(f"{path}: is named as a {named.name} file but {found}")
    if named.name == "Parquet" and (dataset := find_dataset(path)) is not None:
        return read_lerobot(dataset, options, files=[path])
    return named.read(path, options)


def _read_folder(path: Path, options: ClockOptions) -> list[Recording]:
    if (path / "meta" / "info.json").is_file():
        return read_lerobot(path, options)
    for minari in (path / "data" / "main_data.hdf5", path / "main_data.hdf5"):
        if minari.is_file():
            return _read(minari, options)
    bags = sorted(path.glob("*.mcap"))
    if bags:
        return [recording for bag in bags for recording in _read(bag, options)]
    raise LogError(f"{path}: is a folder, but no LeRobot (meta/info.json) or Minari (data/main_data.hdf5) data set and no ROS 2 bag "
                   f"(*.mcap); give the files themselves: {_known()}")


def _known() -> str:
    return ", ".join(f"{f.name} ({', '.join(f.suffixes)})" for f in FORMATS)


def _name_apart(recordings: Sequence[Recording]) -> list[Recording]:
    """Put as much of the path as is needed before names that would coincide, such as two files ``run.csv``."""
    count = Counter(r.name for r in recordings)
    clashing = [r for r in recordings if count[r.name] > 1]
    if not clashing:
        return list(recordings)
    above = Path(os.path.commonpath([r.path.resolve().parent for r in clashing]))

    def rename(recording: Recording) -> Recording:
        if count[recording.name] == 1:
            return recording
        place = recording.path.resolve().relative_to(above)
        name = "-".join([*place.parts, *([] if recording.name == recording.path.stem else [recording.name])])
        return replace(recording, name=name, group=name)

    return [rename(r) for r in recordings]
