"""Where plans are computed: beside the loop, so that a slow one never holds it up."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Protocol

Job = Callable[[], Any]


class Clock(Protocol):
    """Seconds from any fixed moment; ``time.perf_counter`` is one."""

    def __call__(self) -> float:
        """Return the time now [s]."""


class Finished(NamedTuple):
    """What came of a job."""

    value: Any
    """What it returned; None if it raised."""
    error: Exception | None
    seconds: float
    """How long it took."""


class Worker(ABC):
    """Does one job at a time."""

    busy: bool = False
    """Whether a job is being done, or its result has not been fetched."""

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Start a job; only when not busy."""

    @abstractmethod
    def fetch(self, until: float) -> Finished | None:
        """Return the result once it is there, waiting until a time of the clock at most; None if it is not there by then."""

    def close(self) -> None:  # noqa: B027  # most have nothing to stop
        """Stop working."""


class Inline(Worker):
    """Does jobs in the calling thread: the loop waits for them however long they take.

    Args:
        clock: What to measure by.
    """

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self._finished: Finished | None = None

    def submit(self, job: Job) -> None:
        """Do the job."""
        self.busy, self._finished = True, finish(job, self._clock)

    def fetch(self, until: float) -> Finished | None:
        """Return the result."""
        found, self._finished, self.busy = self._finished, None, False
        return found


class Background(Worker):
    """Does jobs in a thread of its own; compiled rollouts run there without holding up the interpreter.

    Args:
        clock: What ``until`` is a time of.
    """

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._results: SimpleQueue[Finished] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, job: Job) -> None:
        """Hand the job to the thread, which is started with the first one."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="planning", daemon=True)
            self._thread.start()
        self.busy = True
        self._jobs.put(job)

    def fetch(self, until: float) -> Finished | None:
        """Return the result once it is there."""
        try:
            found = self._results.get(timeout=max(0.0, until - self._clock()))
        except Empty:
            return None
        self.busy = False
        return found

    def close(self) -> None:
        """End the thread after its present job."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread = None

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._results.put(finish(job, self._clock))


def finish(job: Job, clock: Clock) -> Finished:
    """Do a job and measure it; what it raises is part of the result."""
    begun = clock()
    try:
        value, error = job(), None
    except Exception as raised:  # the loop must go on whatever a planner does
        value, error = None, raised
    return Finished(value, error, clock() - begun)
