"""Rollouts, costs and linearisations of a model in one kernel launch, where every part of the model has a Warp form.

Computed in the precision of the state, on the CPU or, by the same equations (``fused_cuda``), on a CUDA device. Gradients reach first
states, actions, physical parameters and weights; there is no second derivative and no forward mode, and a transform of ``torch.func``
takes the torch loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from residual_mbrl.baselines import Values
from residual_mbrl.costs import Cost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.fused_cuda import flat_of, plan_on
from residual_mbrl.fused_inputs import constants_on, parameter_rows, read_weights, weight_entries
from residual_mbrl.fused_model import FlatWeights, FusedModel, Refusal, prepare
from residual_mbrl.fused_system import engine
from residual_mbrl.spaces import StateSpace

__all__ = ["CostGradient", "Refusal", "fused_cost", "fused_cost_gradient", "fused_jacobians", "fused_rollout"]
CHANGED, BAD_STATE, BAD_ACTION = 1, 2, 4
"""Bits of a launch's status, as in ``kernels.rollout``."""


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


class _Call:
    """A model with the inputs of one call, flattened: launches, and sees that the weights packed are those of now."""

    def __init__(self, dynamics: ResidualDynamics, model: FusedModel, state: Tensor, actions: Tensor, parameters: Values) -> None:
        horizon, nu = actions.shape[-2:]
        self.dynamics, self.model, self.batch = dynamics, model, state.shape[:-1]
        flat = state.ndim == 2
        self.state = (state if flat else state.reshape(-1, state.shape[-1])).contiguous()
        self.actions = (actions if flat else actions.reshape(-1, horizon, nu)).contiguous()
        self.parameters = parameter_rows(dynamics, model, self.state, self.batch, parameters).contiguous()
        self.engine = engine(dynamics, model, parameters, state.dtype)
        self.members = model.members[0] if model.members else 1
        self.plan = plan_on(self.engine, self.state, horizon, self.members)
        self.constants = constants_on(model, state)
        self.weights = [w if w.is_contiguous() else w.contiguous() for form in model.forms for w in form.weights()]
        if self.plan.compares:
            self.flat = model.flat.get(state.dtype) or read_weights(dynamics, model, self.weights, state.dtype)
        else:
            self.flat = FlatWeights(flat_of(self.weights, self.members, self.state), 0)

    def launch(self, kind: str, addresses: dict[str, int], cost: tuple[object, Any] | None = None, learn: bool = False) -> None:
        """Run a kernel that starts from first states.

        Raises:
            ValueError: if a first state, an action or a weight is not finite.
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
            raise ValueError(f"rollout: {'state' if status & BAD_STATE else 'actions'} holds values that are not finite")


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
    call = _Call(dynamics, model, state, actions, parameters)
    inputs = (call.state, call.actions, call.parameters, *call.weights)
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        states: Tensor = _Rollout.apply(call, *inputs)  # type: ignore[no-untyped-call]
    else:
        states = _states(call, None)
    return states if state.ndim == 2 else states.reshape(*state.shape[:-1], *states.shape[1:])


def _states(call: _Call, kept: Any) -> Tensor:
    states = call.state.new_empty(call.state.shape[0], call.actions.shape[1] + 1, call.state.shape[1])
    call.launch("forward", {"states": states.data_ptr(), **_kept(kept)})
    return states


class _Rollout(torch.autograd.Function):
    """The two launches as one differentiable function."""

    @staticmethod
    def forward(ctx: Any, call: _Call, state: Tensor, actions: Tensor, parameters: Tensor, *weights: Tensor) -> Tensor:
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
        return None, by_state, by_actions, by_parameters, *_parts(by_weights, ctx.likes)


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
            parts = _parts(found.weights, [(w.shape, w.dtype) for w in call.weights])
            named = {n: g for n, g in zip(call.model.weight_names, parts, strict=True) if n is not None and g is not None}
    if len(call.batch) == 1:
        return CostGradient(found.costs, found.state, found.actions, named)
    return CostGradient(found.costs.reshape(call.batch), found.state.reshape(state.shape), found.actions.reshape(actions.shape), named)


class _References(NamedTuple):
    values: Tensor
    """Shape [H + 1, nr], or [B, H + 1, nr]."""

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
                  parameters: Values) -> tuple[_Call, tuple[object, Any], _References] | Refusal:
    model = prepare(dynamics, state, actions, parameters)
    if isinstance(model, Refusal):
        return model
    form = _cost_form(cost, references.shape[-1])
    if form is None:
        return Refusal(f"{type(cost).__name__} has no Warp form")
    call = _Call(dynamics, model, state, actions, parameters)
    if references.ndim > 2:
        if any(n > 1 for n in references.shape[:-2]):
            references = references.expand(*call.batch, *references.shape[-2:]).reshape(-1, *references.shape[-2:])
        else:
            references = references.reshape(references.shape[-2:])
    return call, form, _References(references.detach().contiguous())


_cost_forms: WeakKeyDictionary[Cost, tuple[object, Any]] = WeakKeyDictionary()


def _cost_form(cost: Cost, nr: int) -> tuple[object, Any] | None:
    """Return a key and the Warp form of a cost, which is made once."""
    if cost not in _cost_forms:
        form = cost.warp_form()
        if form is None:
            return None
        from residual_mbrl.kernels.system import Cost as WarpCost  # noqa: PLC0415  # half a second that only fused rollouts need

        whole = WarpCost(running=form.running, terminal=form.terminal, nr=nr, key=(form.key, nr))
        _cost_forms[cost] = whole.key, whole
    return _cost_forms[cost]


def _cost_gradient(call: _Call, form: tuple[object, Any], refs: _References, *, learn: bool, parameters: bool = False,
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
    def forward(ctx: Any, call: _Call, form: tuple[object, Any], refs: _References, state: Tensor, actions: Tensor, parameters: Tensor,
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
        return (None, None, None, by_state * scale, by_actions * scale.unsqueeze(-1),
                None if by_parameters is None else by_parameters * scale, *_parts(by_weights, ctx.likes))


def fused_jacobians(dynamics: ResidualDynamics, states: Tensor, actions: Tensor, parameters: Values) -> tuple[Tensor, Tensor] | Refusal:
    """Return A, shape [*batch, H, ndx, ndx], and B, shape [*batch, H, ndx, nu], of every step, without a graph; or why there are none.

    Args:
        dynamics: The model.
        states: Shape [*batch, H + 1, nx], quaternions of unit length.
        actions: Shape [*batch, H, nu].
        parameters: Those the caller gave.
    """
    with torch.no_grad():
        model = prepare(dynamics, states[..., 0, :], actions, parameters)
        if isinstance(model, Refusal):
            return model
        call = _Call(dynamics, model, states[..., 0, :], actions, parameters)
        horizon, nx, nu = actions.shape[-2], states.shape[-1], actions.shape[-1]
        flat = states.reshape(-1, horizon + 1, nx).contiguous()
        a, b = flat.new_empty(flat.shape[0], horizon, nx, nx), flat.new_empty(flat.shape[0], horizon, nx, nu)
        call.launch("linearise", {"states": flat.data_ptr(), "A": a.data_ptr(), "B": b.data_ptr()})
        batch = states.shape[:-2]
        a, b = a.reshape(*batch, horizon, nx, nx), b.reshape(*batch, horizon, nx, nu)
        space = dynamics.space
        if not space.quaternions:
            return a, b
        after = _tangent(space, states[..., 1:, :])
        # columns by the tangent at x: ∂(x ⊞ δ)/∂δ; rows: the tangent of x', ∂(x' ⊖ y)/∂x' = the pseudo-inverse of the same
        return after.mT @ _metric(space, after) @ a @ _tangent(space, states[..., :-1, :]), after.mT @ _metric(space, after) @ b


def _tangent(space: StateSpace, x: Tensor) -> Tensor:
    """Return ``∂(x ⊞ δ)/∂δ`` at zero, shape [*batch, nx, ndx]."""
    out = x.new_zeros(*x.shape, space.ndx)
    row = column = 0
    starts = {q0 for q0, _ in space.quaternions}
    while row < space.nx:
        if row in starts:
            w, i, j, k = (0.5 * x[..., row + n] for n in range(4))
            out[..., row : row + 4, column : column + 3] = torch.stack([-i, -j, -k, w, -k, j, k, w, -i, -j, i, w], -1).unflatten(-1, (4, 3))
            row, column = row + 4, column + 3
        else:
            out[..., row, column] = 1.0
            row, column = row + 1, column + 1
    return out


def _metric(space: StateSpace, tangent: Tensor) -> Tensor:
    """Return the factors of the rows that make the transpose of a tangent its pseudo-inverse: 4 where a quaternion is, else 1."""
    weights = tangent.new_ones(space.nx)
    for q0, _ in space.quaternions:
        weights[q0 : q0 + 4] = 4.0
    return torch.diag(weights)


def _kept(kept: Any) -> dict[str, int]:
    return {} if kept is None else {"keep": 1, "units": kept.address}


def _parts(by_weights: Tensor | None, likes: Sequence[tuple[torch.Size, torch.dtype]]) -> list[Tensor | None]:
    """Cut the gradients of all weights, shape [members, weights], into those of each."""
    if by_weights is None:
        return [None] * len(likes)
    members = by_weights.shape[0]
    parts = by_weights.split([shape.numel() // members for shape, _ in likes], -1)
    return [part.view(shape) if members == 1 and part.dtype == dtype else part.reshape(shape).to(dtype)
            for part, (shape, dtype) in zip(parts, likes, strict=True)]
