"""A first plan from many starts: where a cost has several local minima, the one that a single start ends in is an accident."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from residual_mbrl.costs import Cost
from residual_mbrl.planners.base import Planner
from residual_mbrl.planners.noise import colouring
from residual_mbrl.planners.plan import Plan


def best_from_starts(planner: Planner, state: Float[Tensor, " nx"], starts: int = 16, *, cost: Cost | None = None,
                     std: float | None = None, colour: float = 2.0, seed: int = 0) -> Plan:
    """Return the cheapest of the plans that a planner finds from its own start and from slow random actions, all in one batch.

    For the first plan of a loop: later ones begin at the one before.

    Args:
        planner: What improves each start, such as ``ILQR``; its model must take a batch.
        state: Where the plan begins, one state.
        starts: How many, its own start included.
        cost: Replaces the planner's own.
        std: Standard deviation of the random actions, in the action's unit; half of the limits' half range where missing.
        colour: Exponent of their spectrum, see ``noise.colouring``.
        seed: Of the random actions.

    Raises:
        ValueError: if there is no start, or ``std`` is missing where an action has no limits.
    """
    space = planner.dynamics.space
    lower, upper = planner.limits.action(space.nu)
    deviation = 0.25 * (upper - lower) if std is None else torch.full_like(lower, std)
    if starts < 1 or not bool((torch.isfinite(deviation) & (deviation > 0)).all()):
        raise ValueError("best_from_starts: expected at least one start, and a positive std, which is needed where an action has no "
                         f"limits; received {starts}, {deviation.tolist()}")
    spectrum = colouring(planner.steps, colour)
    noise = torch.randn(starts, space.nu, len(spectrum), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noise[0] = 0.0
    actions = planner.initial + (noise @ spectrum).mT * deviation
    rows = actions.new_zeros(starts)
    warm = Plan(actions=torch.clamp(actions, lower, upper).to(state.dtype), states=None, cost=rows, status=rows.long(), iterations=0,
                seconds=0.0, dt=planner.dt)
    found = planner.plan(state.expand(starts, -1), warm, cost=cost)
    best = int(torch.where(found.usable, found.cost, torch.full_like(found.cost, float("inf"))).argmin())
    return one_of(found, best)


def one_of(plan: Plan, index: int) -> Plan:
    """Return one element of a batch of plans."""
    def taken(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[index]

    return replace(plan, actions=plan.actions[index], cost=plan.cost[index], status=plan.status[index], states=taken(plan.states),
                   gains=taken(plan.gains), violation=taken(plan.violation), memory={n: x[index] for n, x in plan.memory.items()})
