"""LeRobot data sets: Parquet files of several episodes (v3) or one each (v2), described by ``meta/info.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residual_mbrl.datasets.columns import ClockOptions, Column, columns_of, make_recording
from residual_mbrl.datasets.optional_modules import load_module
from residual_mbrl.datasets.parquet import load_table
from residual_mbrl.datasets.recording import Recording
from residual_mbrl.errors import LogError

BOOKKEEPING = ("index", "episode_index", "frame_index", "task_index")
"""Columns that count rows and are no signals."""

Arrays = dict[str, NDArray[Any]]


def find_dataset(path: Path) -> Path | None:
    """Return the LeRobot data set in whose ``data`` folder a path lies, by its ``meta/info.json``."""
    parents = list(path.resolve().parents)[:3]
    return next((p for p in parents if (p / "meta" / "info.json").is_file() and p / "data" in [path.resolve(), *parents]), None)


def read_lerobot(folder: Path, options: ClockOptions, *, files: Sequence[Path] | None = None) -> list[Recording]:
    """Read the episodes of a LeRobot data set: one recording each, elements of vectors by the names of ``meta/info.json``.

    Args:
        folder: The data set.
        options: A time column other than ``timestamp``, if any.
        files: Data files to read; all of them where None, and then every episode must be there.

    Raises:
        LogError: naming file and episode, if data or metadata are missing, incomplete, or contradict each other.
    """
    info = _read_info(folder)
    lengths, tasks = _read_episode_notes(folder)
    chosen = list(files) if files is not None else sorted((folder / "data").glob("*/*.parquet"))
    if not chosen:
        raise LogError(f"{folder}: no data/chunk-*/*.parquet; expected the data files of a LeRobot data set")
    skipped = {n: str(f.get("dtype")) for n, f in info["features"].items() if f.get("dtype") in {"video", "image"}}
    parts: dict[int, list[Arrays]] = {}
    sources: dict[int, Path] = {}
    for file in chosen:
        table = load_table(file)
        skipped |= table.skipped
        for name in ("episode_index", "frame_index"):
            if name not in table.arrays:
                raise LogError(f"{file}: no column '{name}'; expected a data file of a LeRobot data set, found {list(table.arrays)}")
        episodes = table.arrays["episode_index"].astype(np.int64)
        for episode in np.unique(episodes).tolist():
            rows = np.flatnonzero(episodes == episode)
            parts.setdefault(episode, []).append({n: a[rows] for n, a in table.arrays.items()})
            sources.setdefault(episode, file)
    recordings = []
    for episode in sorted(parts):
        arrays = _join(parts[episode])
        expected = lengths.get(episode)
        if files is None and expected is not None and expected != len(arrays["episode_index"]):
            raise LogError(f"{folder}: episode {episode} has {len(arrays['episode_index'])} rows in {sources[episode].name}, "
                           f"meta/episodes tells of {expected}")
        metadata = {"episode": episode, "tasks": tasks.get(episode, []), "rate": info["fps"], "robot_type": info.get("robot_type"),
                    "codebase_version": info.get("codebase_version"), "skipped": skipped}
        recordings.append(make_recording(sources[episode], _columns(arrays, info, skipped), _clock(arrays, info, options),
                                         name=f"{folder.resolve().name}-episode_{episode}", metadata=metadata))
    total = info.get("total_episodes")
    if files is None and total is not None and total != len(recordings):
        raise LogError(f"{folder}: meta/info.json tells of {total} episodes, the data files hold {len(recordings)} (download incomplete?); "
                       "give single data files to read a part")
    return recordings


def _read_info(folder: Path) -> dict[str, Any]:
    path = folder / "meta" / "info.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise LogError(f"{path}: not readable as JSON ({e})") from e
    features, fps = (info.get("features"), info.get("fps")) if isinstance(info, dict) else (None, None)
    if not isinstance(features, dict) or not all(isinstance(f, dict) for f in features.values()):
        raise LogError(f"{path}: no 'features'; expected the description of a LeRobot data set")
    if not isinstance(fps, int | float) or not fps > 0:
        raise LogError(f"{path}: 'fps' is {fps!r}; expected the frames per second")
    return dict(info)


def _read_episode_notes(folder: Path) -> tuple[dict[int, int], dict[int, list[str]]]:
    """Return the length and the tasks of each episode: Parquet since v3, lines of JSON before."""
    lines: list[dict[str, Any]] = []
    old = folder / "meta" / "episodes.jsonl"
    try:
        if old.is_file():
            lines = [json.loads(line) for line in old.read_text(encoding="utf-8").splitlines() if line.strip()]
        for file in sorted((folder / "meta" / "episodes").glob("*/*.parquet")):
            arrow, parquet = load_module("pyarrow", file), load_module("pyarrow.parquet", file)
            try:
                with parquet.ParquetFile(file) as notes:
                    # statistics of every feature stand beside these and are far larger
                    lines += notes.read(columns=["episode_index", "length", "tasks"]).to_pylist()
            except (arrow.ArrowException, OSError) as e:
                raise LogError(f"{file}: not a readable Parquet file, cut off or damaged ({e})") from e
        return ({int(x["episode_index"]): int(x["length"]) for x in lines if "length" in x},
                {int(x["episode_index"]): list(x.get("tasks") or []) for x in lines})
    except (KeyError, TypeError, ValueError) as e:
        if isinstance(e, LogError):
            raise
        raise LogError(f"{folder}: the episodes under meta/ are not those of a LeRobot data set ({e!r})") from e


def _join(parts: Sequence[Arrays]) -> Arrays:
    """Put the rows of one episode in order, from one file or several."""
    common = [n for n in parts[0] if all(n in p for p in parts)]
    order = np.argsort(np.concatenate([p["frame_index"] for p in parts]), kind="stable")
    return {n: np.concatenate([p[n] for p in parts])[order] for n in common}


def _columns(arrays: Mapping[str, NDArray[Any]], info: Mapping[str, Any], skipped: dict[str, str]) -> list[Column]:
    columns: list[Column] = []
    for name, array in arrays.items():
        if name in BOOKKEEPING:
            continue
        feature = info["features"].get(name, {})
        unit = feature.get("unit")
        elements = _element_names(feature.get("names"))
        found = columns_of(name, array, unit=unit if isinstance(unit, str) else None, elements=elements)
        if isinstance(found, str):
            skipped[name] = found
        else:
            columns += found
    return columns


def _element_names(names: object) -> list[str] | None:
    """Return the names of a vector's elements: a list, or lists under headings (``{"motors": [...]}``)."""
    if isinstance(names, dict):
        if names and all(isinstance(k, int) for k in names.values()):
            return [str(n) for n, _ in sorted(names.items(), key=lambda item: int(item[1]))]
        names = [n for part in names.values() if isinstance(part, list) for n in part]
    return [str(n) for n in names] if isinstance(names, list) and names else None


def _clock(arrays: Mapping[str, NDArray[Any]], info: Mapping[str, Any], options: ClockOptions) -> ClockOptions:
    """Take the data set's ``timestamp``, in seconds by definition of the format, or else its frame rate."""
    if options.time is not None:
        return options
    return ClockOptions(time="timestamp", unit="s") if "timestamp" in arrays else ClockOptions(rate=options.rate or float(info["fps"]))
