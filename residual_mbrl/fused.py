"""Rollouts of a model in one kernel launch forward and one back, where every part of the model has a Warp form.

A model is compiled once a structure: normalisers, bounds, parameter values and weights are data. Computed in float32 on the
CPU. Gradients reach the first state, actions, physical parameters and weights; there is no second derivative and no forward
mode, and a transform of ``torch.func`` takes the torch loop.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from residual_mbrl.baselines import Values
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.physics.mechanical import MechanicalBaseline
from residual_mbrl.physics.mechanical_warp import StepOptions, WarpTerms, warp_step
from residual_mbrl.residuals.warp_form import WarpForm, WarpFunction, collected, port_type, summed

if TYPE_CHECKING:
    from residual_mbrl.kernels.launch import Engine, Plan

STRUCTURES = 64
"""Compiled structures that are remembered."""


class Refusal(NamedTuple):
    """Why a rollout cannot be fused."""

    reason: str


class FlatWeights(NamedTuple):
    """All weights of a model in one float32 vector."""

    values: Tensor
    version: int
    """Never the same for other values."""


@dataclass
class Fused:
    """A model ready for fused rollouts."""

    terms: WarpTerms
    forms: tuple[WarpForm, ...]
    constants: Tensor
    residuals: list[object]
    settings: tuple[tuple[Mapping[str, object], tuple[str, ...], list[object]], ...]
    buffers: tuple[tuple[Mapping[str, object], str, Tensor, int], ...]
    shapes: list[torch.Size]
    """Of the weights."""
    values: dict[tuple[float, ...], Tensor]
    """The row of parameter values made last."""
    engines: dict[StepOptions, Engine] = field(default_factory=dict)
    flat: FlatWeights | None = None
    """The weights that the last rollout had."""


_ready: WeakKeyDictionary[ResidualDynamics, Fused] = WeakKeyDictionary()
_engines: OrderedDict[tuple[object, ...], Engine] = OrderedDict()
_lock = Lock()
_versions = count()


def fused_rollout(dynamics: ResidualDynamics, state: Tensor, actions: Tensor, parameters: Values) -> Tensor | Refusal:
    """Return the states, or why there are none.

    Args:
        dynamics: The model.
        state: Shape [*batch, nx], checked and expanded.
        actions: Shape [*batch, H, nu], checked and expanded.
        parameters: Those the caller gave.
    """
    ready = _prepare(dynamics, state, actions, parameters)
    if isinstance(ready, Refusal):
        return ready
    batch, (horizon, nu) = state.shape[:-1], actions.shape[-2:]
    x, u = state.reshape(-1, state.shape[-1]), actions.reshape(-1, horizon, nu)
    p = _parameter_rows(dynamics, ready, x, batch, parameters)
    weights = [w for form in ready.forms for w in form.weights()]
    flat = _flat_weights(dynamics, ready, weights)
    plan = _engine(dynamics, ready, parameters).plan(x.shape[0], horizon, torch.get_num_threads())
    states: Tensor = _Rollout.apply(  # type: ignore[no-untyped-call]
        plan, flat, ready.constants, x, u, p, *weights)
    return states if states.shape[:-2] == batch else states.reshape(*batch, horizon + 1, x.shape[-1])


class _Rollout(torch.autograd.Function):
    """The two launches as one differentiable function."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, flat: FlatWeights, constants: Tensor, state: Tensor, actions: Tensor, parameters: Tensor,
                *weights: Tensor) -> Tensor:
        """Roll out; units of the networks stay in memory where a reverse sweep may come and they are few."""
        state, actions, parameters = state.contiguous(), actions.contiguous(), parameters.contiguous()
        states = state.new_empty(state.shape[0], actions.shape[1] + 1, state.shape[1])
        kept = plan.keep() if plan.keeps and any(ctx.needs_input_grad) else None
        plan.forward(weights=flat.values.data_ptr(), version=flat.version, constants=constants.data_ptr(),
                     parameters=parameters.data_ptr(), initial=state.data_ptr(), actions=actions.data_ptr(), states=states.data_ptr(),
                     kept=kept)
        ctx.save_for_backward(actions, parameters, constants, states)
        ctx.plan, ctx.kept, ctx.flat = plan, kept, flat
        ctx.likes = [(w.shape, w.dtype) for w in weights]
        return states

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Sweep back."""
        actions, parameters, constants, states = ctx.saved_tensors
        flat: FlatWeights = ctx.flat
        grad, likes = grad.contiguous(), ctx.likes
        by_state, by_actions = states.new_empty(states.shape[0], states.shape[2]), torch.empty_like(actions)
        by_parameters = torch.empty_like(parameters)
        by_weights = torch.empty_like(flat.values) if any(ctx.needs_input_grad[6:]) else None
        ctx.plan.reverse(weights=flat.values.data_ptr(), version=flat.version, constants=constants.data_ptr(),
                         parameters=parameters.data_ptr(), states=states.data_ptr(), actions=actions.data_ptr(),
                         grad_states=grad.data_ptr(), grad_initial=by_state.data_ptr(), grad_actions=by_actions.data_ptr(),
                         grad_parameters=by_parameters.data_ptr(),
                         grad_weights=None if by_weights is None else by_weights.data_ptr(), kept=ctx.kept)
        if by_weights is None:
            return None, None, None, by_state, by_actions, by_parameters, *(None for _ in likes)
        parts = by_weights.split([shape.numel() for shape, _ in likes])
        return (None, None, None, by_state, by_actions, by_parameters,
                *(part.reshape(shape).to(dtype) for part, (shape, dtype) in zip(parts, likes, strict=True)))


def _prepare(dynamics: ResidualDynamics, state: Tensor, actions: Tensor, parameters: Values) -> Fused | Refusal:
    if state.dtype != torch.float32 or state.device.type != "cpu":
        return Refusal(f"fused rollouts are float32 on the CPU, not {state.dtype} on {state.device}")
    if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        return Refusal("a torch.func transform or forward-mode differentiation is active")
    live = [n for n in parameters if n not in dynamics.values]
    if live:
        return Refusal(f"live additions {live} are given")
    if state.numel() == 0 or actions.numel() == 0:
        return Refusal("the batch is empty")
    ready = _ready.get(dynamics)
    if ready is None or not _is_current(ready, dynamics):
        made = _make(dynamics)
        if isinstance(made, Refusal):
            return made
        ready = _ready[dynamics] = made
    return ready


def _make(dynamics: ResidualDynamics) -> Fused | Refusal:
    baseline = dynamics.baseline
    if type(dynamics).step is not ResidualDynamics.step or not isinstance(baseline, MechanicalBaseline):
        return Refusal(f"{type(dynamics).__name__} of {type(baseline).__name__} has no Warp form")
    terms = baseline.warp_terms()
    if terms is None or not _speaks_for(baseline, "warp_terms", ("mass_matrix", "smooth_force", "damping", "frictionloss", "terms")):
        return Refusal(f"{type(baseline).__name__} has no Warp form of its equations")
    if type(baseline).step is not MechanicalBaseline.step or type(baseline)._substep is not MechanicalBaseline._substep:
        return Refusal(f"{type(baseline).__name__} has a step of its own")
    if baseline.space.nv > 2 or baseline.space.na or baseline.substeps > 16:
        return Refusal(f"{type(baseline).__name__}: expected at most 2 degrees of freedom, 16 substeps and no activation")
    forms = []
    for residual in dynamics.corrections:
        form = residual.warp_form(baseline.space) if _speaks_for(residual, "warp_form", ("forward",)) else None
        if form is None:
            return Refusal(f"the residual {residual.name} has no Warp form (or carries members)")
        forms.append(form)
    constants = torch.cat([*(f.constants.float() for f in forms), torch.zeros(1)]).contiguous()
    buffers = tuple((m._buffers, n, b, b._version) for m in dynamics.residuals.modules() for n, b in m._buffers.items() if b is not None)
    return Fused(terms, tuple(forms), constants, list(dynamics.residuals._modules.values()), _settings(dynamics), buffers,
                 _shapes(forms), {})


def _speaks_for(part: object, form: str, names: Sequence[str]) -> bool:
    """Tell whether a Warp form belongs to the torch form in use: no subclass below the form's has changed the equations."""
    order = type(part).__mro__
    owner = next(i for i, c in enumerate(order) if form in vars(c))
    return all(owner <= next((i for i, c in enumerate(order) if n in vars(c)), owner) for n in names)


def _settings(dynamics: ResidualDynamics) -> tuple[tuple[Mapping[str, object], tuple[str, ...], list[object]], ...]:
    """Everything but weights, values and normalisers that a compiled model depends on: attributes, their names, and what they are now."""
    found = []
    for part in (dynamics.baseline, *dynamics.residuals):
        names = tuple(n for n, v in vars(part).items() if isinstance(v, int | float | str | tuple))
        found.append((vars(part), names, [vars(part)[n] for n in names]))
    return tuple(found)


def _shapes(forms: Sequence[WarpForm]) -> list[torch.Size]:
    return [w.shape for form in forms for w in form.weights()]


def _is_current(ready: Fused, dynamics: ResidualDynamics) -> bool:
    # functional_call exchanges weights for those of many copies under a model that was prepared with one
    return (ready.residuals == list(dynamics.residuals._modules.values()) and _shapes(ready.forms) == ready.shapes
            and all([d[n] for n in names] == values for d, names, values in ready.settings)
            and not any(d.get(n) is not t or t._version != v for d, n, t, v in ready.buffers))


def _parameter_rows(dynamics: ResidualDynamics, ready: Fused, like: Tensor, batch: torch.Size, parameters: Values) -> Tensor:
    """Values of all parameters in order, shape [B, parameters]."""
    own = tuple(dynamics.values.values())
    if own not in ready.values:
        ready.values.clear()
        names = dynamics.baseline.parameters.names
        ready.values[own] = torch.tensor([dynamics.values[n] for n in names], dtype=torch.float32)
    row = ready.values[own]
    if not parameters:
        return row.expand(like.shape[0], -1)
    columns = [parameters[n].to(like).expand(batch) if n in parameters else row[i].expand(batch)
               for i, n in enumerate(dynamics.baseline.parameters.names)]
    return torch.stack(columns, -1).reshape(like.shape[0], -1)


def _flat_weights(dynamics: ResidualDynamics, ready: Fused, weights: Sequence[Tensor]) -> FlatWeights:
    """Return the weights in order. Values are compared, since a version counter misses what is written through ``.data``."""
    with torch.no_grad():
        values = torch.cat([w.reshape(-1) for w in weights]).float() if weights else torch.zeros(1)
    last = ready.flat
    if last is not None and torch.equal(values, last.values):
        return last
    if not _is_finite(values):
        raise ValueError(f"rollout: weights of {_overflowing(dynamics)} are not finite in float32")
    ready.flat = FlatWeights(values, next(_versions))
    return ready.flat


def _is_finite(values: Tensor) -> bool:
    return math.isfinite(float(values.sum())) or bool(torch.isfinite(values).all())


def _overflowing(dynamics: ResidualDynamics) -> str:
    """Name the residuals whose weights are not finite in float32."""
    def broken(module: nn.Module) -> bool:
        return any(not bool(torch.isfinite(w.detach().float()).all()) for w in module.parameters())

    return ", ".join(r.name for r in dynamics.corrections if broken(r)) or "the residuals"


def _engine(dynamics: ResidualDynamics, ready: Fused, parameters: Values) -> Engine:
    def acts(names: Sequence[str]) -> bool:
        given = [parameters[n] for n in names if n in parameters]
        return any(dynamics.values[n] != 0 for n in names if n not in parameters) or any(x.requires_grad or bool(x.any()) for x in given)

    baseline = dynamics.baseline
    if not isinstance(baseline, MechanicalBaseline):
        raise TypeError(f"expected a MechanicalBaseline, received {type(baseline).__name__}")
    options = StepOptions(baseline.dt, baseline.substeps, baseline.integrator, acts(ready.terms.damping_parameters),
                          acts(ready.terms.friction_parameters), any(f.damping for f in ready.forms), any(f.friction for f in ready.forms))
    if options not in ready.engines:
        key = (type(baseline), tuple(baseline.parameters.names), options, tuple((f.key, f.sizes, f.squashed) for f in ready.forms))
        with _lock:
            if key not in _engines:
                _engines[key] = _built(baseline, ready.terms, options, ready.forms)
                while len(_engines) > STRUCTURES:
                    _engines.popitem(last=False)
            _engines.move_to_end(key)
            ready.engines[options] = _engines[key]
    return ready.engines[options]


def _built(baseline: MechanicalBaseline, terms: WarpTerms, options: StepOptions, forms: Sequence[WarpForm]) -> Engine:
    """Put the Warp functions of system and residuals together."""
    import warp as wp  # noqa: PLC0415  # half a second that only fused rollouts need

    from residual_mbrl.kernels.lanes import vector  # noqa: PLC0415
    from residual_mbrl.kernels.launch import Engine  # noqa: PLC0415
    from residual_mbrl.kernels.rollout import System  # noqa: PLC0415

    space = baseline.space
    step = warp_step(terms, space.nv, options)
    if step is None:
        raise RuntimeError(f"{type(baseline).__name__}: the step has no Warp form")
    entries: list[WarpFunction] = []
    emits: list[WarpFunction] = []
    y0 = c0 = 0
    for form in forms:
        entries += form.entries(c0)
        emits.append(form.emit(y0, c0))
        y0, c0 = y0 + form.sizes[-1], c0 + form.constants.numel()
    nz = len(entries)
    inputs, port = vector(max(nz, 1)), port_type(space.nv)

    features, ports = collected(inputs, entries), summed(port, emits)

    @wp.func
    def advance(x: Any, u: Any, y: Any, p: Any, c: Any) -> Any:
        return step(x, u, ports(y, x, u, c), p)

    system = System(features, advance, nx=space.nx, nu=space.nu, nz=max(nz, 1), ny=max(y0, 1), np=len(baseline.parameters), nc=c0 + 1)
    return Engine(system, [f.sizes for f in forms], [f.squashed for f in forms])
