"""Rollouts, costs and linearisations of a model in one kernel launch, where every part of the model has a Warp form.

Computed on the CPU in the precision of the state. Gradients reach first states, actions, physical parameters and weights; there is no
second derivative and no forward mode, and a transform of ``torch.func`` takes the torch loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from residual_mbrl.baselines import Values
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.fused_model import FlatWeights, FusedModel, Refusal, engine, flat_weights, parameter_rows, prepare

if TYPE_CHECKING:
    from residual_mbrl.kernels.launch import Engine, Plan

__all__ = ["Refusal", "fused_rollout"]


class _Ready(NamedTuple):
    """What a launch needs."""

    engine: Engine
    plan: Plan
    flat: FlatWeights
    constants: Tensor
    state: Tensor
    """Shape [B, nx], worlds of one member after another."""
    actions: Tensor
    """Shape [B, H, nu]."""
    parameters: Tensor
    """Shape [B, parameters]."""
    weights: list[Tensor]


def fused_rollout(dynamics: ResidualDynamics, state: Tensor, actions: Tensor, parameters: Values) -> Tensor | Refusal:
    """Return the states, or why there are none.

    Args:
        dynamics: The model.
        state: Shape [*batch, nx], checked and expanded.
        actions: Shape [*batch, H, nu], checked and expanded.
        parameters: Those the caller gave.
    """
    model = prepare(dynamics, state, actions, parameters)
    if isinstance(model, Refusal):
        return model
    ready = _gather(dynamics, model, state, actions, parameters)
    states: Tensor = _Rollout.apply(  # type: ignore[no-untyped-call]
        ready.engine, ready.plan, ready.flat, ready.constants, ready.state, ready.actions, ready.parameters, *ready.weights)
    return states if state.ndim == 2 else states.reshape(*state.shape[:-1], *states.shape[1:])  # noqa: PLR2004


def _gather(dynamics: ResidualDynamics, model: FusedModel, state: Tensor, actions: Tensor, parameters: Values) -> _Ready:
    horizon, nu = actions.shape[-2:]
    x, u = state.reshape(-1, state.shape[-1]), actions.reshape(-1, horizon, nu)
    weights = [w for form in model.forms for w in form.weights()]
    built = engine(dynamics, model, parameters, state.dtype)
    plan = built.plan(x.shape[0], horizon, torch.get_num_threads(), members=model.members[0] if model.members else 1)
    return _Ready(built, plan, flat_weights(dynamics, model, weights, state.dtype), model.constants[state.dtype], x, u,
                  parameter_rows(dynamics, model, x, state.shape[:-1], parameters), weights)


class _Rollout(torch.autograd.Function):
    """The two launches as one differentiable function."""

    @staticmethod
    def forward(ctx: Any, built: Engine, plan: Plan, flat: FlatWeights, constants: Tensor, state: Tensor, actions: Tensor,
                parameters: Tensor, *weights: Tensor) -> Tensor:
        """Roll out; units of the networks stay in memory where a reverse sweep may come and they are few."""
        state, actions, parameters = state.contiguous(), actions.contiguous(), parameters.contiguous()
        states = state.new_empty(state.shape[0], actions.shape[1] + 1, state.shape[1])
        kept = plan.keep() if plan.keeps and any(ctx.needs_input_grad) else None
        plan.run("forward", lambda: built.kernel("forward", plan.schedule), weights=flat.values.data_ptr(), version=flat.version,
                 constants=constants.data_ptr(), parameters=parameters.data_ptr(), initial=state.data_ptr(), actions=actions.data_ptr(),
                 states=states.data_ptr(), **_kept(kept))
        ctx.save_for_backward(actions, parameters, constants, states)
        ctx.engine, ctx.plan, ctx.kept, ctx.flat = built, plan, kept, flat
        ctx.likes = [(w.shape, w.dtype) for w in weights]
        return states

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Sweep back."""
        actions, parameters, constants, states = ctx.saved_tensors
        flat, plan, learn = ctx.flat, ctx.plan, any(ctx.needs_input_grad[7:])
        grad = grad.contiguous()
        by_state, by_actions = states.new_empty(states.shape[0], states.shape[2]), torch.empty_like(actions)
        by_parameters, by_weights = torch.empty_like(parameters), torch.empty_like(flat.values) if learn else None
        plan.run("reverse", lambda: ctx.engine.kernel("reverse", plan.schedule), weights=flat.values.data_ptr(), version=flat.version,
                 learn=learn, constants=constants.data_ptr(), parameters=parameters.data_ptr(), states=states.data_ptr(),
                 actions=actions.data_ptr(), grad_states=grad.data_ptr(), grad_initial=by_state.data_ptr(),
                 grad_actions=by_actions.data_ptr(), grad_parameters=by_parameters.data_ptr(),
                 grad_weights=0 if by_weights is None else by_weights.data_ptr(), **_kept(ctx.kept))
        return None, None, None, None, by_state, by_actions, by_parameters, *_parts(by_weights, ctx.likes)


def _kept(kept: Any) -> dict[str, int]:
    return {} if kept is None else {"keep": 1, "units": kept.address}


def _parts(by_weights: Tensor | None, likes: Sequence[tuple[torch.Size, torch.dtype]]) -> list[Tensor | None]:
    """Cut the gradients of all weights, shape [members, weights], into those of each."""
    if by_weights is None:
        return [None] * len(likes)
    members = by_weights.shape[0]
    parts = by_weights.split([shape.numel() // members for shape, _ in likes], -1)
    return [part.reshape(shape).to(dtype) for part, (shape, dtype) in zip(parts, likes, strict=True)]
