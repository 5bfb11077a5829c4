"""Files that are whole or absent: everything the package writes goes to a temporary name first and is renamed at the end."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from residual_mbrl.errors import OutputError

_NON_FINITE = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
_WRITE_FAILURES = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file that readers see whole or not at all, through a crash or a full disk; an older file stays until then.

    Raises:
        OutputError: naming the file and the reason; no temporary file remains.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _output_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; see ``write_bytes``."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically; see ``write_bytes`` and ``dump_json``."""
    write_text(path, dump_json(value) + "\n")


def dump_json(value: object, *, indent: int | None = 2) -> str:
    """Return strict JSON that keeps float64 exactly; infinities and NaN become the strings "Infinity", "-Infinity", "NaN"."""
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def load_json(text: str | bytes) -> object:
    """Return what ``dump_json`` was given, non-finite numbers included.

    Raises:
        ValueError: if the text is no JSON.
    """
    return _restored(json.loads(text))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def progress_folder(path: Path) -> Path:
    """Return the folder beside an output in which an unfinished run keeps its checkpoints."""
    path = Path(path).resolve()
    return path.with_name(f".{path.name}.progress")


@contextmanager
def folder(path: Path, *, replaces: Collection[str] = ()) -> Iterator[Path]:
    """Build a folder under a temporary name beside its own and rename it at the end; on any failure nothing remains of it.

    A folder that is there already is replaced after the new one is complete, and only if it holds nothing but ``replaces``,
    so that a mistyped output never deletes somebody's files. A process killed between the two renames of a replacement
    leaves both folders whole under their temporary names.

    Args:
        path: The folder to make.
        replaces: Names of entries that an older output may hold.

    Yields:
        The temporary folder to write into.

    Raises:
        OutputError: naming the folder and the reason, before anything is built where that can be known.
    """
    path = Path(path).resolve()
    _check_replaceable(path, replaces)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        raise _output_error(path, error) from error
    try:
        yield temporary
        _check_replaceable(path, replaces)
        _swap(temporary, path)
    except OSError as error:
        # a log that cannot be read is no fault of the output
        about_output = error.errno in _WRITE_FAILURES or str(error.filename).startswith((str(temporary), str(path)))
        if isinstance(error, OutputError) or not about_output:
            raise
        raise _output_error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a folder against other processes that would hold it too; a process that ends, however it does, lets go.

    Args:
        path: The folder; made where it is missing. A file ``.lock`` stays in it.

    Raises:
        BlockingIOError: if it is held already.
        OutputError: if the folder cannot be written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / ".lock").open("ab")
    except OSError as error:
        raise _output_error(path, error) from error
    with file:
        if not _lock(file.fileno()):
            raise BlockingIOError(errno.EAGAIN, "another process works in this folder", str(path))
        yield


def _lock(descriptor: int) -> bool:
    """Lock an open file for this process; return whether nobody else had."""
    if sys.platform == "win32":
        import msvcrt  # noqa: PLC0415  # there is no other

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl  # noqa: PLC0415  # not on Windows

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _swap(new: Path, path: Path) -> None:
    """Put a complete folder in place of an older one, which comes back if that fails."""
    old = _temporary(path)
    if path.exists():
        path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        if old.exists():
            old.rename(path)
        raise
    _sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _check_replaceable(path: Path, replaces: Collection[str]) -> None:
    try:
        others = sorted(p.name for p in path.iterdir() if p.name not in replaces)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _output_error(path, error) from error
    if others:
        raise OutputError(f"{path}: holds {others[0]!r}, which is no part of this output, so the folder is not replaced; choose another")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def _sync_folder(path: Path) -> None:
    """Make a rename durable where the system can; the file is whole either way."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _output_error(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: could not be written: {error.strerror or error}; nothing half-written was left")


def _plain(value: object) -> object:
    """Turn mappings, sequences and numpy values into what JSON holds."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return str(value) if isinstance(value, Path) else value


def _restored(value: object) -> object:
    if isinstance(value, dict):
        return {k: _restored(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_restored(v) for v in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value
