"""Whether a model can be fused: the Warp forms of its parts, and whether they still speak for the torch forms in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from residual_mbrl.baselines import Values
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.physics.mechanical import MechanicalBaseline
from residual_mbrl.physics.mechanical_warp import WarpTerms
from residual_mbrl.residuals.base import Residual
from residual_mbrl.residuals.features import FeatureMap
from residual_mbrl.residuals.networks import Perceptron
from residual_mbrl.residuals.warp_form import WarpForm

if TYPE_CHECKING:
    from residual_mbrl.kernels.launch import Engine

REALS = {torch.float32: "float", torch.float64: "double"}
EQUATIONS = ("port", "live", "forward", "next_memory", "_delayed", "_lagged", "_outputs", "matrix", "_inputs", "_ridge", "_linear",
             "_correction", "_placed", "keeps")
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
    """Rows [members, constants] on the CPU."""
    weight_names: tuple[str | None, ...]
    """Names of the weights in order, None for one that is made of others."""
    names: tuple[str, ...]
    """Of the physical parameters in order."""
    values: dict[tuple[object, ...], Tensor] = field(default_factory=dict)
    """The row of parameter values made last."""
    engines: dict[tuple[object, ...], Engine] = field(default_factory=dict)
    placed: dict[tuple[torch.dtype, torch.device], Tensor] = field(default_factory=dict)
    """The constants on other devices."""
    flat: dict[torch.dtype, FlatWeights] = field(default_factory=dict)
    """The weights that the last rollout had."""


_ready: WeakKeyDictionary[ResidualDynamics, FusedModel] = WeakKeyDictionary()


def prepare(dynamics: ResidualDynamics, state: Tensor, actions: Tensor, parameters: Values) -> FusedModel | Refusal:
    """Return a model ready to run on these inputs, or why there is none; arguments as ``rollout`` has checked and expanded them."""
    refused = _refused_inputs(dynamics, state, actions, parameters)
    if refused is not None:
        return refused
    ready = _ready.get(dynamics)
    if ready is None or not _is_current(ready, dynamics):
        with torch.device("cpu"):  # whatever the default device is
            made = _make(dynamics)
        if isinstance(made, Refusal):
            return made
        ready = _ready[dynamics] = made
    if ready.members and state.shape[:-1][:1] != ready.members:
        return Refusal(f"weights of {ready.members[0]} members need states [{ready.members[0]}, ...], received {tuple(state.shape)}")
    return ready


def _refused_inputs(dynamics: ResidualDynamics, state: Tensor, actions: Tensor, parameters: Values) -> Refusal | None:
    if state.dtype not in REALS or state.device.type not in ("cpu", "cuda"):
        return Refusal(f"fused rollouts are float32 or float64 on a CPU or a CUDA device, not {state.dtype} on {state.device}")
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
    rows = [f.constants.cpu().reshape(-1, f.constants.shape[-1]).expand(leading[0] if leading else 1, -1) for f in forms]
    constants = torch.cat([*rows, torch.zeros(leading[0] if leading else 1, 1, dtype=torch.float64)], -1)
    buffers = tuple((m._buffers, n, b, b._version) for m in dynamics.residuals.modules() for n, b in m._buffers.items() if b is not None)
    names = {id(w): n for n, w in dynamics.named_parameters()}
    return FusedModel(terms, forms, list(dynamics.residuals._modules.values()), _settings(dynamics), buffers, _shapes(forms), leading,
                      {d: constants.to(d).contiguous() for d in REALS}, tuple(names.get(id(w)) for f in forms for w in f.weights()),
                      tuple(dynamics.baseline.parameters.names))


def _terms(dynamics: ResidualDynamics) -> WarpTerms | Refusal | None:
    """Return the terms of a mechanical baseline, None for another that has a Warp step, or why there is neither."""
    baseline = dynamics.baseline
    name, none = type(baseline).__name__, Refusal(f"{type(baseline).__name__} has no Warp form of its equations")
    if any(getattr(type(dynamics), n) is not getattr(ResidualDynamics, n) for n in ("step", "correction", "remember", "_seen")):
        return Refusal(f"{type(dynamics).__name__} has a step of its own")
    if not isinstance(baseline, MechanicalBaseline):
        return none if baseline.warp_step() is None or not speaks_for(baseline, "warp_step", ("step",)) else None
    if type(baseline).step is not MechanicalBaseline.step or type(baseline)._substep is not MechanicalBaseline._substep:
        return Refusal(f"{name} has a step of its own")
    terms = baseline.warp_terms()
    if terms is None or not speaks_for(baseline, "warp_terms", ("mass_matrix", "smooth_force", "damping", "frictionloss", "terms")):
        return none
    if baseline.space.nq != baseline.space.nv or baseline.space.na:
        return Refusal(f"the Warp form of a mechanical step has no quaternions or activations, as {name} has")
    return terms


def _forms(dynamics: ResidualDynamics, terms: WarpTerms | None) -> tuple[WarpForm, ...] | Refusal:
    """Return the Warp forms of the residuals, or why there are none."""
    baseline, forms = dynamics.baseline, []
    signals = baseline.warp_signals() if speaks_for(baseline, "warp_signals", ("signals",)) else {}
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


def speaks_for(part: object, form: str, names: Sequence[str]) -> bool:
    """Tell whether a Warp form belongs to the torch form in use: no subclass below the form's has changed the equations."""
    order = type(part).__mro__
    owner = next(i for i, c in enumerate(order) if form in vars(c))
    return all(owner <= next((i for i, c in enumerate(order) if n in vars(c)), owner) for n in names)


def _is_as_written(residual: Residual) -> bool:
    """Tell whether a residual, the features and the network within are those that a Warp form speaks for."""
    parts = ((FeatureMap, ("forward", "_transform")), (Perceptron, ("forward",)))
    return speaks_for(residual, "warp_form", EQUATIONS) and all(
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
