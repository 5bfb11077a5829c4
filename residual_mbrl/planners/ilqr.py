"""Iterative LQR within control limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from residual_mbrl.costs import Cost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.fused.model import Refusal
from residual_mbrl.fused.solve import Box, fused_solve
from residual_mbrl.planners.base import INFINITY, Common, Iterate, Planner, Problem
from residual_mbrl.planners.plan import Plan


@dataclass(frozen=True, kw_only=True)
class ILQROptions:
    """Options of ``ILQR``.

    Args:
        iterations: Iterations at most; 1 is a real-time iteration.
        tolerance: Expected or actual decrease of the cost, relative to it, from which on it is converged.
        least_regularisation: Added to the curvature by actions when a step fails, relative to its greatest entry; tenfold each time.
        most_regularisation: Where it gives up.
        smallest_step: Of the line search, which tries steps from 1 down to it all at once.
    """

    iterations: int = 50
    tolerance: float = 1e-6
    least_regularisation: float = 1e-8
    most_regularisation: float = 1e10
    smallest_step: float = 1e-4

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
    by Gauss-Newton on the tangent space, any other by its exact Hessian. The gains K come with the plan.

    Source: Tassa, Mansard, Todorov, Control-limited differential dynamic programming, ICRA 2014; real-time iteration: Diehl et al., 2005.

    Args:
        dynamics: The model.
        cost: What is minimised.
        options: Of the planner.
        common: See ``Planner``.
    """

    def __init__(self, dynamics: ResidualDynamics, cost: Cost, options: ILQROptions | None = None, **common: Unpack[Common]) -> None:
        super().__init__(dynamics, cost, **common)
        self.options = options or ILQROptions()

    @property
    def iterations(self) -> int:
        """Iterations at most."""
        return self.options.iterations

    def _start(self, problem: Problem, actions: Tensor, warm: Plan | None) -> Iterate:
        iterate = Iterate(actions, actions.new_full(problem.batch, INFINITY))
        if warm is not None and warm.gains is not None and warm.states is not None:
            iterate.states, iterate.gains = warm.states, warm.gains
        return iterate

    def _advance(self, problem: Problem, iterate: Iterate) -> Iterate:
        options, batch = self.options, problem.batch
        warm = None if iterate.states is None or iterate.gains is None else (iterate.states, iterate.gains)
        state = problem.state if batch else problem.state.unsqueeze(0)
        actions = iterate.actions if batch else iterate.actions.unsqueeze(0)
        settings = options.tolerance, options.least_regularisation, options.most_regularisation, options.smallest_step
        found = fused_solve(self.dynamics, state, actions, problem.cost, problem.cost.references.to(state), problem.parameters or {},
                            Box(problem.lower, problem.upper, problem.rate, problem.previous), iterations=self.iterations, settings=settings,
                            until=problem.until, warm=warm)
        if isinstance(found, Refusal):
            raise ValueError(f"ILQR: {found.reason}")
        new, states, gains, costs, info = found if batch else type(found)(*(x[0] for x in found))
        outcome = info[..., 0]
        return Iterate(new, costs, outcome == 0, (info[..., 3] < info[..., 2]) & (outcome != 4), states, gains,
                       iterations=int(info[..., 1].max()), late=outcome == 3, done=True)
