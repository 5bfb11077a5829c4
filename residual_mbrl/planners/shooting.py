"""Gradient descent on the actions themselves, from many starts at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Unpack

import torch
from torch import Tensor

from residual_mbrl.costs import Cost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.planners.base import INFINITY, Common, Iterate, Problem
from residual_mbrl.planners.plan import Plan
from residual_mbrl.planners.sampling import Sampling, SamplingOptions, best_of
from residual_mbrl.rollouts import cost_gradient


@dataclass(frozen=True, kw_only=True)
class ShootingOptions(SamplingOptions):
    """Options of ``Shooting``.

    Args:
        samples: Starts: the warm start, and noise around it.
        method: "lbfgs" or "adam".
        tolerance: Relative decrease of the cost from which a start is converged (L-BFGS).
        memory: Pairs that L-BFGS remembers.
        step_sizes: That a line search of L-BFGS tries at once.
        learning_rate: Of Adam, in standard deviations of the noise.
    """

    samples: int = 8
    iterations: int = 60
    colour: float = 2.0
    method: Literal["lbfgs", "adam"] = "lbfgs"
    tolerance: float = 1e-6
    memory: int = 10
    step_sizes: int = 8
    learning_rate: float = 0.1

    def __post_init__(self) -> None:
        """See that numbers are in range."""
        if self.samples != 1:
            super().__post_init__()
        if self.method not in ("lbfgs", "adam"):
            raise ValueError(f"ShootingOptions: method must be lbfgs or adam, received {self.method!r}")
        if not (self.tolerance > 0 and self.memory >= 1 and self.step_sizes >= 2 and self.learning_rate > 0):
            raise ValueError("ShootingOptions: expected tolerance > 0, memory >= 1, step_sizes >= 2 and learning_rate > 0, received "
                             f"{self.tolerance}, {self.memory}, {self.step_sizes}, {self.learning_rate}")


@dataclass
class Starts(Iterate):
    """All starts with their gradients, and what the method remembers."""

    values: Tensor | None = None
    """Knots or actions, shape [starts, *batch, rows, nu]."""
    costs: Tensor | None = None
    """Shape [starts, *batch]."""
    gradient: Tensor | None = None
    """As values."""
    pairs: tuple[tuple[Tensor, Tensor], ...] = ()
    """Of L-BFGS: steps and changes of the gradient; of Adam: one pair of moments."""


class Shooting(Sampling):
    """``u ← P(u - H g)`` with the gradient g of the whole rollout, P the projection onto the limits, H from L-BFGS or Adam.

    Entries at a limit that the gradient pushes further out are held for the step. The line search of L-BFGS tries all step sizes of all
    starts in one launch. What comes out is the best of all starts. Sources: Nocedal and Wright, Numerical Optimization, ch. 7 (L-BFGS)
    and 16.7 (projected search); Kingma and Ba, Adam, 2015.

    Args:
        dynamics: The model.
        cost: What is minimised.
        options: Of the planner.
        common: See ``Planner``.
    """

    def __init__(self, dynamics: ResidualDynamics, cost: Cost, options: ShootingOptions | None = None, **common: Unpack[Common]) -> None:
        super().__init__(dynamics, cost, options or ShootingOptions(), **common)
        self.options = options or ShootingOptions()

    def _start(self, problem: Problem, actions: Tensor, warm: Plan | None) -> Starts:
        values = actions.unsqueeze(0)
        knots = self._table(problem)[2]
        if knots is not None:
            values = torch.linalg.pinv(knots) @ values
        if self.options.samples > 1:
            white = self._generator_noise(problem, self.options.samples - 1)
            values = torch.cat([values, values + white])
        values = torch.clamp(values, problem.lower, problem.upper)
        found, gradient = self._gradient(problem, values)
        first = self.costs(problem, actions)
        least, best = best_of(found, self._actions(problem, values))
        better = least < first
        return Starts(torch.where(better[..., None, None], best, actions), torch.minimum(least, first), improved=torch.zeros_like(better),
                      values=values, costs=found, gradient=gradient)

    def _generator_noise(self, problem: Problem, count: int) -> Tensor:
        """Return noise of the values: knots where there are some."""
        own, colour, _ = self._table(problem)
        columns = (self.options.knots or self.steps) if colour is None else colour.shape[0]
        white = torch.randn(count, *problem.batch, len(own), columns, generator=self._generator, dtype=problem.state.dtype)
        return (white if colour is None else white @ colour).mT * own

    def _actions(self, problem: Problem, values: Tensor) -> Tensor:
        knots = self._table(problem)[2]
        return problem.project(values if knots is None else knots @ values)

    def _gradient(self, problem: Problem, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return costs and the gradient by the values."""
        actions = self._actions(problem, values)
        state, each, parameters = self._members(problem, actions)
        found = cost_gradient(self.dynamics, state, each, problem.cost, parameters)
        costs, by = found.costs, found.actions
        if self.objective is not None:
            weights = self.objective.weights(costs)
            costs, by = self.objective.reduce(costs), (weights[..., None, None] * by).sum(0)
        knots = self._table(problem)[2]
        by = by if knots is None else knots.mT @ by
        finite = torch.isfinite(costs) & torch.isfinite(by).all(-1).all(-1)
        return torch.where(finite, costs, torch.full_like(costs, INFINITY)), torch.where(finite[..., None, None], by, torch.zeros_like(by))

    def _advance(self, problem: Problem, iterate: Iterate) -> Starts:
        assert isinstance(iterate, Starts) and iterate.values is not None and iterate.costs is not None  # noqa: S101  # of ``_start``
        step = self._lbfgs if self.options.method == "lbfgs" else self._adam
        values, pairs = step(problem, iterate)
        costs, gradient = self._gradient(problem, values)
        least, best = best_of(costs, self._actions(problem, values))
        better = least < iterate.cost
        flat = (iterate.costs - costs <= self.options.tolerance * costs.abs()) & torch.isfinite(costs)
        converged = flat.all(0) if self.options.method == "lbfgs" else torch.zeros_like(better)
        assert iterate.improved is not None and iterate.gradient is not None  # noqa: S101  # of ``_start``
        if self.options.method == "lbfgs":
            pairs = (*pairs[-self.options.memory + 1 :], (values - iterate.values, gradient - iterate.gradient))
        return Starts(torch.where(better[..., None, None], best, iterate.actions), torch.minimum(least, iterate.cost), converged,
                      iterate.improved | better, iterations=iterate.iterations + 1, values=values, costs=costs, gradient=gradient,
                      pairs=pairs)

    def _lbfgs(self, problem: Problem, iterate: Starts) -> tuple[Tensor, tuple[tuple[Tensor, Tensor], ...]]:
        values, g = iterate.values, iterate.gradient
        assert values is not None and g is not None and iterate.costs is not None  # noqa: S101  # of ``_start``
        held = ((values <= problem.lower) & (g > 0)) | ((values >= problem.upper) & (g < 0))
        direction = torch.where(held, torch.zeros_like(g), -_two_loops(torch.where(held, torch.zeros_like(g), g), iterate.pairs))
        uphill = (direction * g).sum((-2, -1), keepdim=True) > 0
        direction = torch.where(uphill, torch.where(held, torch.zeros_like(g), -g), direction)
        scale = torch.ones_like(iterate.costs)
        if not iterate.pairs:  # the first step moves by a standard deviation at most
            scale = 1 / (direction / self._table(problem)[0]).abs().amax((-2, -1)).clamp_min(1e-30)
        sizes = torch.cat([0.4 ** torch.arange(-1, self.options.step_sizes - 2), torch.tensor([1e-4])]).to(values)
        tried = values + sizes.reshape(-1, *(1,) * values.ndim) * scale[..., None, None] * direction
        tried = torch.clamp(tried, problem.lower, problem.upper)
        costs = self.costs(problem, self._actions(problem, tried))
        least, which = costs.min(0)
        index = which[None, ..., None, None].expand(1, *values.shape)
        better = least < iterate.costs
        return torch.where(better[..., None, None], tried.gather(0, index).squeeze(0), values), iterate.pairs

    def _adam(self, problem: Problem, iterate: Starts) -> tuple[Tensor, tuple[tuple[Tensor, Tensor], ...]]:
        values, g = iterate.values, iterate.gradient
        assert values is not None and g is not None  # noqa: S101  # of ``_start``
        first, second = iterate.pairs[0] if iterate.pairs else (torch.zeros_like(g), torch.zeros_like(g))
        first, second, t = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g.square(), iterate.iterations + 1
        step = (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-12)
        moved = values - self.options.learning_rate * self._table(problem)[0] * step
        return torch.clamp(moved, problem.lower, problem.upper), ((first, second),)

    def _finish(self, problem: Problem, iterate: Iterate) -> Iterate:
        improved = iterate.improved
        return replace(super()._finish(problem, iterate), improved=improved)


def _two_loops(g: Tensor, pairs: tuple[tuple[Tensor, Tensor], ...]) -> Tensor:
    """Return L-BFGS's ``H g`` of each start; pairs without positive curvature are passed over."""
    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((-2, -1), keepdim=True)

    q, kept = g, []
    for s, y in reversed(pairs):
        sy = dot(s, y)
        rho = torch.where(sy > 1e-10 * dot(y, y).sqrt() * dot(s, s).sqrt(), 1 / sy, torch.zeros_like(sy))
        rho = torch.nan_to_num(rho, posinf=0.0)
        alpha = rho * dot(s, q)
        q = q - alpha * y
        kept.append((s, y, rho, alpha))
    if pairs:
        s, y = pairs[-1]
        sy, yy = dot(s, y), dot(y, y)
        q = torch.where((sy > 0) & (yy > 0), sy / yy.clamp_min(1e-30), torch.ones_like(sy)) * q
    for s, y, rho, alpha in reversed(kept):
        q = q + s * (alpha - rho * dot(y, q))
    return q
