"""What a trained policy and its value give to a planner: where to begin, and what comes after the horizon."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from residual_mbrl.costs import Cost, WarpCost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.policies.base import Policy
from residual_mbrl.policies.value import Value
from residual_mbrl.policy_rollouts import Loop, policy_rollout
from residual_mbrl.tasks import WithoutEnd

FUSED_WEIGHTS = 700
"""Weights of a value that a fused cost unrolls; a larger one runs in torch."""


def warm_actions(dynamics: ResidualDynamics, policy: Policy, state: Tensor, cost: Cost, horizon: int) -> Tensor:
    """Return the actions of a policy over a horizon, where a planner may begin, shape [*batch, H, nu].

    Args:
        dynamics: The model.
        policy: Without goals.
        state: Shape [*batch, nx].
        cost: Any that fits the model.
        horizon: H.
    """
    return policy_rollout(dynamics, policy, state, WithoutEnd(cost), horizon, Loop()).actions


class ValueCost(Cost):
    """A running cost with the discounted cost to come, ``weight · V(x_H)``, at the end.

    The value's weights stand in the references: they are data, and a value that is trained further compiles nothing anew.

    Args:
        cost: Its running part counts, its terminal part does not.
        value: Without goals.
        weight: Of the value, such as γ^H.
    """

    def __init__(self, cost: Cost, value: Value, weight: float = 1.0) -> None:
        if value.goal_size:
            raise ValueError("ValueCost: expected a value without goals")
        self.cost, self.value, self.weight = cost, value, weight
        self._own = cost.references.shape[-1]

    @property
    def references(self) -> Tensor:
        """Those of the cost, and behind them scales and weights of the value, shape [*#batch, 2 or H + 1, nr]."""
        own, form = self.cost.references, self.value.warp_form()
        numbers = torch.cat([form.constants, *(w.detach().reshape(-1).to(form.constants) for w in form.weights())])
        return torch.cat([own.to(numbers), numbers.expand(*own.shape[:-1], -1)], -1)

    def running(self, state: Tensor, action: Tensor, reference: Tensor) -> Tensor:
        """Return the cost of a step, shape [*batch]."""
        return self.cost.running(state, action, reference[..., : self._own])

    def terminal(self, state: Tensor, reference: Tensor) -> Tensor:
        """Return the weighted value, shape [*batch]."""
        found: Tensor = self.value(state)
        return self.weight * found

    def warp_form(self) -> WarpCost | None:
        """Return the same functions in Warp; None where the cost has none or the value is large."""
        import warp as wp  # noqa: PLC0415  # only fused rollouts need it

        own, form, n, weight = self.cost.warp_form(), self.value.warp_form(), self._own, self.weight
        count = sum(w.numel() for w in self.value.network.parameters())
        if own is None or form.emit is None or count > FUSED_WEIGHTS:
            return None
        entries, emit, sizes, constants = form.entries(0), form.emit(0, 0), form.sizes, form.constants.shape[-1]
        given_running = own.running

        def running(x: Any, u: Any, r: Any) -> Any:
            return given_running(x, u, r[0:n])

        def terminal(x: Any, r: Any) -> Any:
            c, w = r[n : n + constants], r[n + constants :]
            units, at = [entry(x, x, x, c) for entry in entries], 0
            for k in range(len(sizes) - 1):
                above = []
                for j in range(sizes[k + 1]):
                    total = w[at + sizes[k] * sizes[k + 1] + j]
                    for i in range(sizes[k]):
                        total = total + units[i] * w[at + i * sizes[k + 1] + j]
                    above.append(wp.tanh(total) if k < len(sizes) - 2 else total)
                units, at = above, at + (sizes[k] + 1) * sizes[k + 1]
            return weight * emit(units, x, x, x, c)

        return WarpCost(("value", own.key, form.key, sizes, weight), running, terminal)
