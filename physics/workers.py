"""Stepping many worlds with a function that may fail in some of them; worker processes import this, and so it imports no torch."""

from __future__ import annotations

import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from residual_mbrl.status import StepStatus

Array = NDArray[np.float64]
StepFunction = Callable[..., ArrayLike]
"""``step(state, action)``, with ``force=`` and ``parameters=`` where the worlds have them; of one world, or of [N, ...]."""
Factory = Callable[[], StepFunction]


@dataclass(frozen=True, kw_only=True)
class Worlds:
    """What N worlds start from.

    Args:
        state: Shape [N, nx].
        action: Shape [N, nu].
        force: Shape [N, nv]; None where the function takes none.
        parameters: By name, each [N]; None where the function takes none.
    """

    state: Array
    action: Array
    force: Array | None = None
    parameters: Mapping[str, Array] | None = None

    def __len__(self) -> int:
        """Return how many worlds there are."""
        return len(self.state)

    def take(self, rows: slice | Sequence[int] | NDArray[Any]) -> Worlds:
        """Return some of the worlds."""
        parameters = None if self.parameters is None else {n: x[rows] for n, x in self.parameters.items()}
        return Worlds(state=self.state[rows], action=self.action[rows], force=None if self.force is None else self.force[rows],
                      parameters=parameters)

    def finite(self) -> NDArray[np.bool_]:
        """Return which worlds start from finite numbers, shape [N]."""
        alive = np.asarray(np.isfinite(self.state).all(1) & np.isfinite(self.action).all(1))
        if self.force is not None:
            alive &= np.isfinite(self.force).all(1)
        for x in (self.parameters or {}).values():
            alive &= np.isfinite(x)
        return alive


class Fault(NamedTuple):
    """Why a step has no result."""

    status: StepStatus
    message: str
    traceback: str = ""


DEAD = Fault(StepStatus.NOT_FINITE, "started from a state or an input that is not finite")
"""Of a world that was not stepped."""


class Outcomes(NamedTuple):
    """What became of some worlds."""

    rows: Sequence[int]
    """Which worlds."""
    state: Array
    """Next states, shape [len(rows), nx]; of no meaning where there is a fault."""
    faults: Mapping[int, Fault]
    """By place in ``rows``."""


def call(step: StepFunction, worlds: Worlds, batched: bool) -> tuple[Array, dict[int, Fault]]:
    """Return the next states of some worlds, and by place what went wrong; a batch that fails is tried again world by world."""
    if batched:
        after = _attempt(step, worlds.state.copy(), worlds.action.copy(), _options(worlds), worlds.state.shape)
        if not isinstance(after, Fault):
            return after, {}
        if len(worlds) == 1:
            return np.full(worlds.state.shape, np.nan), {0: after}
    states = np.full(worlds.state.shape, np.nan)
    faults: dict[int, Fault] = {}
    for i in range(len(worlds)):
        if batched:
            states[i : i + 1], fault = call(step, worlds.take(slice(i, i + 1)), batched)
            if fault:
                faults[i] = fault[0]
            continue
        # copies, since simulators write into what they are given
        after = _attempt(step, worlds.state[i].copy(), worlds.action[i].copy(), _options(worlds, i), states.shape[1:])
        if isinstance(after, Fault):
            faults[i] = after
        else:
            states[i] = after
    return states, faults


def _options(worlds: Worlds, row: int | None = None) -> dict[str, Any]:
    """Return the keyword arguments of a step, of all worlds or of one."""
    options: dict[str, Any] = {}
    if worlds.force is not None:
        options["force"] = (worlds.force if row is None else worlds.force[row]).copy()
    if worlds.parameters is not None:
        options["parameters"] = {n: x.copy() if row is None else float(x[row]) for n, x in worlds.parameters.items()}
    return options


def _attempt(step: StepFunction, state: Array, action: Array, options: Mapping[str, Any], shape: tuple[int, ...]) -> Array | Fault:
    try:
        after = np.asarray(step(state, action, **options), dtype=np.float64)
    except (Exception, SystemExit) as error:  # whatever a simulator does must stay the affair of its own world
        return Fault(StepStatus.RAISED, f"{type(error).__name__}: {error}", traceback.format_exc())
    if after.shape != shape:
        return Fault(StepStatus.REJECTED, f"expected a next state of shape {shape}, received shape {after.shape}")
    return after


class Runner(ABC):
    """Runs a step function over all worlds of a batch."""

    @abstractmethod
    def outcomes(self, worlds: Worlds) -> Iterator[Outcomes]:
        """Yield what became of each world, in any order."""

    @abstractmethod
    def close(self) -> None:
        """End all threads or processes; a later step starts them again."""

    def run(self, worlds: Worlds) -> tuple[Array, dict[int, Fault]]:
        """Step all worlds; return next states [N, nx], NaN in the rows that failed, and the faults by row.

        A world that starts from something not finite is not stepped: it failed before.
        """
        alive = worlds.finite()
        if alive.all():
            return self._run(worlds)
        after, rows = np.full(worlds.state.shape, np.nan), np.flatnonzero(alive)
        faults = dict.fromkeys(np.flatnonzero(~alive).tolist(), DEAD)
        after[rows], found = self._run(worlds.take(rows))
        return after, faults | {int(rows[i]): f for i, f in found.items()}

    def _run(self, worlds: Worlds) -> tuple[Array, dict[int, Fault]]:
        after = np.empty(worlds.state.shape)
        faults: dict[int, Fault] = {}
        for rows, states, failed in self.outcomes(worlds):
            after[rows] = states
            faults.update({rows[i]: f for i, f in failed.items()})
        finite = np.isfinite(after).all(1)
        if not finite.all():
            for i in np.flatnonzero(~finite):
                faults.setdefault(int(i), Fault(StepStatus.NOT_FINITE, f"the next state is not finite: {after[i]}"))
        if faults:
            after[list(faults)] = np.nan
        return after, faults


class Threads(Runner):
    """Steps worlds in this process: in the caller's thread, or in several for functions that release the interpreter's lock.

    Args:
        factory: Makes the step of each thread.
        batched: Whether a step takes many worlds.
        workers: Threads; 0 or 1 steps in the caller's own.
    """

    def __init__(self, factory: Factory, *, batched: bool, workers: int) -> None:
        self.factory, self.batched, self.workers = factory, batched, max(workers, 1)
        self._steps: list[StepFunction] = []
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def outcomes(self, worlds: Worlds) -> Iterator[Outcomes]:
        """Yield outcomes thread by thread."""
        parts = split(len(worlds), self.workers)
        with self._lock:  # a thread's simulator is its own, which two callers must not share
            while len(self._steps) < len(parts):
                self._steps.append(self.factory())
            if len(parts) == 1:
                yield Outcomes(parts[0], *call(self._steps[0], worlds, self.batched))
                return
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="black_box")
            jobs = [self._pool.submit(call, s, worlds.take(slice(p.start, p.stop)), self.batched)
                    for s, p in zip(self._steps, parts, strict=False)]
            for part, job in zip(parts, jobs, strict=True):
                yield Outcomes(part, *job.result())

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        self._steps.clear()


def split(n: int, workers: int) -> list[range]:
    """Cut n rows into as many nearly equal parts as there are workers, none of them empty."""
    count = min(workers, n)
    return [range(n * i // count, n * (i + 1) // count) for i in range(count)]


def hand_out(step: StepFunction) -> StepFunction:
    """Return a step: with ``functools.partial`` a factory that can be pickled where the step can, and is found without torch."""
    return step
