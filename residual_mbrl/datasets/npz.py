"""Logs in NumPy's npz files: arrays [N] and [N, k] with a time array; scalars and texts are metadata."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residual_mbrl.datasets.columns import ClockOptions, Column, columns_of, make_recording
from residual_mbrl.datasets.recording import Recording
from residual_mbrl.errors import LogError


def read_npz(path: Path, options: ClockOptions) -> list[Recording]:
    """Read one npz file as one recording.

    Raises:
        LogError: naming the file and the array, if it is unreadable, pickled, of another length, or there is no time.
    """
    columns: list[Column] = []
    metadata: dict[str, object] = {}
    skipped: dict[str, str] = {}
    for name, array in _load(path).items():
        if array.ndim == 0 or array.dtype.kind in "SU":
            metadata[name] = array.tolist()
            continue
        found = columns_of(name, array)
        if isinstance(found, str):
            skipped[name] = found
        else:
            columns += found
    return [make_recording(path, columns, options, name=path.stem, metadata=metadata | {"skipped": skipped})]


def _load(path: Path) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    name = ""
    try:
        # through memory: numpy leaves the file open where it turns out to be no archive
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            for name in file.files:
                array = file[name]
                if not isinstance(array, np.ndarray):
                    raise LogError(f"{path}: '{name}' is no NumPy array; expected an archive written by numpy.savez")
                arrays[name] = array
    except ValueError as e:
        if isinstance(e, LogError):
            raise
        why = "holds Python objects (pickle), which are not read: save it as numbers" if "pickle" in str(e) else f"is damaged ({e})"
        raise LogError(f"{path}: array '{name}' {why}") from e
    except (OSError, TypeError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as e:
        raise LogError(f"{path}: not a readable npz file, cut off or damaged{f' at array {name!r}' if name else ''} ({e})") from e
    if not arrays:
        raise LogError(f"{path}: no arrays in it; expected a time array and signals")
    return arrays
