"""Why a solve stopped."""

from __future__ import annotations

from enum import Enum


class Status(Enum):
    """Outcome of an iterative solve; numerical failure is a status, never an exception."""

    CONVERGED = "converged"
    ITERATION_LIMIT = "stopped at the iteration limit"
    DIVERGED = "no finite simulation found"
    INTERRUPTED = "interrupted; resume to go on"


class StepStatus(Enum):
    """Outcome of one world's step in a batch: a world that failed is not a number from there on, and the batch goes on."""

    OK = "stepped"
    NOT_FINITE = "not finite"
    RAISED = "raised an exception"
    REJECTED = "returned what is no state"
    CRASHED = "ended its process"
    TIMED_OUT = "took longer than allowed"
