"""Excitation by what the members of an ensemble do not agree about."""

from __future__ import annotations

import logging

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.exploration.excitation import SearchOptions, random_excitation, search_actions
from residual_mbrl.rollouts import rollout
from residual_mbrl.tasks import Task

Array = NDArray[np.float64]
log = logging.getLogger(__name__)
ALIKE = 1e-14
"""Variance below which members count as alike: what rounding makes, in squares of the scale."""


def disagreement_excitation(dynamics: ResidualDynamics, task: Task, steps: int, seed: int, scale: float | Tensor = 1.0,
                            options: SearchOptions | None = None) -> Array:
    """Return the actions under which the members' predictions part most, shape [steps, nu].

    Members that nothing was fitted to are alike and part nowhere; actions are then those of ``random_excitation``, and the log says so.

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

    best = search_actions(spread, task, dynamics.dt, steps, seed, options or SearchOptions())
    if not float(spread(best.unsqueeze(0))) > ALIKE:
        log.info("disagreement_excitation: no actions part the members; they are random")
        return random_excitation(dynamics, task, steps, seed)
    found: Array = best.numpy()
    return found
