"""MuJoCo's own warnings, kept off the terminal and out of ``MUJOCO_LOG.TXT``.

Those of running worlds are counted for each world, and its status tells them; those of the compiler are handed to its caller. A
handler that the user has installed stays and hears everything.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import mujoco

_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
_lock = threading.Lock()
_said = threading.local()


class _Handler:
    """Context in which a handler is installed, unless there is another one; several threads may be inside."""

    inside = 0
    """How many threads are in any of these contexts."""
    ours = False

    def __init__(self, function: object) -> None:
        self._function = function

    def __enter__(self) -> None:
        with _lock:
            if _Handler.inside == 0 and mujoco.get_mju_user_warning() is None:
                mujoco.set_mju_user_warning(self._function)
                _Handler.ours = True
            _Handler.inside += 1

    def __exit__(self, *_: object) -> None:
        with _lock:
            _Handler.inside -= 1
            if _Handler.inside == 0 and _Handler.ours:
                mujoco.set_mju_user_warning(None)
                _Handler.ours = False


# Worlds run on the engine's own threads, whose handler must be a C function that needs no interpreter lock: this one reads a flag.
QUIET = _Handler(_HANDLER(ctypes.cast(ctypes.pythonapi.Py_IsInitialized, ctypes.c_void_p).value or 0))
"""Context in which nothing is said."""


def _hear(message: bytes) -> None:
    getattr(_said, "messages", []).append(message.decode(errors="replace"))


_HEARING = _Handler(_HANDLER(_hear))


@contextmanager
def heard() -> Iterator[list[str]]:
    """Collect what the engine says on this thread."""
    _said.messages = []
    with _HEARING:
        yield _said.messages
