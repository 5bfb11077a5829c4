"""The Warp functions of a model joined into one system, compiled once a structure.

Normalisers, bounds, parameter values and weights are data: models that differ in those alone share their code.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch

from residual_mbrl.baselines import Baseline, Port, Values, WarpFunction
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.fused.manifold import mover
from residual_mbrl.fused.model import REALS, FusedModel
from residual_mbrl.physics.mechanical import MechanicalBaseline
from residual_mbrl.physics.mechanical_warp import StepOptions, warp_substep
from residual_mbrl.residuals.warp_form import WarpForm, port_type, summed

if TYPE_CHECKING:
    from residual_mbrl.kernels.launch import Engine

STRUCTURES = 64
"""Compiled structures that are remembered."""
_engines: OrderedDict[tuple[object, ...], Engine] = OrderedDict()
_lock = Lock()


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
    drives: list[tuple[WarpFunction, WarpFunction, bool]] = []
    y0, c0, p0, m0 = 0, 0, len(dynamics.baseline.parameters), nk
    for residual, form in zip(dynamics.corrections, forms, strict=True):
        if form.drive is not None:
            drives.append((*form.drive(c0, p0, m0), residual.port is Port.ACTION))
        inputs, emit = (form.entries, form.emit) if form.placed is None else form.placed(m0)
        entries += inputs(c0)
        if emit is not None:
            emits.append(emit(y0, c0))
        y0, c0 = y0 + (form.sizes[-1] if form.sizes else 0), c0 + form.constants.shape[-1]
        p0, m0 = p0 + sum(s.shape[-1] for s in form.scalars()), m0 + len(residual.memory_names)
    changes, memories = [d[0] for d in drives if d[2]], [d[1:] for d in drives]
    port, (substep, substeps), dt = port_type(nv), step, dynamics.dt
    ports, used = summed(port, emits), _used(dynamics, forms)
    moved = mover(own)
    held, moves = nu + len(used), any(r.port is Port.STATE for r in dynamics.corrections)

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
        kept = [m for remember, sent in memories for m in remember(x, u if sent else now, p, c)]
        whole = ports(y, x, now, p, c)
        return _vector([*now, *(whole[i] for i in used), *kept])

    def move(k: Any, h: Any, p: Any) -> Any:
        whole = port()
        for i, place in enumerate(used):
            whole[place] = h[nu + i]
        return substep(k, h[0:nu], whole, p)

    def finish(k: Any, h: Any) -> Any:
        if moves:  # the last part that is held
            k = moved(k, [dt * rate for rate in h[held - 2 * nv : held]])
        return _vector([*k, *h[held:]])

    system = System(features=features, hold=hold, substep=move, finish=finish, substeps=substeps, nx=nx, nk=nk, nu=nu,
                    nz=max(len(entries), 1), ny=max(y0, 1), nh=held + nx - nk, np=p0 + 1, nc=c0 + 1)
    networks = [f for f in forms if f.sizes]
    return Engine(system, [f.sizes for f in networks], [f.squashed for f in networks], real)


def _used(dynamics: ResidualDynamics, forms: Sequence[WarpForm]) -> list[int]:
    """Return the places of the port that residuals write to; all others are zero, and nothing is computed with them."""
    nv, ports = dynamics.baseline.space.nv, {r.port for r in dynamics.corrections}
    limit, rate = nv + nv * nv, 2 * nv + nv * nv
    return [*(range(nv) if Port.FORCE in ports else ()), *(range(nv, limit) if any(f.damping for f in forms) else ()),
            *(range(limit, rate) if any(f.friction for f in forms) else ()), *(range(rate, rate + 2 * nv) if Port.STATE in ports else ())]


def _vector(entries: Sequence[Any]) -> Any:
    from residual_mbrl.kernels.expressions import Vector  # noqa: PLC0415

    return Vector(entries)
