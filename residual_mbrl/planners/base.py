"""What all planners share: inputs, warm starts, the anytime loop, and the plan that comes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from residual_mbrl.baselines import Values
from residual_mbrl.costs import Cost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import NotFiniteError
from residual_mbrl.planners.constraints import ConstrainedCost, Constraints, Inequalities
from residual_mbrl.planners.limits import Limits, project
from residual_mbrl.planners.objectives import Objective
from residual_mbrl.planners.plan import Plan
from residual_mbrl.rollouts import rollout, rollout_cost
from residual_mbrl.spaces import StateSpace
from residual_mbrl.status import PlanStatus

INFINITY = float("inf")


class Common(TypedDict, total=False):
    """Keyword arguments that every planner takes; see ``Planner``."""

    horizon: float | None
    steps: int | None
    dt: float | None
    limits: Limits | None
    initial_action: Tensor | Sequence[float] | float | None
    objective: Objective | None
    inequalities: Inequalities | None
    penalty: float
    violation_tolerance: float


@dataclass(frozen=True)
class Problem:
    """What one call of ``plan`` asks for."""

    state: Tensor
    """Shape [*batch, nx], finite, with the residuals' memory."""
    cost: Cost
    """What is minimised, with a penalty where the planner has constraints and no way of its own to hold them."""
    own_cost: Cost
    """Without."""
    parameters: Values | None
    lower: Tensor
    """Of the actions, shape [nu]."""
    upper: Tensor
    rate: Tensor | None
    """Greatest change of the action from step to step, shape [nu]."""
    previous: Tensor | None
    """Action before the first, shape [*batch, nu]."""
    until: float
    """Time of ``perf_counter`` at which the answer is due."""

    @property
    def batch(self) -> torch.Size:
        """Shape of the batch."""
        return self.state.shape[:-1]

    def project(self, actions: Tensor) -> Tensor:
        """Return actions [*any, *batch, H, nu] within the limits."""
        return project(actions, self.lower, self.upper, self.rate, self.previous)


@dataclass
class Iterate:
    """Where a planner is; the best that it has found, and what it goes on from."""

    actions: Tensor
    """Shape [*batch, H, nu], within the limits."""
    cost: Tensor
    """Shape [*batch]."""
    converged: Tensor | None = None
    """Shape [*batch]; none where missing."""
    improved: Tensor | None = None
    """Shape [*batch]; told from the first cost where missing."""
    states: Tensor | None = None
    gains: Tensor | None = None
    violation: Tensor | None = None
    iterations: int = 0
    late: Tensor | None = None
    """Whether the deadline came first, shape [*batch]; none where missing."""
    done: bool = False
    """Whether there is nothing more to do."""
    memory: Mapping[str, Tensor] = field(default_factory=dict)


class Planner(ABC):
    """Finds actions that minimise a cost over a horizon under a model; a subclass says how one iterate follows from another.

    ``plan`` is anytime: another iteration begins only if one as long as the longest of this call ends before the deadline.

    Args:
        dynamics: The model; its weights and parameter values are read at each call.
        cost: What is minimised; ``plan`` may be given another, of the same kind where it shall not compile anew.
        horizon: Seconds, a multiple of the model's step.
        steps: Steps of the model, instead of a horizon.
        dt: Seconds of a step that the caller counts on.
        limits: Of actions, rates and states.
        initial_action: Where a plan without a warm start begins, one number or [nu]; the middle of the limits or zero where missing.
        objective: What is made of the costs under the members of an ensemble; the model is a single one where missing.
        inequalities: What else must hold of states and actions; they and state limits are constraints.
        penalty: Weight of the squares of violated constraints, where the planner has no better way to hold them.
        violation_tolerance: Violation from which a plan counts as infeasible, in the constraint's own unit.

    Raises:
        ValueError: naming the argument, if limits cannot be kept, the model has another step than ``dt``, the horizon is not a
            multiple of it, or the cost does not fit the model, is NaN, or has the wrong shape.
    """

    holds_constraints = False
    """Whether the subclass has its own way to hold constraints; a penalty is added to the cost otherwise."""
    minds_deadline = False
    """Whether ``_advance`` looks at the deadline itself, and does the least it can after it."""

    def __init__(self, dynamics: ResidualDynamics, cost: Cost, *, horizon: float | None = None, steps: int | None = None,
                 dt: float | None = None, limits: Limits | None = None, initial_action: Tensor | Sequence[float] | float | None = None,
                 objective: Objective | None = None, inequalities: Inequalities | None = None, penalty: float = 1e3,
                 violation_tolerance: float = 1e-3) -> None:
        self.name = type(self).__name__
        if dt is not None and abs(dynamics.dt - dt) > 1e-9 * dt:
            raise ValueError(f"{self.name}: dt is {dt:g} s, but the model steps {dynamics.dt:g} s")
        self.dynamics, self.cost, self.dt, self.objective = dynamics, cost, dynamics.dt, objective
        self.steps = _steps(self.name, dynamics.dt, horizon, steps)
        self.limits = limits or Limits()
        self.limits.check(dynamics.space, self.steps)
        check_cost(self.name, cost, dynamics.space, self.steps)
        if not (penalty > 0 and violation_tolerance > 0):
            raise ValueError(f"{self.name}: penalty and violation_tolerance must be above zero, received {penalty}, {violation_tolerance}")
        self.constraints = Constraints.of(dynamics.space, self.limits, inequalities, self.steps)
        self.penalty, self.violation_tolerance = penalty, violation_tolerance
        lower, upper = self.limits.action(dynamics.space.nu)
        middle = torch.where(torch.isfinite(lower + upper), 0.5 * (lower + upper), torch.zeros_like(lower))
        given = middle if initial_action is None else torch.as_tensor(initial_action, dtype=torch.float64)
        if given.ndim > 1 or given.shape not in ((), (1,), (dynamics.space.nu,)) or not bool(torch.isfinite(given).all()):
            raise ValueError(f"{self.name}: initial_action must be finite, one number or [{dynamics.space.nu}], received {given.tolist()}")
        self.initial = torch.clamp(given.expand(dynamics.space.nu), lower, upper)
        self._lower, self._upper, self._rate = lower, upper, self.limits.rate(dynamics.space.nu, dynamics.dt)
        self._cast: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor, Tensor | None, Tensor]] = {}

    def plan(self, state: Float[Tensor, "*batch nx"], warm: Plan | None = None, *, cost: Cost | None = None, deadline: float | None = None,
             parameters: Values | None = None, previous: Float[Tensor, "*#batch nu"] | None = None) -> Plan:
        """Return the best actions found from a state on.

        Args:
            state: Shape [*batch, nx], with or without the residuals' memory; computed in its precision.
            warm: Where to begin, such as ``shift(plan, 1)`` of the last tick's plan.
            cost: Replaces the planner's own, which is how targets move.
            deadline: Seconds from now until the answer is due; none where missing.
            parameters: Physical values by name, each broadcastable to [*batch] (under an objective to [members, *batch]).
            previous: Action applied before, shape [*batch, nu], from which the first one's rate counts.

        Raises:
            ValueError: if an argument has the wrong shape. What is not finite is a status.
        """
        begin = perf_counter()
        with torch.no_grad():
            x, finite = self._checked_state(state)
            problem = self._problem(x, cost or self.cost, parameters, previous, INFINITY if deadline is None else begin + deadline)
            actions = problem.project(self._first_actions(problem, warm))
            try:
                first = self._start(problem, actions, warm)
                last, late = self._loop(problem, first)
            except NotFiniteError:
                first = last = Iterate(actions, actions.new_full(problem.batch, INFINITY))
                late = False
            return self._plan(problem, first, last, finite, late, begin)

    @abstractmethod
    def _start(self, problem: Problem, actions: Tensor, warm: Plan | None) -> Iterate:
        """Return the first iterate from actions within the limits, shape [*batch, H, nu]."""

    @abstractmethod
    def _advance(self, problem: Problem, iterate: Iterate) -> Iterate:
        """Return an iterate that is no worse, after one iteration or, where it minds ``problem.until`` itself, several."""

    @property
    @abstractmethod
    def iterations(self) -> int:
        """Iterations at most."""

    def costs(self, problem: Problem, actions: Float[Tensor, "*any horizon nu"]) -> Float[Tensor, "*any"]:
        """Return the objective of action sequences, infinite where it is not finite.

        Args:
            problem: What is asked for.
            actions: Shape [*any, *batch, H, nu].
        """
        state, each, parameters = self._members(problem, actions)
        found = rollout_cost(self.dynamics, state, each, problem.cost, parameters)
        if self.objective is not None:
            found = self.objective.reduce(found)
        return torch.nan_to_num(found, nan=INFINITY, posinf=INFINITY, neginf=INFINITY)

    def _finish(self, problem: Problem, iterate: Iterate) -> Iterate:
        """Add to the last iterate what the plan shall hold: of constraints the violation, and the cost without a penalty."""
        if self.constraints is None or not bool(torch.isfinite(iterate.cost).any()):
            return iterate
        if iterate.states is None:
            states, each, parameters = self._members(problem, iterate.actions)
            states = rollout(self.dynamics, states, each, parameters)
            single = problem.own_cost.total(states, each)
            iterate.states = states if self.objective is None else None
            iterate.cost = single if self.objective is None else self.objective.reduce(single)
            worst = self.constraints.along(states, each).amax((-2, -1)).clamp_min(0)
            iterate.violation = worst if self.objective is None else worst.amax(0)
        return iterate

    def _members(self, problem: Problem, actions: Tensor) -> tuple[Tensor, Tensor, Values | None]:
        """Return first states, actions [*any, *batch, H, nu] and parameters of every member, whose dimension leads if there are any."""
        shape = actions.shape[:-2]
        if self.objective is None:
            return problem.state.expand(*shape, -1), actions, problem.parameters
        members = self.objective.members
        parameters = {n: v if v.ndim == 0 else v.reshape(v.shape[0], *(1,) * (len(shape) + 1 - v.ndim), *v.shape[1:])
                      for n, v in (problem.parameters or {}).items()}
        return problem.state.expand(members, *shape, -1), actions.expand(members, *actions.shape), parameters

    def _loop(self, problem: Problem, iterate: Iterate) -> tuple[Iterate, bool]:
        longest = 0.0
        while not iterate.done and iterate.iterations < self.iterations:
            if iterate.converged is not None and bool(iterate.converged.all()):
                break
            before = perf_counter()
            if before + longest >= problem.until and (longest or not self.minds_deadline):
                return iterate, True
            iterate = self._advance(problem, iterate)
            longest = max(longest, perf_counter() - before)
        return iterate, False

    def _plan(self, problem: Problem, first: Iterate, last: Iterate, finite: Tensor | None, late: bool, begin: float) -> Plan:
        last = self._finish(problem, last)
        improved = last.cost < first.cost if last.improved is None else last.improved
        status = torch.full(problem.batch, PlanStatus.DEADLINE if late else PlanStatus.STALLED, dtype=torch.int64)
        if not late:
            status[improved.cpu()] = PlanStatus.IMPROVED
        if last.late is not None:
            status[last.late.cpu()] = PlanStatus.DEADLINE
        if last.converged is not None:
            status[last.converged.cpu()] = PlanStatus.CONVERGED
        if last.violation is not None:
            status[last.violation.cpu() > self.violation_tolerance] = PlanStatus.INFEASIBLE
        failed = ~torch.isfinite(last.cost) if finite is None else ~torch.isfinite(last.cost) | ~finite
        status[failed.cpu()] = PlanStatus.FAILED
        cost = last.cost if finite is None else torch.where(finite, last.cost, torch.full_like(last.cost, INFINITY))
        return Plan(actions=last.actions, states=last.states, cost=cost, status=status, iterations=last.iterations,
                    seconds=perf_counter() - begin, dt=self.dt, gains=last.gains, violation=last.violation, memory=last.memory)

    def _checked_state(self, state: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the state with stand-ins where it is not finite, and where it is; None for everywhere."""
        known, full = self.dynamics.baseline.space.nx, self.dynamics.space.nx
        if state.ndim < 1 or state.shape[-1] not in (known, full):
            raise ValueError(f"{self.name}: state must have shape [*batch, {full}] or [*batch, {known}], received {tuple(state.shape)}")
        if not state.is_floating_point():
            raise ValueError(f"{self.name}: state must be float32 or float64, received {state.dtype}")
        x = state.detach()
        if bool(torch.isfinite(x).all()):
            return x, None
        finite = torch.isfinite(x).all(-1)
        return torch.where(finite.unsqueeze(-1), x, neutral_state(self.dynamics.space)[: x.shape[-1]].to(x)), finite

    def _problem(self, state: Tensor, cost: Cost, parameters: Values | None, previous: Tensor | None, until: float) -> Problem:
        key = state.dtype, state.device
        if key not in self._cast:
            rate = None if self._rate is None else self._rate.to(state)
            self._cast[key] = self._lower.to(state), self._upper.to(state), rate, self.initial.to(state)
        lower, upper, rate, initial = self._cast[key]
        nu = self.dynamics.space.nu
        if previous is not None:
            if previous.shape[-1:] != (nu,):
                raise ValueError(f"{self.name}: previous must have shape [*batch, {nu}], received {tuple(previous.shape)}")
            previous = torch.nan_to_num(previous.to(state)).expand(*state.shape[:-1], nu)
        if state.shape[-1] < self.dynamics.space.nx:
            state = self.dynamics.initial_state(state, initial.expand(*state.shape[:-1], nu) if previous is None else previous)
        penalised = cost
        if self.constraints is not None and not self.holds_constraints:
            penalised = ConstrainedCost(cost, self.constraints, weight=self.penalty)
        return Problem(state, penalised, cost, parameters, lower, upper, rate, previous, until)

    def _first_actions(self, problem: Problem, warm: Plan | None) -> Tensor:
        initial = self._cast[problem.state.dtype, problem.state.device][3]
        shape = (*problem.batch, self.steps, len(initial))
        if warm is None:
            return initial.expand(shape)
        found = warm.actions.to(problem.state)
        if found.shape[-2:] != shape[-2:]:
            raise ValueError(f"{self.name}: warm.actions must have shape [*batch, {shape[-2]}, {shape[-1]}], received {tuple(found.shape)}")
        found = found.expand(shape)
        return found if bool(torch.isfinite(found).all()) else torch.where(torch.isfinite(found), found, initial)


def check_cost(name: str, cost: Cost, space: StateSpace, steps: int) -> None:
    """See that a cost fits a model and a horizon, by its values at the neutral state.

    Raises:
        ValueError: if it does not.
    """
    own = getattr(cost, "space", None)
    if isinstance(own, StateSpace) and (own.nx, own.nu) != (space.nx, space.nu):
        raise ValueError(f"{name}: the cost is of {own.nx} states and {own.nu} actions, the model has {space.nx} and {space.nu}")
    references = cost.references
    if references.ndim < 2 or references.shape[-2] not in (2, steps + 1):
        raise ValueError(f"{name}: the cost's references must have shape [..., {steps + 1}, nr] or [..., 2, nr], "
                         f"received {tuple(references.shape)}")
    reference = references.detach()[..., 0, :].reshape(-1, references.shape[-1])[0].unsqueeze(0).expand(3, -1)
    x, u = neutral_state(space).to(reference).expand(3, -1), reference.new_zeros(3, space.nu)
    for part in ("running", "terminal"):
        try:
            with torch.no_grad():
                found: object = cost.running(x, u, reference) if part == "running" else cost.terminal(x, reference)
        except (RuntimeError, IndexError, TypeError) as error:
            raise ValueError(f"{name}: the cost's {part} does not take states [*batch, {space.nx}] and actions [*batch, {space.nu}]: "
                             f"{error}") from error
        if not isinstance(found, Tensor) or found.shape != (3,):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{name}: the cost's {part} must return shape [*batch], here (3,), received {shape}")
        if bool(found.isnan().any()):
            raise ValueError(f"{name}: the cost's {part} is NaN at the neutral state")


def neutral_state(space: StateSpace) -> Tensor:
    """Return zeros with unit quaternions, shape [nx], float64."""
    x = torch.zeros(space.nx, dtype=torch.float64)
    for q0, _ in space.quaternions:
        x[q0] = 1.0
    return x


def _steps(name: str, dt: float, horizon: float | None, steps: int | None) -> int:
    if (horizon is None) == (steps is None):
        raise ValueError(f"{name}: expected either a horizon [s] or steps, received horizon={horizon}, steps={steps}")
    if steps is None:
        assert horizon is not None  # noqa: S101  # for mypy: one of the two is given
        steps = round(horizon / dt)
        if abs(steps * dt - horizon) > 1e-6 * dt:
            raise ValueError(f"{name}: the horizon of {horizon:g} s is not a multiple of the model's step of {dt:g} s")
    if steps < 1:
        raise ValueError(f"{name}: the horizon must hold at least one step, received {steps}")
    return steps
