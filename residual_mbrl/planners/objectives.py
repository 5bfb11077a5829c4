"""What is made of the costs under the members of an ensemble."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """One number from the costs under M members: ``Σ_m w_m(costs) costs_m`` with weights that sum to one.

    Members are models of an ensemble (``dynamics.ensemble``), or one model under parameter values shaped [M, *batch].

    Args:
        members: M.
    """

    members: int

    def __post_init__(self) -> None:
        """See that there are members."""
        if self.members < 1:
            raise ValueError(f"{type(self).__name__}: expected at least one member, received {self.members}")

    @abstractmethod
    def weights(self, costs: Float[Tensor, "members *batch"]) -> Float[Tensor, "members *batch"]:
        """Return the weight of each member; with them held, the gradient of the objective is that of the sum."""

    def reduce(self, costs: Float[Tensor, "members *batch"]) -> Float[Tensor, "*batch"]:
        """Return the objective, not finite where a member with a weight is not."""
        weights = self.weights(costs)
        return torch.where(weights > 0, weights * costs, torch.zeros_like(costs)).sum(0)


class Mean(Objective):
    """The mean over members."""

    def weights(self, costs: Tensor) -> Tensor:
        """Return 1 / M each."""
        return torch.full_like(costs, 1 / self.members)


class Worst(Objective):
    """The greatest of all members."""

    def weights(self, costs: Tensor) -> Tensor:
        """Return one for the worst member, and for one that is not finite."""
        rank = torch.nan_to_num(costs, nan=float("inf"))
        return torch.nn.functional.one_hot(rank.argmax(0), self.members).movedim(-1, 0).to(costs)


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

    def weights(self, costs: Tensor) -> Tensor:
        """Return 1 / (M fraction) for the worst, what is left for the one on the edge, zero for others."""
        order = torch.nan_to_num(costs, nan=float("inf")).argsort(0, descending=True)
        share = 1 / (self.members * self.fraction)
        left = 1 - share * torch.arange(self.members, dtype=costs.dtype, device=costs.device)
        ranked = left.clamp(0, share).reshape(-1, *(1,) * (costs.ndim - 1)).expand_as(costs)
        return torch.zeros_like(costs).scatter(0, order, ranked)
