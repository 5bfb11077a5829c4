"""A model as a fused rollout needs it: its Warp functions joined, its weights, constants and parameter values in rows.

A model is compiled once a structure: normalisers, bounds, parameter values and weights are data.
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

from residual_mbrl.baselines import Baseline, Port, Values, WarpFunction
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.physics.mechanical import MechanicalBaseline
from residual_mbrl.physics.mechanical_warp import StepOptions, WarpTerms, warp_substep
from residual_mbrl.residuals.base import Residual
from residual_mbrl.residuals.features import FeatureMap
from residual_mbrl.residuals.networks import Perceptron
from residual_mbrl.residuals.warp_form import WarpForm, port_type, summed

if TYPE_CHECKING:
    from residual_mbrl.kernels.launch import Engine

STRUCTURES = 64
"""Compiled structures that are remembered."""
REALS = {torch.float32: "float", torch.float64: "double"}
EQUATIONS = ("port", "live", "forward", "next_memory", "_delayed", "_lagged", "_outputs", "matrix", "_inputs", "_ridge", "_linear")
"""What a residual's Warp form speaks for; anything else that residuals have, a fused rollout takes as it is or does not use."""


class Refusal(NamedTuple):
    """Why a rollout cannot be fused."""

    reason: str


class FlatWeights(NamedTuple):
    """All weights of a model in one vector a member."""

    values: Tensor
    """Shape [members, weights]."""
    version: int
    """Never the same for other values."""


class Settings(NamedTuple):
    """What a compiled model depends on besides weights, values and normalisers: attributes of a part, and what they were."""

    owner: Mapping[str, object]
    names: tuple[str, ...]
    values: list[object]


@dataclass
class FusedModel:
    """A model ready for fused rollouts."""

    terms: WarpTerms | None
    forms: tuple[WarpForm, ...]
    residuals: list[object]
    settings: tuple[Settings, ...]
    buffers: tuple[tuple[Mapping[str, object], str, Tensor, int], ...]
    shapes: list[torch.Size]
    """Of the weights."""
    members: torch.Size
    """Leading dimensions of the weights: none, or the members of an ensemble."""
    constants: dict[torch.dtype, Tensor]
    """Rows [members, constants]."""
    names: tuple[str, ...]
    """Of the physical parameters in order."""
    values: dict[tuple[object, ...], Tensor] = field(default_factory=dict)
    """The row of parameter values made last."""
    engines: dict[tuple[object, ...], Engine] = field(default_factory=dict)
    flat: dict[torch.dtype, FlatWeights] = field(default_factory=dict)
    """The weights that the last rollout had."""


_ready: WeakKeyDictionary[ResidualDynamics, FusedModel] = WeakKeyDictionary()
_engines: OrderedDict[tuple[object, ...], Engine] = OrderedDict()
_lock = Lock()
_versions = count()


def prepare(dynamics: ResidualDynamics, state: Tensor, actions: Tensor, parameters: Values) -> FusedModel | Refusal:
    """Return a model ready to run on these inputs, or why there is none; arguments as ``rollout`` has checked and expanded them."""
    refused = _refused_inputs(dynamics, state, actions, parameters)
    if refused is not None:
        return refused
    ready = _ready.get(dynamics)
    if ready is None or not _is_current(ready, dynamics):
        made = _make(dynamics)
        if isinstance(made, Refusal):
            return made
        ready = _ready[dynamics] = made
    if ready.members and state.shape[:-1][:1] != ready.members:
        return Refusal(f"weights of {ready.members[0]} members need states [{ready.members[0]}, ...], received {tuple(state.shape)}")
    return ready


def _refused_inputs(dynamics: ResidualDynamics, state: Tensor, actions: Tensor, parameters: Values) -> Refusal | None:
    if state.dtype not in REALS or state.device.type != "cpu":
        return Refusal(f"fused rollouts are float32 or float64 on the CPU, not {state.dtype} on {state.device}")
    if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        return Refusal("a torch.func transform or forward-mode differentiation is active")
    live = [n for n in parameters if n not in dynamics.values]
    if live:
        return Refusal(f"live additions {live} are given")
    return Refusal("the batch is empty") if state.numel() == 0 or actions.numel() == 0 else None


def _make(dynamics: ResidualDynamics) -> FusedModel | Refusal:
    terms = _terms(dynamics)
    if isinstance(terms, Refusal):
        return terms
    forms = _forms(dynamics, terms)
    if isinstance(forms, Refusal):
        return forms
    members = {w.shape[:-k] for form in forms for w, k in _with_ranks(form) if w.ndim > k}
    if len(members) > 1 or any(len(m) > 1 for m in members) or (members and any(w.ndim == k for f in forms for w, k in _with_ranks(f))):
        return Refusal("weights of different members are mixed")
    leading = members.pop() if members else torch.Size()
    rows = [f.constants.reshape(-1, f.constants.shape[-1]).expand(leading[0] if leading else 1, -1) for f in forms]
    constants = torch.cat([*rows, torch.zeros(leading[0] if leading else 1, 1, dtype=torch.float64)], -1)
    buffers = tuple((m._buffers, n, b, b._version) for m in dynamics.residuals.modules() for n, b in m._buffers.items() if b is not None)
    return FusedModel(terms, forms, list(dynamics.residuals._modules.values()), _settings(dynamics), buffers, _shapes(forms), leading,
                      {d: constants.to(d).contiguous() for d in REALS}, tuple(dynamics.baseline.parameters.names))


def _terms(dynamics: ResidualDynamics) -> WarpTerms | Refusal | None:
    """Return the terms of a mechanical baseline, None for another that has a Warp step, or why there is neither."""
    baseline = dynamics.baseline
    name, none = type(baseline).__name__, Refusal(f"{type(baseline).__name__} has no Warp form of its equations")
    if any(getattr(type(dynamics), n) is not getattr(ResidualDynamics, n) for n in ("step", "correction", "remember", "_seen")):
        return Refusal(f"{type(dynamics).__name__} has a step of its own")
    if not isinstance(baseline, MechanicalBaseline):
        return none if baseline.warp_step() is None or not _speaks_for(baseline, "warp_step", ("step",)) else None
    if type(baseline).step is not MechanicalBaseline.step or type(baseline)._substep is not MechanicalBaseline._substep:
        return Refusal(f"{name} has a step of its own")
    terms = baseline.warp_terms()
    if terms is None or not _speaks_for(baseline, "warp_terms", ("mass_matrix", "smooth_force", "damping", "frictionloss", "terms")):
        return none
    if baseline.space.nq != baseline.space.nv or baseline.space.na:
        return Refusal(f"the Warp form of a mechanical step has no quaternions or activations, as {name} has")
    return terms


def _forms(dynamics: ResidualDynamics, terms: WarpTerms | None) -> tuple[WarpForm, ...] | Refusal:
    """Return the Warp forms of the residuals, or why there are none."""
    baseline, forms = dynamics.baseline, []
    signals = baseline.warp_signals() if _speaks_for(baseline, "warp_signals", ("signals",)) else {}
    space = baseline.space
    known = baseline.signals(torch.zeros(space.nx, dtype=torch.float64), torch.zeros(space.nu, dtype=torch.float64))
    hidden = (known.keys() - signals.keys()) & {*space.state_names, *space.action, "position", "velocity", "action"}
    if dynamics.residuals and hidden:
        return Refusal(f"signals {sorted(hidden)} of {type(baseline).__name__} stand before entries of the same name and have no Warp form")
    for residual in dynamics.corrections:
        form = residual.warp_form(space, signals) if _is_as_written(residual) else None
        if form is None:
            return Refusal(f"the residual {residual.name} has no Warp form")
        if residual.memory_names and form.drive is None:
            return Refusal(f"the Warp form of {residual.name} does not say what it remembers")
        if terms is None and (form.damping or form.friction):
            return Refusal(f"the Warp form of {type(baseline).__name__} takes no live damping or friction, as {residual.name} adds")
        forms.append(form)
    return tuple(forms)


def _with_ranks(form: WarpForm) -> list[tuple[Tensor, int]]:
    """Weights with the number of dimensions that one member's have."""
    return [*((w, 2 - i % 2) for i, w in enumerate(form.weights())), *((s, 1) for s in form.scalars())]


def _speaks_for(part: object, form: str, names: Sequence[str]) -> bool:
    """Tell whether a Warp form belongs to the torch form in use: no subclass below the form's has changed the equations."""
    order = type(part).__mro__
    owner = next(i for i, c in enumerate(order) if form in vars(c))
    return all(owner <= next((i for i, c in enumerate(order) if n in vars(c)), owner) for n in names)


def _is_as_written(residual: Residual) -> bool:
    """Tell whether a residual, the features and the network within are those that a Warp form speaks for."""
    parts = ((FeatureMap, ("forward", "_transform")), (Perceptron, ("forward",)))
    return _speaks_for(residual, "warp_form", EQUATIONS) and all(
        getattr(type(m), n) is getattr(kind, n) for m in residual.modules() for kind, names in parts if isinstance(m, kind) for n in names)


def _settings(dynamics: ResidualDynamics) -> tuple[Settings, ...]:
    found = []
    for part in (dynamics.baseline, *dynamics.residuals):
        names = tuple(n for n, v in vars(part).items() if v is None or isinstance(v, int | float | str | tuple))
        found.append(Settings(vars(part), names, [vars(part)[n] for n in names]))
    return tuple(found)


def _shapes(forms: Sequence[WarpForm]) -> list[torch.Size]:
    return [w.shape for form in forms for w in (*form.weights(), *form.scalars())]


def _is_current(ready: FusedModel, dynamics: ResidualDynamics) -> bool:
    # functional_call exchanges weights for those of many copies under a model that was prepared with one
    return (ready.residuals == list(dynamics.residuals._modules.values()) and _shapes(ready.forms) == ready.shapes
            and all([d[n] for n in names] == values for d, names, values in ready.settings)
            and not any(d.get(n) is not t or t._version != v for d, n, t, v in ready.buffers))


def parameter_rows(dynamics: ResidualDynamics, ready: FusedModel, like: Tensor, batch: torch.Size, parameters: Values) -> Tensor:
    """Return values of all parameters in order, and weights that are no network's, shape [B, parameters]; differentiable."""
    own = (like.dtype, *dynamics.values.values())
    if own not in ready.values:
        ready.values.clear()
        ready.values[own] = torch.tensor([*(dynamics.values[n] for n in ready.names), 0.0], dtype=like.dtype)
    row = ready.values[own]
    scalars = [s for form in ready.forms for s in form.scalars()]
    if not parameters and not scalars:
        return row.expand(like.shape[0], -1)
    parts = [row[:-1].expand(*batch, -1)]
    if parameters:
        parts = [torch.stack([parameters[n].to(like).expand(batch) if n in parameters else row[i].expand(batch)
                              for i, n in enumerate(ready.names)], -1)]
    one = (1,) * (len(batch) - len(ready.members))
    parts += [s.to(like).reshape(*ready.members, *one, s.shape[-1]).expand(*batch, -1) for s in scalars]
    return torch.cat([*parts, row[-1:].expand(*batch, 1)], -1).reshape(like.shape[0], -1)


def flat_weights(dynamics: ResidualDynamics, ready: FusedModel, weights: Sequence[Tensor], dtype: torch.dtype) -> FlatWeights:
    """Return the weights in order. Values are compared, since a version counter misses what is written through ``.data``."""
    members = ready.members[0] if ready.members else 1
    with torch.no_grad():
        values = torch.cat([w.reshape(members, -1) for w in weights], -1).to(dtype) if weights else torch.zeros(members, 1, dtype=dtype)
    last = ready.flat.get(dtype)
    if last is not None and torch.equal(values, last.values):
        return last
    if not math.isfinite(float(values.sum())) and not bool(torch.isfinite(values).all()):
        raise ValueError(f"rollout: weights of {_overflowing(dynamics, dtype)} are not finite in {str(dtype).removeprefix('torch.')}")
    found = ready.flat[dtype] = FlatWeights(values, next(_versions))
    return found


def _overflowing(dynamics: ResidualDynamics, dtype: torch.dtype) -> str:
    """Name the residuals whose weights are not finite."""
    def broken(module: nn.Module) -> bool:
        return any(not bool(torch.isfinite(w.detach().to(dtype)).all()) for w in module.parameters())

    return ", ".join(r.name for r in dynamics.corrections if broken(r)) or "the residuals"


def engine(dynamics: ResidualDynamics, ready: FusedModel, parameters: Values, dtype: torch.dtype) -> Engine:
    """Return what runs a model, compiled when its structure is first seen."""
    def acts(names: Sequence[str]) -> bool:
        given = [parameters[n] for n in names if n in parameters]
        return any(dynamics.values[n] != 0 for n in names if n not in parameters) or any(x.requires_grad or bool(x.any()) for x in given)

    terms = ready.terms
    found = (dtype, *(() if terms is None else (acts(terms.damping_parameters), acts(terms.friction_parameters))))
    if found not in ready.engines:
        step = _step(dynamics, ready, found[1:])
        key = (_identity(dynamics.baseline), found, tuple((f.key, f.sizes, f.squashed) for f in ready.forms))
        with _lock:
            if key not in _engines:
                _engines[key] = _built(dynamics, ready.forms, step, REALS[dtype])
                while len(_engines) > STRUCTURES:
                    _engines.popitem(last=False)
            _engines.move_to_end(key)
            ready.engines[found] = _engines[key]
    return ready.engines[found]


class _Same:
    """An object as a part of a key: equal to itself alone, and kept alive by it."""

    def __init__(self, thing: object) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.thing is other.thing

    def __hash__(self) -> int:
        return id(self.thing)


def _identity(baseline: Baseline) -> tuple[object, ...]:
    """Return all of a baseline that its Warp functions may have been made from; parameter values come at run time."""
    own = {n: v if isinstance(v, int | float | str | tuple) else _Same(v) for n, v in vars(baseline).items()
           if n not in ("parameters", "live")}
    return type(baseline), tuple(baseline.parameters.names), *own.items()


def _step(dynamics: ResidualDynamics, ready: FusedModel, acts: Sequence[bool]) -> tuple[WarpFunction, int]:
    """Return ``substep(x, u, port, p)`` and how many there are in a step."""
    baseline, terms = dynamics.baseline, ready.terms
    if terms is None or not isinstance(baseline, MechanicalBaseline):
        step = baseline.warp_step()
        if step is None:
            raise RuntimeError(f"{type(baseline).__name__} has no Warp form any more")
        own, nv = step.substep, baseline.space.nv
        return (lambda x, u, port, p: own(x, u, port[0:nv], p)), step.substeps
    options = StepOptions(baseline.dt, baseline.substeps, baseline.integrator, acts[0], acts[1], any(f.damping for f in ready.forms),
                          any(f.friction for f in ready.forms))
    return warp_substep(terms, baseline.space.nv, options), baseline.substeps


def _built(dynamics: ResidualDynamics, forms: Sequence[WarpForm], step: tuple[WarpFunction, int], real: str) -> Engine:
    """Put the Warp functions of system and residuals together."""
    from residual_mbrl.kernels.launch import Engine  # noqa: PLC0415  # Warp takes half a second to load, only for fused rollouts
    from residual_mbrl.kernels.system import System  # noqa: PLC0415

    space, own = dynamics.space, dynamics.baseline.space
    nx, nu, nk, nv = space.nx, space.nu, own.nx, own.nv
    entries: list[WarpFunction] = []
    emits: list[WarpFunction] = []
    drives: list[tuple[WarpFunction, WarpFunction]] = []
    y0, c0, p0, m0 = 0, 0, len(dynamics.baseline.parameters), nk
    for residual, form in zip(dynamics.corrections, forms, strict=True):
        if form.drive is not None:
            drives.append(form.drive(c0, p0, m0))
        entries += form.entries(c0)
        if form.emit is not None:
            emits.append(form.emit(y0, c0))
        y0, c0 = y0 + (form.sizes[-1] if form.sizes else 0), c0 + form.constants.shape[-1]
        p0, m0 = p0 + sum(s.shape[-1] for s in form.scalars()), m0 + len(residual.memory_names)
    changes, memories = [d[0] for d in drives], [d[1] for d in drives]
    port, nh = port_type(nv), nu + 4 * nv + nv * nv
    ports, substep, dt = summed(port, emits), step[0], dynamics.dt
    moves = any(r.port is Port.STATE for r in dynamics.corrections)

    def executed(x: Any, u: Any, p: Any, c: Any) -> Any:
        total = u
        for change in changes:  # each sees the command as it was sent
            total = total + change(x, u, p, c)
        return total

    def features(x: Any, u: Any, p: Any, c: Any) -> Any:
        now = executed(x, u, p, c)
        return _vector([entry(x, now, p, c) for entry in entries] or [x[0]])

    def hold(y: Any, x: Any, u: Any, p: Any, c: Any) -> Any:
        now = executed(x, u, p, c)
        kept = [m for remember in memories for m in remember(x, u, p, c)]
        return _vector([*now, *ports(y, x, now, p, c), *kept])

    def move(k: Any, h: Any, p: Any) -> Any:
        return substep(k, h[0:nu], h[nu:nh], p)

    def finish(k: Any, h: Any) -> Any:
        if moves:
            k = k + dt * h[nh - 2 * nv : nh]
        return _vector([*k, *h[nh:]])

    system = System(features=features, hold=hold, substep=move, finish=finish, substeps=step[1], nx=nx, nk=nk, nu=nu,
                    nz=max(len(entries), 1), ny=max(y0, 1), nh=nh + nx - nk, np=p0 + 1, nc=c0 + 1)
    networks = [f for f in forms if f.sizes]
    return Engine(system, [f.sizes for f in networks], [f.squashed for f in networks], real)


def _vector(entries: Sequence[Any]) -> Any:
    from residual_mbrl.kernels.expressions import Vector  # noqa: PLC0415

    return Vector(entries)
