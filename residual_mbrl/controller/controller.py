"""A controller that keeps its deadline, stays inside its limits, and says why it does what it does."""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from residual_mbrl.controller.bounds import Bounds
from residual_mbrl.controller.chain import IN_TIME, SEEN, Chain, Doubt
from residual_mbrl.controller.checks import check_chain
from residual_mbrl.controller.delay import CommandLine
from residual_mbrl.controller.law import Law
from residual_mbrl.controller.level import Level
from residual_mbrl.controller.log import Subject, Switch, SwitchLog
from residual_mbrl.controller.perception import Estimator, Perception
from residual_mbrl.controller.planning import LATE, PATIENCE, Planning, warm_up
from residual_mbrl.controller.trust import NOT_FINITE, SPREAD, TrustOptions
from residual_mbrl.controller.watch import WatchOptions
from residual_mbrl.controller.worker import Background, Clock, Worker
from residual_mbrl.costs import Cost
from residual_mbrl.planners.base import Planner, neutral_state
from residual_mbrl.planners.limits import Limits

Array = NDArray[np.float64]

LOST, FAULT, LAW = "observation lost", "exception in the loop", "law not finite"
RESERVE = 0.2
"""Share of the deadline that is kept for what comes after the plan."""


class Tick(NamedTuple):
    """What the last call did."""

    time: float
    """Loop time [s]."""
    law: str
    """What the command comes from."""
    seen: bool
    """Whether the observation was used."""
    seconds: float
    """How long the call took."""
    solve: float
    """How long the plan took that is in use [s], NaN without one."""
    age: float
    """Seconds from the plan's start to the command's effect, NaN without one."""


class Controller:
    """``command = controller.act(observation, time)``, every ``period`` seconds, for a planner and what to do without it.

    At each tick the observation is judged, every model's prediction for now is compared with it, and the first law of the chain
    that is trusted gives the command: planners first, each under its own model, then laws that take microseconds. Plans are computed
    beside the loop, from the state that the plant will have when they arrive; until one is there, the last one is followed with its
    feedback. The command is clipped to limits and rates last of all.

    Args:
        planner: The best law, usually under the calibrated model; a ``Level`` says more about it.
        estimator: Makes states of observations; without one, an observation is the first entries of the state: positions and
            velocities, or all of it.
        fallback: What to go down to, in order: planners or levels first, laws (``LQR``, ``Hold``) after them, at least one.
        period: Seconds from tick to tick.
        deadline: Seconds from the start of a tick within which the command must be out; the period where missing.
        limits: Of commands and rates; those of the planner where missing.
        cost: What is asked for from a time [s] on; the planners' own costs where missing.
        latency: Seconds from the command to the plant, as far as the models do not hold it themselves.
        first: Command in effect before the first tick, shape [nu]; that of the last law where missing.
        observed: Entries of an observation; positions and velocities where missing.
        unseen: State entries that are not observed, at the start, shape [nx - observed]; zero where missing.
        follow: Age [s] of the observation behind a plan up to which the plan is followed when no newer one comes.
        trust: How soon a model loses trust.
        watch: What an observation is refused for.
        settling: Time constant [s] with which forces that a model lacks are estimated where it has a ``HeldForce``.
        worker: Where plans are computed; a thread of its own where missing.
        clock: Seconds; measures what the calls take.

    Attributes:
        log: Every switch.
        last: What the last call did.

    Raises:
        ValueError: naming what does not fit: a model at another rate or of another plant, limits that cannot be kept, a chain without a
            law at its end.
    """

    def __init__(self, planner: Planner | Level, estimator: Estimator | None = None, fallback: Sequence[Planner | Level | Law] = (), *,
                 period: float, deadline: float | None = None, limits: Limits | None = None,
                 cost: Callable[[float], Cost] | None = None, latency: float = 0.0, first: Array | None = None,
                 observed: int | None = None, unseen: Array | None = None, follow: float = 0.2, trust: TrustOptions | None = None,
                 watch: WatchOptions | None = None, settling: float = 0.2, worker: Worker | None = None,
                 clock: Clock = clock.perf_counter) -> None:
        self.levels, self.laws, names = check_chain([planner, *fallback], period)
        space = self.levels[0].dynamics.baseline.space
        self.period, self.deadline = period, period if deadline is None else deadline
        if not 0 < self.deadline <= period or latency < 0 or not settling > 0:
            raise ValueError(f"Controller: expected 0 < deadline <= period, latency >= 0 and settling > 0, received "
                             f"{self.deadline}, {period}, {latency}, {settling}")
        size = space.nq + space.nv if observed is None else observed
        if size not in (space.nq + space.nv, space.nx):
            raise ValueError(f"Controller: observed must be {space.nq + space.nv} (positions, velocities) or {space.nx}, received {size}")
        rest = np.zeros(space.nx - size) if unseen is None else np.asarray(unseen, np.float64)
        if rest.shape != (space.nx - size,):
            raise ValueError(f"Controller: unseen must have shape [{space.nx - size}], received {list(rest.shape)}")
        self.bounds = Bounds(limits or self.levels[0].planner.limits, space.nu, period)
        self._safe = np.asarray(self.laws[-1].command(neutral_state(space)).numpy(), np.float64)
        safe = self._safe if first is None else np.asarray(first, np.float64)
        if safe.shape != (space.nu,) or not self.bounds.holds(safe):
            raise ValueError(f"Controller: the first command must be [{space.nu}] within the limits, received {safe.tolist()}")
        self.log, self.last = SwitchLog(), Tick(-np.inf, names[-1], False, 0.0, np.nan, np.nan)
        self._trust, self._watching, self._latency, self._cost = trust or TrustOptions(), watch or WatchOptions(), latency, cost
        self.chain = Chain(names, self._trust.dwell, self.log)
        self._perception = Perception(self.levels, size, rest, period, self._trust, self._watching, estimator, settling)
        self._line = CommandLine(safe, latency)
        self._worker, self._clock = worker or Background(clock), clock
        self._planning = Planning(self._worker, self._warm_up(safe), follow, period)
        self._sources: dict[Subject, str] = {"state": "measured", "plan": "every tick"}
        self._begun = 0.0

    def act(self, observation: object, time: float, stamp: float | None = None) -> Array:
        """Return the command for now, shape [nu]; never raises, and takes no longer than the deadline.

        Args:
            observation: What is seen, shape [n]; None, or anything else that is none, is a reason to go on by prediction.
            time: Loop time now [s].
            stamp: Loop time at which the observation was measured [s]; now where missing.
        """
        self._begun = self._clock()
        try:
            with torch.no_grad():
                kept = self.bounds.keep(self._command(observation, time, time if stamp is None else stamp), self._line.last)
        except Exception as error:  # a loop that ends is worse than any command
            kept = self.bounds.keep(self._rescue(time, error), self._line.last)
        self._line.send(self._now(time), kept)
        self.last = self.last._replace(time=time, seconds=self._clock() - self._begun)
        return kept.copy()

    def _warm_up(self, command: Array) -> float:
        """Compute everything once, so that nothing compiles in the loop; return how long a plan takes [s]."""
        seconds, space = 0.0, self.levels[0].dynamics.baseline.space
        state = neutral_state(space)
        cost = None if self._cost is None else self._cost(0.0)
        with torch.no_grad():
            for level, belief in zip(self.levels, self._perception.beliefs, strict=True):
                belief.start(state.numpy()[: self._perception.size], command)
                for seconds_ahead in (1.0, 1.5, 2.0):
                    belief.look_ahead(self._line, 0.0, seconds_ahead * self.period)
                    belief.predict(self._line, 0.0, seconds_ahead * self.period)
                seconds = max(seconds, warm_up(self._worker, self._clock() + PATIENCE, level, belief.state, cost, command,
                                               self.deadline))
                belief.state = None
            for law in self.laws:
                law.command(state, cost)
        return min(seconds, self.deadline)

    def close(self) -> None:
        """Stop the worker."""
        self._worker.close()

    def _now(self, time: float) -> float:
        """Return the loop time that it has become since the call for ``time`` began."""
        return time + self._clock() - self._begun

    def _command(self, observation: object, time: float, stamp: float) -> Array:
        perception = self._perception
        if perception.at - self.period < stamp < perception.at:
            stamp = perception.at  # a little older than what a prediction stood for
        if not 0 <= stamp - perception.at <= self._watching.coast:
            perception.restart(observation, stamp, self._line)
            self._planning.forget()
        doubt, doubts = perception.look(observation, time, stamp, self._line)
        self._note("state", "measured" if doubt is None else "predicted", time, doubt or Doubt(SEEN))
        for law, found in enumerate(doubts):
            if found is not None:
                self.chain.doubt(law, time, found)
        if perception.lost > self._watching.coast:
            for law in range(len(self.chain.names) - 1):
                self.chain.doubt(law, time, Doubt(LOST, {"seconds": perception.lost, "last": "" if doubt is None else doubt.reason}), 0.0)
        return self._from_law(self._plan(time), time, doubt is None)

    def _note(self, subject: Subject, target: str, time: float, doubt: Doubt) -> None:
        """Enter a change of where states or plans come from in the log."""
        source, self._sources[subject] = self._sources[subject], target
        if source != target:
            self.log.add(Switch(time=time, subject=subject, source=source, target=target, reason=doubt.reason, evidence=doubt.evidence))

    def _plan(self, time: float) -> int:
        """Ask for a plan under the law in use, take one over, and return the law that the command comes from."""
        planning, due = self._planning, self._begun + (1 - RESERVE) * self.deadline
        self._collect(self._begun, time)
        expected, budget = planning.delay.expected, (1 - RESERVE) * self.deadline
        self._note("plan", "every tick" if expected <= budget else "when ready", time,
                   Doubt(IN_TIME if expected <= budget else LATE, {"expected seconds": expected, "available": budget}))
        for _ in range(2):  # where a plan takes trust away there may be time for one under the next model
            law = self._wanted(time)
            if law < len(self.levels) and planning.idle:
                self._ask(law, time)
            if planning.asked is None or planning.delay.expected > due - self._clock():
                break  # waiting for what will be late would only make the command late
            self._collect(due, time)
            if self._wanted(time) == law:
                break
        law = self._wanted(time)
        if law < len(self.levels) and not self._serves(time):
            late = Doubt(LATE, {"expected seconds": planning.delay.expected, "deadline": self.deadline})
            for level in range(law, len(self.levels)):
                self.chain.doubt(level, time, late, 0.0)
        return self.chain.choose(time)

    def _wanted(self, time: float) -> int:
        """Return the first law that is trusted."""
        return next(i for i in range(len(self.chain.names)) if self.chain.trusts(i, time))

    def _serves(self, time: float) -> bool:
        """Tell whether the plan in use covers now and was made under a model that is trusted."""
        served, plan = self._planning.serves(self._now(time) + self._latency), self._planning.plan
        return served and plan is not None and self.chain.trusts(plan.law, time)

    def _ask(self, law: int, time: float) -> None:
        level, belief, planning = self.levels[law], self._perception.beliefs[law], self._planning
        expected, budget = planning.delay.expected, (1 - RESERVE) * self.deadline
        ready = expected if expected <= budget else np.ceil(expected / self.period) * self.period
        start = self._now(time) + ready + self._latency
        planned = planning.ahead(self._now(time) + self._latency, start) if self._serves(time) else ()
        state = belief.predict(self._line, self._perception.at, start, planned)
        if state is None:
            self.chain.doubt(law, time, Doubt(NOT_FINITE))
            return
        cost = None if self._cost is None else self._cost(start)
        left = self._begun + budget - self._clock()
        planning.ask(law, level, state, start, self._perception.at, cost, self._line.mean(start - self.period, start), left)

    def _collect(self, until: float, time: float) -> None:
        asked = self._planning.asked
        plan, doubt = self._planning.collect(until)
        if plan is not None and plan.spread is not None:
            ratio = self._perception.spread(plan.law, plan.spread)
            if not ratio < self._trust.spread:
                doubt = Doubt(SPREAD, {"spread in half widths": ratio})
        if asked is not None and doubt is not None and doubt.reason != LATE:  # the last plan still serves, or it is seen that it does not
            self.chain.doubt(asked.law, time, doubt)

    def _from_law(self, law: int, time: float, seen: bool) -> Array:
        """Return the command of a law, or of the first one after it that has one."""
        effect = self._now(time) + self._latency
        plan = self._planning.plan
        if law < len(self.levels) and plan is not None:
            state = None
            if plan.plan.gains is not None and effect - plan.start > 0.5 * self.period:
                state = self._perception.beliefs[plan.law].predict(self._line, self._perception.at, effect)
            command = self._planning.command(effect, self.levels[plan.law], state)
            if np.isfinite(command).all():
                self.last = self.last._replace(law=self.chain.names[law], seen=seen, solve=plan.seconds, age=effect - plan.start)
                return command
        state, cost = self._perception.ahead(self._line, effect), None if self._cost is None else self._cost(effect)
        first = max(law - len(self.levels), 0) if state is not None else len(self.laws) - 1
        known = neutral_state(self.levels[0].dynamics.space) if state is None else state
        for i in range(first, len(self.laws)):
            command = self.laws[i].command(known, cost).numpy()
            if np.isfinite(command).all():
                self.last = self.last._replace(law=self.chain.names[len(self.levels) + i], seen=seen, solve=np.nan, age=np.nan)
                return command
            self.chain.doubt(len(self.levels) + i, time, Doubt(LAW))
        return self._line.last

    def _rescue(self, time: float, error: Exception) -> Array:
        """Go to the last law after an exception."""
        for law in range(len(self.chain.names) - 1):
            self.chain.doubt(law, time, Doubt(FAULT, {"exception": f"{type(error).__name__}: {error}"}))
        self.chain.choose(time)
        self.last = self.last._replace(law=self.chain.names[-1], seen=False, solve=np.nan, age=np.nan)
        return self._safe
