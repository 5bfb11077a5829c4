"""A planner as a policy: the first action of a plan from where the plant is."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from residual_mbrl.policies.base import Policy
from residual_mbrl.spaces import StateSpace


class Plans(Protocol):
    """What is asked of a planner: ``plan(state [*batch, nx], warm)`` with ``.actions`` [*batch, H, nu]."""

    def plan(self, state: Tensor, warm: Any = None) -> Any:
        """Return a plan."""


class PlannedPolicy(Policy):
    """``u = plan(x).actions[0]``, each plan begun as the planner begins one without a warm start; not differentiable.

    Args:
        planner: Plans in a model of the plant.
        space: Of the plant, without residual memory.
    """

    def __init__(self, planner: Plans, space: StateSpace) -> None:
        super().__init__(space)
        self.planner = planner

    def forward(self, state: Tensor, noise: Tensor | None = None, goal: Tensor | None = None) -> Tensor:
        """Return the first action of a plan, shape [*batch, nu]."""
        actions: Tensor = self.planner.plan(self.known(state.detach(), goal)).actions
        return actions[..., 0, :]
