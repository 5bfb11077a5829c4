"""Actions that excite a plant: held for a while each, drawn at random or searched for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.tasks import Task

Array = NDArray[np.float64]
Excite = Callable[[ResidualDynamics, Task, int, int], Array]
"""From a model, a task, steps and a seed to actions [steps, nu]."""


def random_excitation(dynamics: ResidualDynamics, task: Task, steps: int, seed: int, *, hold: float = 0.2) -> Array:
    """Return actions that jump every ``hold`` seconds to anywhere in the task's range, shape [steps, nu]."""
    every = max(1, round(hold / dynamics.dt))
    generator = torch.Generator().manual_seed(seed)
    knots = torch.rand(-(-steps // every), len(task.low), generator=generator, dtype=torch.float64)
    found: Array = _held(task, 2 * knots - 1, every, steps).numpy()
    return found


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How actions are searched for: the cross-entropy method over the levels between jumps.

    Args:
        hold: Seconds between jumps.
        candidates: Of each iteration.
        elites: Of them the next iteration is drawn from.
        iterations: Made.
        share: Of the range that actions use.
    """

    hold: float = 0.1
    candidates: int = 64
    elites: int = 8
    iterations: int = 15
    share: float = 1.0


def search_actions(score: Callable[[Tensor], Tensor], task: Task, dt: float, steps: int, seed: int, options: SearchOptions) -> Tensor:
    """Return the actions of the highest score found, shape [steps, nu].

    Args:
        score: From actions [candidates, steps, nu] to scores [candidates]; what is not finite counts as the lowest.
        task: Gives the range.
        dt: Seconds of a step.
        steps: How many.
        seed: Of the search.
        options: How.
    """
    every, nu = max(1, round(options.hold / dt)), len(task.low)
    shape, generator = (-(-steps // every), nu), torch.Generator().manual_seed(seed)
    mean, std = torch.zeros(shape, dtype=torch.float64), torch.ones(shape, dtype=torch.float64)
    best, kept = -float("inf"), torch.zeros(0, *shape, dtype=torch.float64)
    for k in range(options.iterations):
        if k == 0:  # all levels alike likely; later ones near what was best
            drawn = 2 * torch.rand(options.candidates, *shape, generator=generator, dtype=torch.float64) - 1
        else:
            drawn = mean + std * torch.randn(options.candidates, *shape, generator=generator, dtype=torch.float64)
        knots = torch.cat([kept, drawn.clamp(-options.share, options.share)])
        scores = score(_held(task, knots, every, steps)).double().nan_to_num(-torch.inf, -torch.inf, -torch.inf)
        order = scores.argsort(descending=True)[: options.elites]
        kept = knots[order]
        mean, std = kept.mean(0), kept.std(0).clamp_min(0.05)
        best = max(best, float(scores[order[0]]))
    return _held(task, kept[:1], every, steps)[0]


def _held(task: Task, knots: Tensor, every: int, steps: int) -> Tensor:
    """Return actions [*batch, steps, nu] from levels in [-1, 1], shape [*batch, knots, nu]."""
    low, high = task.low.double(), task.high.double()
    levels = 0.5 * (low + high) + 0.5 * (high - low) * knots.clamp(-1, 1)
    return levels.repeat_interleave(every, -2)[..., :steps, :]
