"""A model with the inputs of one call, ready for a launch of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from residual_mbrl.baselines import Values
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import NotFiniteError
from residual_mbrl.fused.devices import flat_of, plan_on
from residual_mbrl.fused.inputs import constants_on, parameter_rows, read_weights, weight_entries
from residual_mbrl.fused.model import FlatWeights, FusedModel
from residual_mbrl.fused.system import engine

CHANGED, BAD_STATE, BAD_ACTION = 1, 2, 4
"""Bits of a launch's status, as in ``kernels.block_text``."""


class Call:
    """A model with the inputs of one call, flattened: launches, and sees that the weights packed are those of now."""

    def __init__(self, dynamics: ResidualDynamics, model: FusedModel, state: Tensor, actions: Tensor, parameters: Values,
                 schedule: str | None = None) -> None:
        horizon, nu = actions.shape[-2:]
        self.dynamics, self.model, self.batch = dynamics, model, state.shape[:-1]
        flat = state.ndim == 2
        self.state = (state if flat else state.reshape(-1, state.shape[-1])).contiguous()
        self.actions = (actions if flat else actions.reshape(-1, horizon, nu)).contiguous()
        self.parameters = parameter_rows(dynamics, model, self.state, self.batch, parameters).contiguous()
        self.engine = engine(dynamics, model, parameters, state.dtype)
        self.members = model.members[0] if model.members else 1
        self.plan = plan_on(self.engine, self.state, horizon, self.members, schedule)
        self.constants = constants_on(model, state)
        self.weights = [w if w.is_contiguous() else w.contiguous() for form in model.forms for w in form.weights()]
        if self.plan.compares:
            self.flat = model.flat.get(state.dtype) or read_weights(dynamics, model, self.weights, state.dtype)
        else:
            self.flat = FlatWeights(flat_of(self.weights, self.members, self.state), 0)

    def launch(self, kind: str, addresses: dict[str, int], cost: tuple[object, Any] | None = None, learn: bool = False) -> None:
        """Run a kernel that starts from first states.

        Raises:
            NotFiniteError: if a first state, an action or a weight is not finite.
        """
        entries = weight_entries(self.weights, self.members)
        form = None if cost is None else cost[1]
        for _ in range(2):
            status = self.plan.run(
                kind, cost=form, learn=learn, weights=self.flat.values.data_ptr(), version=self.flat.version, entries=entries.address,
                n_entries=len(self.weights), initial=self.state.data_ptr(), actions=self.actions.data_ptr(),
                parameters=self.parameters.data_ptr(), constants=self.constants.data_ptr(), **addresses)
            if status != CHANGED:
                break
            self.flat = read_weights(self.dynamics, self.model, self.weights, self.state.dtype)
        if status:
            raise NotFiniteError(f"rollout: {'state' if status & BAD_STATE else 'actions'} holds values that are not finite")


def parts_of(by_weights: Tensor | None, likes: Sequence[tuple[torch.Size, torch.dtype]]) -> list[Tensor | None]:
    """Cut the gradients of all weights, shape [members, weights], into those of each."""
    if by_weights is None:
        return [None] * len(likes)
    members = by_weights.shape[0]
    parts = by_weights.split([shape.numel() // members for shape, _ in likes], -1)
    return [part.view(shape) if members == 1 and part.dtype == dtype else part.reshape(shape).to(dtype)
            for part, (shape, dtype) in zip(parts, likes, strict=True)]
