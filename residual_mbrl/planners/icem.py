"""The cross-entropy method with coloured noise and kept elites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from residual_mbrl.costs import Cost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.planners.base import Common, Iterate, Problem
from residual_mbrl.planners.plan import Plan
from residual_mbrl.planners.sampling import Sampling, SamplingOptions, best_of


@dataclass(frozen=True, kw_only=True)
class ICEMOptions(SamplingOptions):
    """Options of ``ICEM``.

    Args:
        elites: Samples that make the next mean and deviation.
        kept: Fraction of the elites that come again in the next iteration, and in the next plan.
        momentum: Part of the old mean and deviation that stays.
        decay: Factor by which the samples shrink from iteration to iteration, at least 1; never below two sets of elites.
    """

    samples: int = 256
    iterations: int = 4
    colour: float = 2.0
    elites: int = 16
    kept: float = 0.3
    momentum: float = 0.1
    decay: float = 1.25

    def __post_init__(self) -> None:
        """See that numbers are in range."""
        super().__post_init__()
        if not 2 <= self.elites <= self.samples:
            raise ValueError(f"ICEMOptions: elites must be 2 to samples, received {self.elites}")
        if not (0 <= self.kept <= 1 and 0 <= self.momentum < 1 and self.decay >= 1):
            raise ValueError(f"ICEMOptions: expected kept in [0, 1], momentum in [0, 1) and decay >= 1, received {self.kept}, "
                             f"{self.momentum}, {self.decay}")


@dataclass
class Population(Iterate):
    """The best sequence, and the distribution that the next samples come from."""

    mean: Tensor | None = None
    """Shape [*batch, H, nu]."""
    std: Tensor | None = None
    """Relative to that of the options, shape [*batch, H, nu]."""
    elites: Tensor | None = None
    """Shape [k, *batch, H, nu]."""


class ICEM(Sampling):
    """Mean and deviation of the best samples make the next distribution; some elites stay, and the best ever seen is what comes out.

    Source: Pinneri et al., Sample-efficient cross-entropy method for real-time planning, CoRL 2020. Unlike there, limits of rates are
    kept too, and elites are shifted with the plan.

    Args:
        dynamics: The model.
        cost: What is minimised.
        options: Of the planner.
        common: See ``Planner``.
    """

    def __init__(self, dynamics: ResidualDynamics, cost: Cost, options: ICEMOptions | None = None, **common: Unpack[Common]) -> None:
        super().__init__(dynamics, cost, options or ICEMOptions(), **common)
        self.options = options or ICEMOptions()

    def _start(self, problem: Problem, actions: Tensor, warm: Plan | None) -> Population:
        elites = None if warm is None else warm.memory.get("elites")
        if elites is not None:
            moved = elites.to(problem.state).movedim(-3, 0)
            elites = problem.project(moved.expand(moved.shape[0], *problem.batch, *moved.shape[-2:]))
        return Population(actions, self.costs(problem, actions), mean=actions, std=torch.ones_like(actions), elites=elites)

    def _advance(self, problem: Problem, iterate: Iterate) -> Population:
        assert isinstance(iterate, Population) and iterate.mean is not None and iterate.std is not None  # noqa: S101  # of ``_start``
        options, last = self.options, iterate.iterations + 1 == self.iterations
        count = max(2 * options.elites, round(options.samples / options.decay**iterate.iterations))
        drawn = problem.project(iterate.mean + iterate.std * self.noise(problem, count))
        parts = [drawn, *([] if iterate.elites is None else [iterate.elites]), *([iterate.mean.unsqueeze(0)] if last else [])]
        samples = torch.cat(parts)
        costs = torch.cat([self.costs(problem, samples), iterate.cost.unsqueeze(0)])
        samples = torch.cat([samples, iterate.actions.unsqueeze(0)])
        least, best = best_of(costs, samples)
        order = costs.topk(options.elites, 0, largest=False).indices
        elites = samples.gather(0, order[..., None, None].expand(*order.shape, *samples.shape[-2:]))
        a, own = options.momentum, self._table(problem)[0]
        mean = a * iterate.mean + (1 - a) * elites.mean(0)
        std = a * iterate.std + (1 - a) * elites.std(0) / own
        kept = elites[: max(1, round(options.kept * options.elites))]
        return Population(best, least, iterations=iterate.iterations + 1, mean=problem.project(mean), std=std, elites=kept,
                          memory={"elites": kept.movedim(0, -3)})
