"""The plan in use: asked for beside the loop, taken over once it is there, and followed until the next one is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.controller.chain import Doubt
from residual_mbrl.controller.delay import Delay, Timed
from residual_mbrl.controller.level import Level, disagreement
from residual_mbrl.controller.worker import Finished, Worker
from residual_mbrl.costs import Cost
from residual_mbrl.planners.plan import Plan, shift
from residual_mbrl.status import PlanStatus

Array = NDArray[np.float64]

FAILED, RAISED, PLAN_NOT_FINITE = "planner failed", "planner raised an exception", "plan not finite"
LATE = "no plan in time"


@dataclass(frozen=True)
class Planned:
    """A plan and where it belongs."""

    law: int
    start: float
    """Time at which its first action takes effect [s]."""
    since: float
    """Time of the observation that it goes out from [s]."""
    plan: Plan
    actions: Array
    """Shape [H, nu]."""
    spread: Array | None
    """Disagreement of an ensemble along the plan, shape [ndx]."""
    seconds: float


@dataclass(frozen=True)
class Request:
    """What a plan was asked for with."""

    law: int
    level: Level
    start: float
    since: float
    """Time of the observation that it goes out from [s]."""
    budget: float
    """Seconds that the planner was given."""


class Planning:
    """Keeps at most one plan being computed, and the one in use.

    Args:
        worker: Where plans are computed.
        first: Guess of how long a plan takes [s].
        longest: Age [s] of the observation that a plan goes out from, beyond which it is not followed any more.
        period: Seconds for which a command is held.
    """

    def __init__(self, worker: Worker, first: float, longest: float, period: float) -> None:
        self.delay = Delay(first)
        self.plan: Planned | None = None
        self._next: Planned | None = None
        self._worker, self._longest, self._period = worker, longest, period
        self._asked: Request | None = None

    @property
    def idle(self) -> bool:
        """Whether a plan may be asked for."""
        return not self._worker.busy

    def ask(self, law: int, level: Level, state: Tensor, start: float, since: float, cost: Cost | None, previous: Array,
            budget: float) -> None:
        """Ask for a plan from a state at the time at which its first action is to take effect; see ``Planned``."""
        warm, used = None, self.plan
        if used is not None and used.plan.dt == level.planner.dt and used.actions.shape[0] == level.planner.steps:
            warm = shift(used.plan, max(0, round((start - used.start) / used.plan.dt)))
            if used.law != law:  # states, gains and memory are another model's
                warm = Plan(actions=warm.actions, states=None, cost=warm.cost, status=warm.status, iterations=0, seconds=0.0, dt=warm.dt)
        self._asked = Request(law, level, start, since, budget)
        self._worker.submit(partial(_solve, level, state.to(level.dtype), warm, cost, torch.from_numpy(previous).to(level.dtype), budget))

    def collect(self, until: float) -> tuple[Planned | None, Doubt | None]:
        """Return the plan asked for if it is there by a time of the clock, or why it cannot be used."""
        if self._asked is None:
            return None, None
        found = self._worker.fetch(until)
        if found is None:
            return None, None
        asked, self._asked = self._asked, None
        self.delay.measured(found.seconds)
        doubt = self._take(asked, found)
        return (self._next, None) if doubt is None else (None, doubt)

    @property
    def asked(self) -> Request | None:
        """What is being computed."""
        return self._asked

    def _take(self, asked: Request, found: Finished) -> Doubt | None:
        if found.error is not None:
            return Doubt(RAISED, {"exception": f"{type(found.error).__name__}: {found.error}"})
        plan, spread = found.value
        actions = plan.actions.numpy().astype(np.float64)
        evidence = {"status": plan.outcome.name, "cost": float(plan.cost)}
        if plan.outcome is PlanStatus.FAILED:  # one that ran out of time before its first iterate has not failed for good
            return Doubt(LATE if plan.seconds >= asked.budget else FAILED, evidence)
        if not np.isfinite(actions).all():
            return Doubt(PLAN_NOT_FINITE, evidence)
        self._next = Planned(asked.law, asked.start, asked.since, plan, actions, spread, found.seconds)
        return None

    def turn(self, time: float) -> None:
        """Go over to a plan that has come before its time once a command takes effect at its start."""
        if self._next is not None and self._next.start <= time + 0.5 * self._period:
            self.plan, self._next = self._next, None

    def forget(self) -> None:
        """Use no plan made so far."""
        self.plan = self._next = None

    def serves(self, time: float) -> bool:
        """Tell whether there is a plan that covers a command that takes effect at a time."""
        self.turn(time)
        if self.plan is None:
            return False
        return time - self.plan.since < self._longest and time - self.plan.start < len(self.plan.actions) * self.plan.plan.dt

    def command(self, time: float, level: Level, state: Tensor | None) -> Array:
        """Return the command that the plan has for a time of effect, with its feedback where the state then is given, shape [nu]."""
        assert self.plan is not None  # noqa: S101  # for mypy: it serves
        plan, age = self.plan.plan, max(0.0, (time - self.plan.start) / self.plan.plan.dt)
        index = min(int(age + 0.5 * min(1.0, self._period / plan.dt)), len(self.plan.actions) - 1)
        command: Array = self.plan.actions[index]
        if state is None or plan.gains is None or plan.states is None:
            return command
        space = level.planner.dynamics.space
        here, after = plan.states[index], plan.states[index + 1]
        apart = space.difference(state.to(here), here) - (age - index) * space.difference(after, here)
        correction = np.asarray((plan.gains[index] @ apart).numpy(), dtype=np.float64)
        return command + correction if np.isfinite(correction).all() else command

    def ahead(self, time: float, until: float) -> list[Timed]:
        """Return the commands that the plan in use has between two times, with those at which they begin."""
        if self.plan is None:
            return []
        dt, start, most = self.plan.plan.dt, self.plan.start, len(self.plan.actions)
        first, last = max(0, int((time - start) / dt)), int((until - start) / dt) + 1
        return [(max(start + i * dt, time), self.plan.actions[i]) for i in range(first, min(last, most))]


PATIENCE = 600.0
"""Seconds that compiling may take."""


def warm_up(worker: Worker, until: float, level: Level, state: Tensor | None, cost: Cost | None, command: Array, budget: float) -> float:
    """Plan some times, for all that compiles or allocates at first use; return the seconds of the quickest.

    Raises:
        Exception: whatever the planner raises.
    """
    if state is None:
        return 0.0
    x, previous = state.to(level.dtype), torch.from_numpy(command).to(level.dtype)
    plan, seconds = None, []
    for _ in range(4):
        worker.submit(partial(_solve, level, x, plan, cost, previous, budget))
        found = worker.fetch(until)
        if found is None:
            raise TimeoutError(f"Controller: the planner {level.name!r} has not answered in {PATIENCE:g} s")
        if found.error is not None:
            raise found.error
        plan = shift(found.value[0], 1)
        seconds.append(found.seconds)
    return min(seconds)


def _solve(level: Level, state: Tensor, warm: Plan | None, cost: Cost | None, previous: Tensor, budget: float) -> tuple[Plan, Array | None]:
    plan = level.planner.plan(state, warm, cost=cost, deadline=budget, previous=previous)
    if level.ensemble is None or plan.states is None:
        return plan, None
    return plan, disagreement(level.ensemble, plan.states[:-1], plan.actions)
