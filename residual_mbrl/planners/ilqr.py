"""Iterative LQR within control limits."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Unpack

import torch
from torch import Tensor

from residual_mbrl.costs import Cost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.fused.model import Refusal
from residual_mbrl.fused.solve import Box, Solution, fused_solve
from residual_mbrl.planners.base import INFINITY, Common, Iterate, Planner, Problem
from residual_mbrl.planners.constraints import ConstrainedCost, Constraints
from residual_mbrl.planners.general_solve import GeneralSolve
from residual_mbrl.planners.plan import Plan
from residual_mbrl.rollouts import Backend, rollout

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ILQROptions:
    """Options of ``ILQR``.

    Args:
        iterations: Iterations at most; 1 is a real-time iteration.
        backend: "auto" solves in one launch where it can and in torch otherwise; "fused" must, "torch" never does.
        tolerance: Expected or actual decrease of the cost, relative to it, from which on it is converged.
        least_regularisation: Added to the curvature by actions when a step fails, relative to its greatest entry; tenfold each time.
        most_regularisation: Where it gives up.
        smallest_step: Of the line search, which tries steps from 1 down to it all at once.
        inner_iterations: Between updates of the multipliers of constraints.
        first_weight: ρ of constraints, with which their squares are weighted, in the cost's unit per constraint's unit squared.
        weight_growth: Factor of ρ where the violation has not come down to a quarter.
        greatest_weight: ρ at most.
    """

    iterations: int = 50
    tolerance: float = 1e-6
    backend: Backend = "auto"
    least_regularisation: float = 1e-8
    most_regularisation: float = 1e10
    smallest_step: float = 1e-4
    inner_iterations: int = 30
    first_weight: float = 10.0
    weight_growth: float = 5.0
    greatest_weight: float = 1e6

    def __post_init__(self) -> None:
        """See that numbers are in range."""
        if self.iterations < 1:
            raise ValueError(f"ILQROptions: iterations must be at least 1, received {self.iterations}")
        if not (self.tolerance > 0 and self.least_regularisation > 0 and self.most_regularisation > 0 and 0 < self.smallest_step < 1):
            raise ValueError("ILQROptions: expected tolerance > 0, regularisations > 0 and smallest_step in (0, 1), received "
                             f"{self.tolerance}, {self.least_regularisation}, {self.most_regularisation}, {self.smallest_step}")


class ILQR(Planner):
    """Differential dynamic programming on the first derivatives of the model, within control limits.

    Each iteration expands model and cost along the trajectory, solves for ``δu = k + K δx`` from the last step to the first, each step a
    small quadratic program within the limits, and rolls out under this feedback at all step sizes at once. A ``QuadraticCost`` is expanded
    by Gauss-Newton on the tangent space, any other by its exact Hessian. The gains K come with the plan. State limits and inequalities
    are held by an augmented Lagrangian, whose multipliers a warm start takes on: also a real-time iteration comes to hold them.

    Source: Tassa, Mansard, Todorov, Control-limited differential dynamic programming, ICRA 2014; real-time iteration: Diehl et al., 2005;
    constraints: Howell, Jackson, Manchester, ALTRO, IROS 2019.

    Args:
        dynamics: The model.
        cost: What is minimised.
        options: Of the planner.
        common: See ``Planner``.
    """

    holds_constraints = minds_deadline = True

    def __init__(self, dynamics: ResidualDynamics, cost: Cost, options: ILQROptions | None = None, **common: Unpack[Common]) -> None:
        super().__init__(dynamics, cost, **common)
        self.options = options or ILQROptions()
        self._pace = 0.0

    @property
    def iterations(self) -> int:
        """Iterations at most."""
        return self.options.iterations

    def _start(self, problem: Problem, actions: Tensor, warm: Plan | None) -> Iterate:
        iterate = Iterate(actions, actions.new_full(problem.batch, INFINITY))
        if warm is not None and warm.gains is not None and warm.states is not None:
            iterate.states, iterate.gains = warm.states, warm.gains
        if warm is not None:
            iterate.memory = warm.memory
        return iterate

    def _advance(self, problem: Problem, iterate: Iterate) -> Iterate:
        if self.constraints is None:
            return replace(self._solve(problem, problem.cost, iterate, self.iterations), done=True)
        return self._hold(problem, iterate, self.constraints)

    def _hold(self, problem: Problem, iterate: Iterate, constraints: Constraints) -> Iterate:
        """Minimise, raise multipliers and weights where constraints are violated, and again."""
        options, batch, left = self.options, problem.batch, self.iterations - iterate.iterations
        y, rho, before = (iterate.memory.get(n) for n in ("multipliers", "weight", "violation"))
        if y is None or rho is None or y.shape != (*batch, self.steps + 1, constraints.number):
            y = problem.state.new_zeros(*batch, self.steps + 1, constraints.number)
            rho = problem.state.new_full((*batch, 1, 1), options.first_weight)
        cost = ConstrainedCost(problem.own_cost, constraints, multipliers=y, weight=rho[..., 0, 0])
        found = self._solve(problem, cost, iterate, min(left, options.inner_iterations))
        assert found.states is not None and found.converged is not None  # noqa: S101  # of a solve
        states, each, own = found.states, found.actions, problem.own_cost.total(found.states, found.actions)
        if self.objective is not None:
            first, each, parameters = self._members(problem, found.actions)
            states = rollout(self.dynamics, first, each, parameters)
            own = self.objective.reduce(problem.own_cost.total(states, each))
        c = constraints.along(states, each)
        c = c if self.objective is None else c.amax(0)  # members share multipliers, those of whichever violates most
        violation = c.amax((-2, -1)).clamp_min(0)
        y = (c + y).clamp_min(0)
        # all that is left of a multiplier whose constraint stays violated is too small: the weight grows
        enough = violation.new_full((), self.violation_tolerance) if before is None else 0.25 * before[..., 0, 0]
        slow = (violation > enough.clamp_min(self.violation_tolerance)) & (rho[..., 0, 0] < options.greatest_weight)
        factor = torch.where(slow, options.weight_growth, 1.0).to(rho)[..., None, None]
        held = violation <= self.violation_tolerance
        late = found.late if found.late is not None else torch.zeros_like(held)
        own = torch.where(torch.isfinite(found.cost), own, found.cost)
        improved = torch.ones_like(held) if iterate.improved is None else iterate.improved
        return replace(found, cost=own, violation=violation, converged=found.converged & held, improved=improved,
                       iterations=iterate.iterations + max(found.iterations, 1), done=bool(late.all()),
                       memory={"multipliers": y / factor, "weight": rho * factor, "violation": violation[..., None, None]})

    def _solve(self, problem: Problem, cost: Cost, iterate: Iterate, iterations: int) -> Iterate:
        options, batch = self.options, problem.batch
        warm = None if iterate.states is None or iterate.gains is None else (iterate.states, iterate.gains)
        state = problem.state if batch else problem.state.unsqueeze(0)
        actions = iterate.actions if batch else iterate.actions.unsqueeze(0)
        settings = options.tolerance, options.least_regularisation, options.most_regularisation, options.smallest_step
        box = Box(problem.lower, problem.upper, problem.rate, problem.previous)
        found: Solution | Refusal = Refusal("the torch form is asked for, or an objective over members")
        if self.objective is None and options.backend != "torch":
            found = fused_solve(self.dynamics, state, actions, cost, cost.references.to(state), problem.parameters or {}, box,
                                iterations=iterations, settings=settings, until=problem.until, warm=warm, pace=self._pace)
        if isinstance(found, Refusal):
            if options.backend == "fused":
                raise ValueError(f"ILQR: cannot be fused: {found.reason}")
            log.debug("iLQR in torch: %s", found.reason)
            if len(batch) > 1:
                raise ValueError(f"ILQR: where a model is not fused, the batch has one dimension at most, received {tuple(batch)}")
            found = GeneralSolve(self.dynamics, self.objective, cost, problem.parameters, box, state, settings).run(actions, iterations,
                                                                                                                    problem.until)
        new, states, gains, costs, info = found if batch else type(found)(*(x[0] for x in found))
        outcome, longest = info[..., 0], float(info[..., 6].max())
        # one iteration that waited for the processor says little of the next: the known pace follows slowly, and is forgotten when idle
        self._pace = min(longest, 2 * self._pace) * 0.2 + 0.8 * self._pace if self._pace and longest else 0.9 * self._pace + longest
        return Iterate(new, costs, outcome == 0, (info[..., 3] < info[..., 2]) & (outcome != 4), states, gains,
                       iterations=int(info[..., 1].max()), late=outcome == 3)
