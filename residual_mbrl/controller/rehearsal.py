"""A loop on simulated time: real computations, counted against the deadline, at whatever speed the computer has or is said to have."""

from __future__ import annotations

import time

from residual_mbrl.controller.worker import Clock, Finished, Job, Worker, finish


class SimulatedTime:
    """A clock that goes on with another one, and can be moved: over a wait, back over work that is done elsewhere, to the next tick.

    Args:
        source: What passes by itself: the thread's seconds of CPU, which other programs on the computer do not lengthen; or a
            constant, for a clock that only moves when it is told to.
    """

    def __init__(self, source: Clock = time.thread_time) -> None:
        self.source = source
        self._offset = -source()

    def __call__(self) -> float:
        """Return the time now [s]."""
        return self.source() + self._offset

    def skip(self, seconds: float) -> None:
        """Let time pass, or come back."""
        self._offset += seconds

    def set(self, now: float) -> None:
        """Make it a certain time."""
        self._offset = now - self.source()


class SimulatedWorker(Worker):
    """Does jobs at once, and hands out their results when they would have been done on a core of their own.

    Args:
        clock: The loop's time.
        slowdown: How many times as long as measured a job is said to take; may be changed while the loop runs.
        seconds: How long a job is said to take, in place of what is measured.
    """

    def __init__(self, clock: SimulatedTime, slowdown: float = 1.0, seconds: float | None = None) -> None:
        self._clock, self.slowdown, self.seconds = clock, slowdown, seconds
        self._ready = 0.0
        self._found: Finished | None = None

    def submit(self, job: Job) -> None:
        """Do the job, and put the clock back to when it began."""
        begun = self._clock()
        found = finish(job, self._clock.source)
        taken = (found.seconds if self.seconds is None else self.seconds) * self.slowdown
        self._clock.set(begun)
        self._ready, self._found, self.busy = begun + taken, found._replace(seconds=taken), True

    def fetch(self, until: float) -> Finished | None:
        """Return the result if it is there by then; the clock moves on by the wait."""
        now = self._clock()
        if self._found is None or self._ready > max(until, now):
            self._clock.skip(max(0.0, until - now))
            return None
        self._clock.skip(max(0.0, self._ready - now))
        found, self._found, self.busy = self._found, None, False
        return found
