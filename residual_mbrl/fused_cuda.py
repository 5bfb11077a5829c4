"""Fused rollouts of a model by the kernels that run a world in each thread, on a CUDA device.

The same models as on the CPU, and the same equations; see ``kernels.cuda``. The kernels have been compiled for GPUs and run thread
by thread on a CPU, but not yet on a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from residual_mbrl.baselines import Values
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.fused_model import FusedModel, engine, parameter_rows

if TYPE_CHECKING:
    from residual_mbrl.kernels.cuda_launch import ThreadEngine
    from residual_mbrl.kernels.launch import Engine

_engines: WeakKeyDictionary[Engine, dict[torch.device, ThreadEngine]] = WeakKeyDictionary()


class ThreadInputs(NamedTuple):
    """A model's inputs as the kernels take them."""

    engine: ThreadEngine
    constants: Tensor
    """Shape [members, constants]."""
    parameters: Tensor
    """Shape [B, parameters]."""
    state: Tensor
    """Shape [B, nx]."""
    actions: Tensor
    """Shape [B, H, nu]."""
    weights: list[Tensor]


def thread_rollout(dynamics: ResidualDynamics, model: FusedModel, state: Tensor, actions: Tensor, parameters: Values) -> Tensor:
    """Return the states, shape [*batch, H + 1, nx], differentiable once in everything.

    Args:
        dynamics: The model.
        model: What ``prepare`` made of it.
        state: Shape [*batch, nx], checked and expanded.
        actions: Shape [*batch, H, nu], checked and expanded.
        parameters: Those the caller gave.
    """
    i = gather(dynamics, model, state, actions, parameters)
    members = model.members[0] if model.members else 1
    states: Tensor = _Rollout.apply(  # type: ignore[no-untyped-call]
        i.engine, members, i.constants, i.state, i.actions, i.parameters, *i.weights)
    return states.reshape(*state.shape[:-1], *states.shape[1:])


def gather(dynamics: ResidualDynamics, model: FusedModel, state: Tensor, actions: Tensor, parameters: Values) -> ThreadInputs:
    """Return the engine of a model on the device of the state, and the inputs in the order of the kernels."""
    x, u = state.reshape(-1, state.shape[-1]), actions.reshape(-1, *actions.shape[-2:])
    return ThreadInputs(_engine(engine(dynamics, model, parameters, state.dtype), state.device),
                        model.constants[state.dtype].to(state.device),
                        parameter_rows(dynamics, model, x, state.shape[:-1], parameters), x, u,
                        [w for form in model.forms for w in form.weights()])


def flat_of(weights: list[Tensor] | tuple[Tensor, ...], members: int, like: Tensor) -> Tensor:
    """Return all weights of each member in one row."""
    if not weights:
        return like.new_zeros(members, 1)
    return torch.cat([w.detach().reshape(members, -1) for w in weights], -1).to(like)


def _engine(built: Engine, device: torch.device) -> ThreadEngine:
    from residual_mbrl.kernels.cuda_launch import ThreadEngine  # noqa: PLC0415  # Warp takes half a second to load

    engines = _engines.setdefault(built, {})
    if device not in engines:
        engines[device] = ThreadEngine(built.system, built.networks, built._squashed, built.real, device)
    return engines[device]


class _Rollout(torch.autograd.Function):
    """The sweeps there and back as one differentiable function."""

    @staticmethod
    def forward(ctx: Any, engine: ThreadEngine, members: int, constants: Tensor, state: Tensor, actions: Tensor, parameters: Tensor,
                *weights: Tensor) -> Tensor:
        """Roll out."""
        state, actions, parameters = state.contiguous(), actions.contiguous(), parameters.contiguous()
        flat = flat_of(weights, members, state)
        states = engine.forward(flat, constants, parameters, state, actions)
        ctx.save_for_backward(flat, constants, parameters, actions, states)
        ctx.engine, ctx.likes = engine, [(w.shape, w.dtype) for w in weights]
        return states

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Sweep back."""
        flat, constants, parameters, actions, states = ctx.saved_tensors
        found = ctx.engine.reverse(flat, constants, parameters, actions, states, grad.contiguous(), learn=any(ctx.needs_input_grad[6:]))
        parts: list[Tensor | None] = [None] * len(ctx.likes)
        if found.weights is not None:
            cut = found.weights.split([shape.numel() // flat.shape[0] for shape, _ in ctx.likes], -1)
            parts = [part.reshape(shape).to(dtype) for part, (shape, dtype) in zip(cut, ctx.likes, strict=True)]
        return None, None, None, found.initial, found.actions, found.parameters, *parts
