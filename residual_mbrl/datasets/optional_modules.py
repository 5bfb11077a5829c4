"""Packages that only some log formats need, imported when such a log is read."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

from residual_mbrl.errors import LogError


def load_module(name: str, path: Path) -> ModuleType:
    """Import a package that reading ``path`` needs.

    Raises:
        LogError: naming the file, the package and how to install it.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as e:
        raise LogError(f"{path}: reading {path.suffix or 'this'} files needs the package '{e.name}': "
                       "pip install 'residual-mbrl[logs]'") from e
