"""Rollouts of a model in one kernel launch, where every part of the model has a Warp form.

Computed in the precision of the state, on the CPU or, by the same equations (``devices``), on a CUDA device. Gradients reach first
states, actions, physical parameters and weights; there is no second derivative and no forward mode, and a transform of ``torch.func``
takes the torch loop.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from residual_mbrl.baselines import Values
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.fused.call import Call, parts_of
from residual_mbrl.fused.model import Refusal, prepare


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
    call = Call(dynamics, model, state, actions, parameters)
    inputs = (call.state, call.actions, call.parameters, *call.weights)
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        states: Tensor = _Rollout.apply(call, *inputs)  # type: ignore[no-untyped-call]
    else:
        states = _states(call, None)
    return states if state.ndim == 2 else states.reshape(*state.shape[:-1], *states.shape[1:])


def _states(call: Call, kept: Any) -> Tensor:
    states = call.state.new_empty(call.state.shape[0], call.actions.shape[1] + 1, call.state.shape[1])
    call.launch("forward", {"states": states.data_ptr(), **_kept(kept)})
    return states


class _Rollout(torch.autograd.Function):
    """The two launches as one differentiable function."""

    @staticmethod
    def forward(ctx: Any, call: Call, state: Tensor, actions: Tensor, parameters: Tensor, *weights: Tensor) -> Tensor:
        """Roll out; units of the networks stay in memory where they are few."""
        kept = call.plan.keep() if call.plan.keeps else None
        states = _states(call, kept)
        ctx.save_for_backward(actions, parameters, states)
        ctx.constants, ctx.plan, ctx.kept, ctx.flat = call.constants, call.plan, kept, call.flat
        ctx.likes = [(w.shape, w.dtype) for w in weights]
        return states

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Sweep back."""
        actions, parameters, states = ctx.saved_tensors
        flat, plan, learn = ctx.flat, ctx.plan, any(ctx.needs_input_grad[4:])
        grad = grad.contiguous()
        by_state, by_actions = states.new_empty(states.shape[0], states.shape[2]), torch.empty_like(actions)
        by_parameters, by_weights = torch.empty_like(parameters), torch.empty_like(flat.values) if learn else None
        plan.run("reverse", weights=flat.values.data_ptr(), version=flat.version, learn=learn, constants=ctx.constants.data_ptr(),
                 parameters=parameters.data_ptr(), states=states.data_ptr(), actions=actions.data_ptr(), grad_states=grad.data_ptr(),
                 grad_initial=by_state.data_ptr(), grad_actions=by_actions.data_ptr(), grad_parameters=by_parameters.data_ptr(),
                 grad_weights=0 if by_weights is None else by_weights.data_ptr(), **_kept(ctx.kept))
        return None, by_state, by_actions, by_parameters, *parts_of(by_weights, ctx.likes)


def _kept(kept: Any) -> dict[str, int]:
    return {} if kept is None else {"keep": 1, "units": kept.address}
