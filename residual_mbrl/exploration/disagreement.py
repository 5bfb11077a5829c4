"""Excitation by what the members of an ensemble do not agree about."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.exploration.excitation import SearchOptions, search_actions
from residual_mbrl.rollouts import rollout
from residual_mbrl.tasks import Task

Array = NDArray[np.float64]


def disagreement_excitation(dynamics: ResidualDynamics, task: Task, steps: int, seed: int, scale: float | Tensor = 1.0,
                            options: SearchOptions | None = None) -> Array:
    """Return the actions under which the members' predictions part most, shape [steps, nu].

    Args:
        dynamics: An ensemble, as ``dynamics.ensemble`` joins one.
        task: Gives start and range.
        steps: How many.
        seed: Of the search and of the first state.
        scale: What a difference of each entry of the tangent is counted in, shape [ndx] or a number.
        options: How actions are found.

    Raises:
        ValueError: if the model is no ensemble.
    """
    members = dynamics.members
    if members < 2:
        raise ValueError("disagreement_excitation: expected an ensemble of at least two members")
    first, space = task.starts(seed, 1)[0], dynamics.baseline.space

    def spread(actions: Tensor) -> Tensor:
        x = first.expand(members, actions.shape[0], first.shape[-1])
        with torch.no_grad():
            states = rollout(dynamics, x, actions.expand(members, *actions.shape))[..., : space.nx]
        return (space.difference(states, states[:1]) / scale).var(0).sum(-1).mean(-1)

    found: Array = search_actions(spread, task, dynamics.dt, steps, seed, options or SearchOptions()).numpy()
    return found
