"""Why a solve stopped."""

from __future__ import annotations

from enum import Enum, IntEnum


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


class PlanStatus(IntEnum):
    """Outcome of one element of a batch of plans; its actions are within the control limits whatever the outcome."""

    CONVERGED = 0
    """No step improves it by more than the tolerance."""
    IMPROVED = 1
    """Better than where it started; the planner's own number of iterations is done, as a real-time iteration's always is."""
    STALLED = 2
    """No better than where it started, though not converged."""
    DEADLINE = 3
    """The deadline came first; the best iterate until then."""
    INFEASIBLE = 4
    """State limits or inequalities are violated by more than the tolerance; the least cost found under a penalty."""
    FAILED = 5
    """The state, the model or the cost is not finite; actions are those it started from."""
