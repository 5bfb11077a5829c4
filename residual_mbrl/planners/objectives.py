"""What is made of the costs under the members of an ensemble."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """``max_w Σ_m w_m costs_m`` over weights that sum to one, each at least zero and at most ``cap``: one number from M costs.

    Members are models of an ensemble (``dynamics.ensemble``), or one model under parameter values shaped [M, *batch].

    Args:
        members: M.
    """

    members: int

    def __post_init__(self) -> None:
        """See that there are members."""
        if self.members < 1:
            raise ValueError(f"{type(self).__name__}: expected at least one member, received {self.members}")

    @property
    @abstractmethod
    def cap(self) -> float:
        """Greatest weight of a member."""

    def weights(self, costs: Float[Tensor, "members *batch"]) -> Float[Tensor, "members *batch"]:
        """Return the weights at the maximum; with them held, the gradient of the objective is that of the sum."""
        order = torch.nan_to_num(costs, nan=float("inf")).argsort(0, descending=True)
        left = 1 - self.cap * torch.arange(self.members, dtype=costs.dtype, device=costs.device)
        ranked = left.clamp(0, self.cap).reshape(-1, *(1,) * (costs.ndim - 1)).expand_as(costs)
        # what rounding leaves of a weight must not bring in a member whose cost is infinite
        ranked = torch.where(ranked < 1e-6 * self.cap, torch.zeros_like(ranked), ranked)
        return torch.zeros_like(costs).scatter(0, order, ranked)

    def reduce(self, costs: Float[Tensor, "members *batch"]) -> Float[Tensor, "*batch"]:
        """Return the objective, not finite where a member with a weight is not."""
        weights = self.weights(costs)
        return torch.where(weights > 0, weights * costs, torch.zeros_like(costs)).sum(0)

    def shifted(self, weights: Float[Tensor, "members *batch"], costs: Float[Tensor, "members *batch"], scale: Tensor) -> Tensor:
        """Return weights moved towards the costlier members, ``w exp(costs / scale)`` within the cap, with which a saddle point is sought.

        A minimum of the objective has a kink where members are alike; it is a smooth minimum under the right weights.
        """
        moved = weights * ((costs - costs.amax(0)) / scale).exp()
        for _ in range(self.members):
            capped = moved >= self.cap * (1 - 1e-12)
            rest = (1 - self.cap * capped.sum(0)).clamp_min(0)
            free = torch.where(capped, torch.zeros_like(moved), moved)
            moved = torch.where(capped, torch.full_like(moved, self.cap), free * (rest / free.sum(0).clamp_min(1e-300)))
        return moved.clamp_max(self.cap)


class Mean(Objective):
    """The mean over members."""

    @property
    def cap(self) -> float:
        """1 / M."""
        return 1 / self.members


class Worst(Objective):
    """The greatest of all members."""

    @property
    def cap(self) -> float:
        """1."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class CVaR(Objective):
    """The mean of the worst fraction of members (conditional value at risk; Rockafellar and Uryasev, 2000).

    Args:
        members: M.
        fraction: Above 0, at most 1; a member on the edge counts in part.
    """

    fraction: float

    def __post_init__(self) -> None:
        """See that the fraction is one."""
        super().__post_init__()
        if not 0 < self.fraction <= 1:
            raise ValueError(f"CVaR: fraction must be above 0 and at most 1, received {self.fraction}")

    @property
    def cap(self) -> float:
        """1 / (M fraction), at most 1."""
        return min(1.0, 1 / (self.members * self.fraction))
