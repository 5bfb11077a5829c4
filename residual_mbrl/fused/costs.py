"""Costs of rollouts and their gradients in one kernel launch there and back; see ``states``."""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from residual_mbrl.baselines import Values
from residual_mbrl.costs import Cost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.fused.call import Call, parts_of
from residual_mbrl.fused.model import Refusal, prepare


class CostGradient(NamedTuple):
    """Costs of a batch of rollouts and the gradients of their sum."""

    costs: Tensor
    """Shape [*batch]."""
    state: Tensor
    """By the first states, shape [*batch, nx]."""
    actions: Tensor
    """By the actions, shape [*batch, H, nu]."""
    weights: dict[str, Tensor]
    """By the weights, by name; empty unless asked for."""


def fused_cost(dynamics: ResidualDynamics, state: Tensor, actions: Tensor, cost: Cost, references: Tensor,
               parameters: Values) -> Tensor | Refusal:
    """Return the cost of each world, shape [*batch], or why there is none; differentiable but by the references.

    Args:
        dynamics: The model.
        state: Shape [*batch, nx], checked and expanded.
        actions: Shape [*batch, H, nu], checked and expanded.
        cost: Running and terminal cost.
        references: Shape [*#batch, H + 1, nr].
        parameters: Those the caller gave.
    """
    prepared = _prepare_cost(dynamics, state, actions, cost, references, parameters)
    if isinstance(prepared, Refusal):
        return prepared
    call, form, refs = prepared
    inputs = (call.state, call.actions, call.parameters, *call.weights)
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        costs: Tensor = _Cost.apply(call, form, refs, *inputs)  # type: ignore[no-untyped-call]
    else:
        costs = call.state.new_empty(call.state.shape[0])
        call.launch("cost", {"costs": costs.data_ptr(), **refs.addresses}, form)
    return costs.reshape(call.batch)


def fused_cost_gradient(dynamics: ResidualDynamics, state: Tensor, actions: Tensor, cost: Cost, references: Tensor, parameters: Values,
                        *, weights: bool) -> CostGradient | Refusal:
    """Return costs and the gradients of their sum in one launch there and back, or why there are none; arguments as ``fused_cost``."""
    prepared = _prepare_cost(dynamics, state, actions, cost, references, parameters)
    if isinstance(prepared, Refusal):
        return prepared
    call, form, refs = prepared
    if weights and (None in call.model.weight_names or any(f.drive is not None for f in call.model.forms)):
        return Refusal("a residual's weights enter by way of others: differentiate rollout_cost for their gradient")
    with torch.no_grad():
        found = _cost_gradient(call, form, refs, learn=weights)
        named: dict[str, Tensor] = {}
        if found.weights is not None:
            parts = parts_of(found.weights, [(w.shape, w.dtype) for w in call.weights])
            named = {n: g for n, g in zip(call.model.weight_names, parts, strict=True) if n is not None and g is not None}
    if len(call.batch) == 1:
        return CostGradient(found.costs, found.state, found.actions, named)
    return CostGradient(found.costs.reshape(call.batch), found.state.reshape(state.shape), found.actions.reshape(actions.shape), named)


class References(NamedTuple):
    """References of a cost, flattened for a launch."""

    values: Tensor
    """Shape [H + 1, nr], or [B, H + 1, nr]."""

    @classmethod
    def over(cls, batch: torch.Size, references: Tensor) -> References:
        """Return the references [*#batch, rows, nr] of a batch: one for all worlds, or one each."""
        if references.ndim > 2:
            if any(n > 1 for n in references.shape[:-2]):
                references = references.expand(*batch, *references.shape[-2:]).reshape(-1, *references.shape[-2:])
            else:
                references = references.reshape(references.shape[-2:])
        return cls(references.detach().contiguous())

    @property
    def addresses(self) -> dict[str, int]:
        """For a launch."""
        stride = self.values.shape[-2] * self.values.shape[-1] if self.values.ndim == 3 else 0
        return {"references": self.values.data_ptr(), "reference_stride": stride, "reference_rows": self.values.shape[-2]}


class _Found(NamedTuple):
    costs: Tensor
    state: Tensor
    actions: Tensor
    parameters: Tensor | None
    weights: Tensor | None
    """Shape [members, weights]."""


def _prepare_cost(dynamics: ResidualDynamics, state: Tensor, actions: Tensor, cost: Cost, references: Tensor,
                  parameters: Values) -> tuple[Call, tuple[object, Any], References] | Refusal:
    model = prepare(dynamics, state, actions, parameters)
    if isinstance(model, Refusal):
        return model
    form = cost_form(cost, references.shape[-1])
    if form is None:
        return Refusal(f"{type(cost).__name__} has no Warp form")
    call = Call(dynamics, model, state, actions, parameters)
    return call, form, References.over(call.batch, references)


_cost_forms: WeakKeyDictionary[Cost, tuple[object, Any]] = WeakKeyDictionary()


def cost_form(cost: Cost, nr: int) -> tuple[object, Any] | None:
    """Return a key and the Warp form of a cost, which is made once."""
    if cost not in _cost_forms:
        form = cost.warp_form()
        if form is None:
            return None
        from residual_mbrl.kernels.system import Cost as WarpCost  # noqa: PLC0415  # half a second that only fused rollouts need

        whole = WarpCost(running=form.running, terminal=form.terminal, nr=nr, key=(form.key, nr), squares=form.squares, curved=form.curved,
                         terminal_squares=form.terminal_squares, terminal_curved=form.terminal_curved)
        _cost_forms[cost] = whole.key, whole
    return _cost_forms[cost]


def _cost_gradient(call: Call, form: tuple[object, Any], refs: References, *, learn: bool, parameters: bool = False,
                   seeds: Tensor | None = None) -> _Found:
    x, u, p = call.state, call.actions, call.parameters
    found = _Found(x.new_empty(x.shape[0]), torch.empty_like(x), torch.empty_like(u), torch.empty_like(p) if parameters else None,
                   torch.empty_like(call.flat.values) if learn else None)
    outputs = {"costs": found.costs, "grad_initial": found.state, "grad_actions": found.actions, "grad_parameters": found.parameters,
               "grad_weights": found.weights, "seeds": seeds}
    call.launch("cost_gradient", {**{n: 0 if t is None else t.data_ptr() for n, t in outputs.items()}, **refs.addresses}, form, learn)
    return found


class _Cost(torch.autograd.Function):
    """Costs, whose gradients are computed on the way."""

    @staticmethod
    def forward(ctx: Any, call: Call, form: tuple[object, Any], refs: References, state: Tensor, actions: Tensor, parameters: Tensor,
                *weights: Tensor) -> Tensor:
        """Go there and back in one launch."""
        found = _cost_gradient(call, form, refs, learn=any(ctx.needs_input_grad[6:]), parameters=ctx.needs_input_grad[5])
        ctx.save_for_backward(found.state, found.actions, found.parameters, found.weights)
        ctx.again = call, form, refs, call.flat
        ctx.likes = [(w.shape, w.dtype) for w in weights]
        return found.costs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what was computed; gradients of the weights are summed over worlds, so worlds of different weight go again."""
        by_state, by_actions, by_parameters, by_weights = ctx.saved_tensors
        if by_weights is not None:
            if bool((grad == grad[0]).all()):
                by_weights = by_weights * grad[0]
            else:
                call, form, refs, call.flat = ctx.again
                by_weights = _cost_gradient(call, form, refs, learn=True, seeds=grad.contiguous()).weights
        scale = grad.unsqueeze(-1)
        return (None, None, None, by_state * scale if ctx.needs_input_grad[3] else None,
                by_actions * scale.unsqueeze(-1) if ctx.needs_input_grad[4] else None,
                None if by_parameters is None else by_parameters * scale, *parts_of(by_weights, ctx.likes))
