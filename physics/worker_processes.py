"""Processes that step worlds, each isolated from the others: one that crashes or hangs is replaced and takes only its world with it."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from residual_mbrl.errors import ModelError
from residual_mbrl.physics.workers import Array, Factory, Fault, Outcomes, Runner, StepFunction, Worlds, call, split
from residual_mbrl.status import StepStatus

FLUSH = 0.002
"""Seconds after which a worker sends what it has done: what a crash can lose."""

START_TIMEOUT = 120.0
"""Most seconds that a worker may take to import and build its simulator."""


DYING = 30.0
"""Most seconds that a process may take to end after a fatal signal."""

ANSWER = 0.5
"""Most seconds to wait for a process that hangs to tell where."""


class Processes(Runner):
    """Steps worlds in processes of their own.

    A process that ends, or is ended after ``timeout``, is replaced, and the worlds that it had not done go to its successor.

    Args:
        factory: Makes a worker's step, in the worker; must be picklable.
        batched: Whether a step takes many worlds.
        workers: Processes.
        timeout: Most seconds for one call of a step.
    """

    def __init__(self, factory: Factory, *, batched: bool, workers: int, timeout: float) -> None:
        self.batched, self.timeout = batched, timeout
        self._workers = [_Worker(factory, i) for i in range(workers)]
        self._lock = threading.Lock()
        weakref.finalize(self, _stop, self._workers)

    def outcomes(self, worlds: Worlds) -> Iterator[Outcomes]:
        """Yield outcomes as they come.

        Raises:
            ModelError: if a worker cannot make its simulator, with its traceback.
        """
        with self._lock:
            parts = split(len(worlds), len(self._workers))
            self._start(self._workers[: len(parts)])
            busy: dict[_Worker, _Task] = {}
            try:
                for worker, part in zip(self._workers, parts, strict=False):
                    busy[worker] = _Task(worlds, part, batched=self.batched)
                    worker.submit(busy[worker])
                while busy:
                    yield from self._collect(busy)
            finally:  # after Ctrl-C, or an error: what the others would still send belongs to no later batch
                for worker in busy:
                    worker.stop()

    def close(self) -> None:
        """End the processes."""
        _stop(self._workers)

    def _start(self, workers: Sequence[_Worker]) -> None:
        fresh = [w for w in workers if not w.running]
        try:
            for worker in fresh:
                worker.start()
            for worker in fresh:  # they import side by side
                worker.await_start()
        except BaseException:
            _stop(fresh)
            raise

    def _collect(self, busy: dict[_Worker, _Task]) -> Iterator[Outcomes]:
        """Wait for news, or for the first worker's time to run out, and yield what has been done."""
        now = time.monotonic()
        ready = wait([x for w in busy for x in w.news()], timeout=max(0.0, min(w.deadline(self.timeout) - now for w in busy)))
        for worker, task in list(busy.items()):
            if any(x in ready for x in worker.news()):
                try:
                    start, states, faults = worker.receive()
                except (EOFError, OSError):
                    fault = worker.crash()
                else:
                    yield task.finish(start, states, faults)
                    if not task.rows:
                        del busy[worker]
                    continue
            elif time.monotonic() >= worker.deadline(self.timeout):
                fault = worker.hang(self.timeout)
            else:
                continue
            yield from task.fail(worker.place, fault)
            worker.stop()
            if task.rows:
                self._start([worker])
                worker.submit(task)
            else:
                del busy[worker]


class _Task:
    """The worlds that a worker still has to step.

    Args:
        worlds: All worlds of the batch.
        rows: Those of this worker.
        batched: Whether a step takes many worlds.
    """

    def __init__(self, worlds: Worlds, rows: Sequence[int], *, batched: bool) -> None:
        self.worlds, self.rows, self.batched = worlds, list(rows), batched
        self.together = batched
        self.sent = self.rows

    def message(self) -> tuple[Worlds, bool, bool]:
        """Return what to send to a worker: all that is left."""
        self.sent = list(self.rows)
        return self.worlds.take(self.sent), self.batched, self.together

    def finish(self, start: int, states: Array, faults: Mapping[int, Fault]) -> Outcomes:
        """Note that some worlds are done; they count from the worker's last message."""
        rows = self.sent[start : start + len(states)]
        done = set(rows)
        self.rows = [r for r in self.rows if r not in done]
        return Outcomes(rows, states, faults)

    def fail(self, place: int, fault: Fault) -> Iterator[Outcomes]:
        """Note at which world the worker failed; a batch that does is tried again world by world."""
        if self.together and len(self.sent) > 1:
            self.together = False
        else:
            yield self.finish(place, np.full((1, self.worlds.state.shape[1]), np.nan), {0: fault})


class _Worker:
    """One process, and what the parent knows of it."""

    def __init__(self, factory: Factory, index: int) -> None:
        self.factory, self.index = factory, index
        self.process: Any = None
        self.connection: Connection
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._seen, self._since = -1, 0.0

    @property
    def running(self) -> bool:
        return self.process is not None and bool(self.process.is_alive())

    @property
    def place(self) -> int:
        """Which of the worlds sent to it it is at."""
        return int(self._progress[0])

    def start(self) -> None:
        """Start the process; ``await_start`` tells how it went.

        Raises:
            ModelError: if the factory cannot be sent to it.
        """
        self.stop()
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory(prefix="black_box_")
        self._stacks = Path(self._folder.name) / "stacks"
        self._progress = context.RawArray("q", 1)
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self._progress, str(self._stacks)), daemon=True,
                                       name=f"black_box-{self.index}")
        with _interrupts_blocked():  # the child inherits this: Ctrl-C is the parent's to handle
            self.process.start()
        theirs.close()
        try:
            self.connection.send(self.factory)
        except OSError:
            pass  # it has ended already: await_start says so
        except Exception as error:
            raise ModelError(f"{self.factory!r} cannot be sent to a worker process: {error}. Expected something picklable: a function of a "
                             f"module, a functools.partial of one, or factory=... that makes the step in the worker") from error

    def await_start(self) -> None:
        """Wait until the simulator is there.

        Raises:
            ModelError: if it cannot be made, with the worker's traceback.
        """
        try:
            problem = self.connection.recv() if self.connection.poll(START_TIMEOUT) else f"not ready after {START_TIMEOUT:g} s"
        except (EOFError, OSError):
            problem = f"{self.crash().message} while it started; a script must start processes below if __name__ == \"__main__\""
        if problem is not None:
            raise ModelError(f"worker process {self.index} cannot make its simulator: {problem}")

    def submit(self, task: _Task) -> None:
        """Send worlds to step."""
        self._seen, self._since = -1, time.monotonic()
        self._progress[0] = 0
        with contextlib.suppress(OSError):  # it has ended: waiting for its answer says so
            self.connection.send(task.message())

    def news(self) -> list[Any]:
        """Return what to wait for."""
        return [self.connection, self.process.sentinel]

    def receive(self) -> tuple[int, Array, dict[int, Fault]]:
        """Return what it has done since its last message.

        Raises:
            EOFError, OSError: if the process has ended.
        """
        if not self.connection.poll():
            raise EOFError
        self._since = time.monotonic()
        done: tuple[int, Array, dict[int, Fault]] = self.connection.recv()
        return done

    def deadline(self, timeout: float) -> float:
        """Return when the call that it is in has taken too long [s, monotonic]."""
        if self._progress[0] != self._seen:
            self._seen, self._since = self._progress[0], time.monotonic()
        return self._since + timeout

    def crash(self) -> Fault:
        """Say how the process ended."""
        self.process.join(1.0)
        code = self.process.exitcode
        how = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
        return Fault(StepStatus.CRASHED, f"its process ended {how}", self._stack())

    def hang(self, timeout: float) -> Fault:
        """Say where the process is; it is to be stopped after this."""
        if self._stack():  # its signal handler has spoken: it is ending, and writes its memory to disk
            self.process.join(DYING)
        elif hasattr(signal, "SIGUSR1"):
            with contextlib.suppress(OSError):
                os.kill(self.process.pid, signal.SIGUSR1)
            until = time.monotonic() + ANSWER
            while not self._stack().endswith("\n") and time.monotonic() < until:
                time.sleep(0.01)
        if not self.running:
            return self.crash()
        return Fault(StepStatus.TIMED_OUT, f"a step took longer than {timeout:g} s", self._stack())

    def stop(self) -> None:
        """End the process at once: it holds nothing that is worth keeping."""
        if self.process is not None:
            self.connection.close()
            if self.process.pid is not None:
                self.process.kill()
                self.process.join()
            self.process.close()
            self.process = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _stack(self) -> str:
        return self._stacks.read_text(errors="replace") if self._stacks.is_file() else ""


def _stop(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.stop()


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, progress: Any, stacks: str) -> None:
    """Step worlds until the parent is gone: the main function of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Path(stacks).open("w", encoding="utf-8") as file:
        faulthandler.enable(file)
        if hasattr(signal, "SIGUSR1"):
            faulthandler.register(signal.SIGUSR1, file)
        try:
            step = connection.recv()()
        except (Exception, SystemExit):
            connection.send(traceback.format_exc())
            return
        connection.send(None)
        with contextlib.suppress(EOFError, OSError):  # the parent has gone
            while True:
                worlds, batched, together = connection.recv()
                _step(connection, progress, step, worlds, batched, together)


def _step(connection: Connection, progress: Any, step: StepFunction, worlds: Worlds, batched: bool, together: bool) -> None:
    """Step worlds and send what becomes of them, of slow ones each before the next begins."""
    if together:
        connection.send((0, *call(step, worlds, batched)))
        return
    start, states = 0, list[Array]()
    faults: dict[int, Fault] = {}
    begun = time.monotonic()
    for i in range(len(worlds)):
        if states and time.monotonic() - begun > FLUSH:
            connection.send((start, np.concatenate(states), faults))
            start, states, faults, begun = i, [], {}, time.monotonic()
        progress[0] = i
        after, failed = call(step, worlds.take(slice(i, i + 1)), batched)
        if failed:
            faults[i - start] = failed[0]
        states.append(after)
    connection.send((start, np.concatenate(states), faults))
