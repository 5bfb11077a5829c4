"""Why a solve stopped."""

from __future__ import annotations

from enum import Enum


class Status(Enum):
    """Outcome of an iterative solve; numerical failure is a status, never an exception."""

    CONVERGED = "converged"
    ITERATION_LIMIT = "stopped at the iteration limit"
    DIVERGED = "no finite simulation found"
    INTERRUPTED = "interrupted; resume to go on"
