"""Model predictive path integral control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from residual_mbrl.costs import Cost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.planners.base import Common, Iterate, Problem
from residual_mbrl.planners.sampling import Sampling, SamplingOptions, best_of


@dataclass(frozen=True, kw_only=True)
class MPPIOptions(SamplingOptions):
    """Options of ``MPPI``.

    Args:
        temperature: λ in the cost's unit; chosen at each iteration for an effective number of samples where missing.
        effective: Fraction of the samples that are to count, where the temperature is chosen.
    """

    samples: int = 1024
    temperature: float | None = None
    effective: float = 0.05

    def __post_init__(self) -> None:
        """See that numbers are in range."""
        super().__post_init__()
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"MPPIOptions: temperature must be above zero, received {self.temperature}")
        if not 0 < self.effective <= 1:
            raise ValueError(f"MPPIOptions: effective must be above 0 and at most 1, received {self.effective}")


TEMPERATURES = torch.logspace(-4, 2, 25, dtype=torch.float64)
"""Candidates for λ, in mean distances to the least cost."""


class MPPI(Sampling):
    """``u ← Σ_k w_k u_k`` with ``w_k ∝ exp(-(J_k - min J) / λ)`` over samples u_k = u + noise, within the limits.

    What comes out is the better of the weighted mean and the best sample, and never worse than what went in. Source: Williams et al.,
    Information theoretic MPC for model-based reinforcement learning, ICRA 2017.

    Args:
        dynamics: The model.
        cost: What is minimised.
        options: Of the planner.
        common: See ``Planner``.
    """

    def __init__(self, dynamics: ResidualDynamics, cost: Cost, options: MPPIOptions | None = None, **common: Unpack[Common]) -> None:
        super().__init__(dynamics, cost, options or MPPIOptions(), **common)
        self.options = options or MPPIOptions()

    def _advance(self, problem: Problem, iterate: Iterate) -> Iterate:
        samples = problem.project(iterate.actions + self.noise(problem, self.options.samples - 1))
        costs = self.costs(problem, samples)
        costs = torch.cat([iterate.cost.unsqueeze(0), costs])
        samples = torch.cat([iterate.actions.unsqueeze(0), samples])
        weights = self._weights(costs)
        mean = problem.project(torch.einsum("n...,n...hu->...hu", weights, samples))
        least, best = best_of(costs, samples)
        mean_cost = self.costs(problem, mean)
        better = mean_cost <= least
        actions = torch.where(better[..., None, None], mean, best)
        return Iterate(actions, torch.where(better, mean_cost, least), iterations=iterate.iterations + 1)

    def _weights(self, costs: Tensor) -> Tensor:
        """Return weights that sum to one, shape [n, *batch]."""
        excess = costs - costs.min(0).values
        if self.options.temperature is not None:
            return torch.softmax(-excess / self.options.temperature, 0)
        finite = torch.isfinite(excess)
        scale = torch.where(finite, excess, torch.zeros_like(excess)).sum(0) / finite.sum(0).clamp_min(1)
        relative = -excess / scale.clamp_min(torch.finfo(costs.dtype).tiny)
        tried = torch.softmax(relative / TEMPERATURES.to(costs).reshape(-1, *(1,) * costs.ndim), 1)
        wanted = self.options.effective * costs.shape[0]
        distance = (1 / tried.square().sum(1)).log().sub(torch.tensor(wanted).log()).abs()
        chosen = distance.argmin(0)
        return tried.gather(0, chosen[None, None].expand(1, *costs.shape)).squeeze(0)
