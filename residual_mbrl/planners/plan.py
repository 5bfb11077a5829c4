"""What a planner answers with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from residual_mbrl.status import PlanStatus


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Actions over a horizon, and what is known of them.

    Attributes:
        actions: Each held for ``dt`` seconds, within the limits, shape [*batch, H, nu].
        states: Predicted by the model, under an objective by its first member, shape [*batch, H + 1, nx], the first state included; None
            where the planner computes none.
        cost: Shape [*batch]; infinite where it could not be computed.
        status: ``PlanStatus`` of each element, int64, shape [*batch].
        iterations: Iterations that were made.
        seconds: Wall time that was taken.
        dt: Seconds of a step.
        gains: Feedback ``u = actions[t] + gains[t] (x ⊖ states[t])``, shape [*batch, H, nu, ndx]; None where there is none.
        violation: Greatest violation of state limits and inequalities, shape [*batch]; None where there are none.
        memory: What the planner wants to see again in ``warm``, by name; the second last dimension is time.
    """

    actions: Tensor
    states: Tensor | None
    cost: Tensor
    status: Tensor
    iterations: int
    seconds: float
    dt: float
    gains: Tensor | None = None
    violation: Tensor | None = None
    memory: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def outcome(self) -> PlanStatus:
        """Status of a single plan, or the worst of a batch."""
        return PlanStatus(int(self.status.max()))

    @property
    def usable(self) -> Tensor:
        """Whether each plan was computed from finite numbers and keeps its limits, shape [*batch]."""
        return self.status < PlanStatus.INFEASIBLE


def shift(plan: Plan, steps: int) -> Plan:
    """Return a plan as a warm start so many steps later: the first actions are dropped, the last one is held.

    Args:
        plan: A plan.
        steps: Steps of the model, at least 0.
    """
    if steps < 0:
        raise ValueError(f"shift: steps must be at least 0, received {steps}")
    if steps == 0:
        return plan
    memory = {n: _later(m, steps) for n, m in plan.memory.items()}
    states = None if plan.states is None else _later(plan.states, steps)
    gains = None if plan.gains is None else _later(plan.gains, steps, -3)
    return replace(plan, actions=_later(plan.actions, steps), states=states, gains=gains, memory=memory)


def _later(x: Tensor, steps: int, axis: int = -2) -> Tensor:
    length = x.shape[axis]
    kept, last = x.narrow(axis, min(steps, length - 1), length - min(steps, length - 1)), x.narrow(axis, length - 1, 1)
    shape = list(x.shape)
    shape[axis] = length - kept.shape[axis]
    return torch.cat([kept, last.expand(shape)], axis)
