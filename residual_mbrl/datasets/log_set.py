"""Logs sorted into the parts of a split."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from residual_mbrl.errors import LogError
from residual_mbrl.files import sha256
from residual_mbrl.trajectories import Trajectory

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class LogSet:
    """Logs of one part or several, and where each begins to be scored.

    Args:
        logs: The logs of each part.
        starts: Grid rows at which windows start, for each log of a part; missing parts are cut by stride.
        files: Files they came from.
        whole: The same training and validation data uncut, for the final fit, where ``logs`` are blocks of one record.
        whole_starts: Grid rows at which windows of ``whole`` start.
    """

    logs: Mapping[Part, Sequence[Trajectory]]
    starts: Mapping[Part, Sequence[Sequence[int]]]
    files: Sequence[Path]
    whole: Sequence[Trajectory] = ()
    whole_starts: Sequence[Sequence[int]] = ()

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of every file by its name."""
        return {f.name: sha256(f) for f in self.files}


def open_arrays(path: Path, expected: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Read named arrays of an npz file.

    Raises:
        LogError: if the file is missing, unreadable, or lacks an array; names what is there.
    """
    if not path.is_file():
        raise LogError(f"{path}: no such file")
    try:
        # through memory: numpy leaves the file open where it turns out to be no archive
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            missing = [n for n in expected if n not in file.files]
            if missing:
                raise LogError(f"{path}: no array {missing}; there are {sorted(file.files)}")
            return {n: file[n] for n in expected}
    except LogError:
        raise
    except (OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as e:
        raise LogError(f"{path}: not a readable npz file ({e})") from e


def check_lengths(path: Path, arrays: Mapping[str, NDArray[np.float64]]) -> None:
    """Refuse arrays that do not have one row for each time stamp.

    Raises:
        LogError: naming the length of each.
    """
    lengths = {n: len(a) if a.ndim else 1 for n, a in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise LogError(f"{path}: arrays differ in length, {', '.join(f'{n} {k}' for n, k in lengths.items())}")


def read_split(folder: Path) -> dict[str, object]:
    """Read ``split.json`` of a data folder.

    Raises:
        LogError: if it is missing or no JSON object.
    """
    path = folder / "split.json"
    if not path.is_file():
        raise LogError(f"{folder}: no split.json, which says which data train and which test")
    try:
        split = json.loads(path.read_text())
    except json.JSONDecodeError as e:
        raise LogError(f"{path}: no valid JSON ({e})") from e
    if not isinstance(split, dict):
        raise LogError(f"{path}: expected an object with the parts of the split, received {type(split).__name__}")
    return split
