"""One planner of a chain with what its model is judged by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.controller.interval import Interval
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.planners.base import Planner
from residual_mbrl.rollouts import rollout

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Level:
    """A planner, the model that predicts for it from tick to tick, and how far that is off on a plant that behaves.

    Args:
        planner: What finds the commands.
        name: In the log.
        model: Model at the controller's rate; the planner's own where missing.
        interval: Of the model's one-step errors; learned online where missing.
        ensemble: Models of one structure joined (``dynamics.ensemble``) whose disagreement on a plan is watched.
    """

    planner: Planner
    name: str
    model: ResidualDynamics | None = None
    interval: Interval | None = None
    ensemble: ResidualDynamics | None = None

    @property
    def dynamics(self) -> ResidualDynamics:
        """The model that predicts from tick to tick."""
        return self.planner.dynamics if self.model is None else self.model

    @property
    def dtype(self) -> torch.dtype:
        """The precision that plans are computed in, that of the planner's cost."""
        return self.planner.cost.references.dtype


def disagreement(members: ResidualDynamics, states: Tensor, actions: Tensor) -> Array:
    """Return the standard deviation over the members of what a step leads to, the largest of all steps, shape [ndx].

    Args:
        members: An ensemble.
        states: Where each step begins, shape [H, nx].
        actions: Shape [H, nu].
    """
    space, count = members.baseline.space, next(members.parameters()).shape[0]
    with torch.no_grad():
        after = rollout(members, states[..., : members.space.nx].expand(count, *states.shape), actions.unsqueeze(-2).expand(
            count, *actions.shape[:-1], 1, actions.shape[-1]))[..., 1, : space.nx]
        apart = space.difference(after, after[:1])
        return np.asarray(apart.std(0).amax(0).numpy(), dtype=np.float64)
