"""What a model does physically along the trajectories it predicts: forces of its residuals, energy, certificates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.baselines import Port
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import ModelError
from residual_mbrl.observation import Prediction
from residual_mbrl.residuals.base import Certificate, Residual

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one residual adds over the visited states.

    Args:
        name: Name of the residual.
        port: Port it enters through.
        live: Live parameter it is added to; "" for other ports.
        low: 5th percentile of its output over the visited states, in ``unit``.
        high: 95th percentile.
        unit: Unit of the output; "1" where components differ.
        share: Its own share of force, as ``Examination.force_share``.
    """

    name: str
    port: str
    live: str
    low: float
    high: float
    unit: str
    share: float


@dataclass(frozen=True, kw_only=True)
class EnergyBalance:
    """Energy along each predicted window [J]; NaN where a baseline does not know it or the prediction diverged.

    What commands and other outside forces supplied is ``stored - dissipated``; no log knows it independently.

    Args:
        stored: Change of the baseline's stored energy from the first state to the last, shape [B].
        dissipated: Work of all dissipation, the residuals' included, <= 0 if passive, shape [B]. The power is that of the
            first substep of each step.
        residual_work: Work of everything that the residuals do, ``Σ dt F_r · (v + v') / 2``, shape [B].
    """

    stored: Array
    dissipated: Array
    residual_work: Array


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What a model does along its predictions.

    Args:
        residual_force: Force of all residuals [N or N·m], shape [B, H, nv]; NaN beyond a log's end or after divergence.
        force_names: Velocity that each force acts on.
        force_units: Unit of each force.
        force_share: ``rms(F_r) / rms(M dv/dt)``: residual force over the total force that moves the plant, over all predicted
            steps. The norm is that of kinetic energy, ``|F|² = Fᵀ M⁻¹ F``, so that N and N·m can be added; with one
            degree of freedom and constant mass it is the plain ratio. Baselines without a mass matrix use accelerations.
        pieces: What each residual adds.
        energy: Energy balance of each window.
        certificates: What each residual was found to do at worst over the visited states.
    """

    residual_force: Array
    force_names: tuple[str, ...]
    force_units: tuple[str, ...]
    force_share: float
    pieces: tuple[Piece, ...]
    energy: EnergyBalance
    certificates: tuple[Certificate, ...]


class _Visited(NamedTuple):
    """Steps taken within a log: the flat rows of [B, H] that count."""

    rows: Tensor
    """Which steps count, shape [B, H]."""
    state: Tensor
    """State before the step with residual memory, shape [N, nx]."""
    after: Tensor
    """State after it, shape [N, nx]."""
    action: Tensor
    """Shape [N, nu]."""


class _Squares(NamedTuple):
    """Sums of squares over steps, in the norm of kinetic energy."""

    steps: int
    """How many steps."""

    part: float
    """Of a residual force."""
    total: float
    """Of the total force that moves the plant."""


class _Found(NamedTuple):
    """What one part's dynamics do along the windows that they predicted; forces, energies and outputs as in ``Examination``."""

    residual_force: Array
    squares: _Squares
    outputs: list[Array]
    """Output of each residual over the visited states, [N, ...]; no entries where no state was visited."""
    output_squares: list[_Squares]
    energy: EnergyBalance
    certificates: list[Certificate]


def examine(parts: Sequence[tuple[ResidualDynamics, slice]], prediction: Prediction, length: Tensor) -> Examination:
    """Examine a model along its own predictions.

    Where several dynamics share the windows (cross-validation), each is examined on its own windows; shares and quantiles
    are over all visited states, certificates are the worst of any part's.

    Args:
        parts: The dynamics that predicted, each with the windows it did; together all windows in order, alike but for values
            and weights.
        prediction: States [B, H + 1, nx] and actions [B, H, nu].
        length: Steps of each window up to its last recorded sample, shape [B].
    """
    with torch.no_grad():
        found = [_examine(d, Prediction(*(x[rows] for x in prediction)), length[rows]) for d, rows in parts]
    dynamics = parts[0][0]
    space, residuals = dynamics.baseline.space, _residuals(dynamics)
    seen = [f for f in found if f.certificates]
    energy = [f.energy for f in found]
    return Examination(
        residual_force=np.concatenate([f.residual_force for f in found]), force_names=space.velocity,
        force_units=tuple(_force_unit(dynamics, space.unit(n)) for n in space.velocity),
        force_share=_share([f.squares for f in found]),
        pieces=tuple(_piece(dynamics, r, np.concatenate([f.outputs[i] for f in seen]), _share([f.output_squares[i] for f in seen]))
                     for i, r in enumerate(residuals)) if seen else (),
        energy=EnergyBalance(stored=np.concatenate([e.stored for e in energy]), dissipated=np.concatenate([e.dissipated for e in energy]),
                             residual_work=np.concatenate([e.residual_work for e in energy])),
        certificates=tuple(_worst(same) for same in zip(*(f.certificates for f in seen), strict=True)))


def _examine(dynamics: ResidualDynamics, prediction: Prediction, length: Tensor) -> _Found:
    states, actions = prediction.states, prediction.actions
    within = torch.arange(actions.shape[1], device=actions.device) < length[:, None]
    finite = torch.isfinite(states).all(-1)
    rows = within & finite[:, :-1] & finite[:, 1:]
    visited = _Visited(rows, states[:, :-1][rows], states[:, 1:][rows], actions[rows])
    force = dynamics.residual_force(visited.state, visited.action)
    full = force.new_full((*rows.shape, force.shape[-1]), torch.nan)
    full[rows] = force
    outputs, squares = _outputs(dynamics, visited) if len(visited.state) else ([], [])
    return _Found(residual_force=_array(full), squares=_squares(dynamics, visited, force), outputs=outputs, output_squares=squares,
                  energy=_energy(dynamics, prediction, length, visited, force),
                  certificates=dynamics.certificates(visited.state, visited.action) if len(visited.state) else [])


def _worst(found: Sequence[Certificate]) -> Certificate:
    """Join one residual's certificates of several parts: the one nearest to its limit, over the states of all."""
    return replace(max(found, key=lambda c: c.worst - c.limit), samples=sum(c.samples for c in found))


def _force_unit(dynamics: ResidualDynamics, velocity_unit: str) -> str:
    if not hasattr(dynamics.baseline, "mass_matrix"):
        return f"{velocity_unit}/s"
    return "N·m" if velocity_unit.startswith("rad") else "N"


def _squares(dynamics: ResidualDynamics, visited: _Visited, force: Tensor) -> _Squares:
    """Return sums of squares of a force and of the total; see ``Examination.force_share``."""
    space = dynamics.baseline.space
    q, v, _ = space.split(visited.state[:, : space.nx])
    acceleration = (space.split(visited.after[:, : space.nx])[1] - v) / dynamics.dt
    mass_matrix = getattr(dynamics.baseline, "mass_matrix", None)
    if mass_matrix is None:
        return _Squares(len(force), float(force.square().sum()), float(acceleration.square().sum()))
    mass = mass_matrix(q, dynamics.resolve(None, q)).expand(len(q), space.nv, space.nv)
    return _Squares(len(force), float((force * torch.linalg.solve(mass, force)).sum()),
                    float((acceleration * (mass @ acceleration.unsqueeze(-1)).squeeze(-1)).sum()))


def _share(squares: Sequence[_Squares]) -> float:
    """Return rms of a force over rms of the total, all parts together; NaN where nothing was visited."""
    steps, part, total = (sum(s) for s in zip(*squares, strict=True))
    return float(np.sqrt(part / max(total, 1e-300))) if steps else float("nan")


def _outputs(dynamics: ResidualDynamics, visited: _Visited) -> tuple[list[Array], list[_Squares]]:
    """Return the output of each residual, and what it does alone, over the visited states."""
    memory = dynamics.baseline.space.nx
    known, outputs, squares = visited.state[:, :memory], [], []
    for residual, context in zip(_residuals(dynamics), dynamics.contexts(visited.state, visited.action), strict=True):
        own = slice(memory, memory + len(residual.memory_names))
        memory = own.stop
        force = dynamics.with_residuals([residual]).residual_force(torch.cat([known, visited.state[:, own]], -1), visited.action)
        outputs.append(_array(residual(context)))
        squares.append(_squares(dynamics, visited, force))
    return outputs, squares


def _piece(dynamics: ResidualDynamics, residual: Residual, output: Array, share: float) -> Piece:
    low, high = np.quantile(output, [0.05, 0.95])
    return Piece(name=residual.name, port=residual.port.value, live=_live(residual), low=float(low), high=float(high),
                 unit=_output_unit(dynamics, residual.port, _live(residual)), share=share)


def _residuals(dynamics: ResidualDynamics) -> list[Residual]:
    return cast("list[Residual]", list(dynamics.residuals))


def _array(x: Tensor) -> Array:
    return np.asarray(x.double().cpu().numpy())


def _live(residual: Residual) -> str:
    return residual.live or "" if residual.port is Port.PARAMETERS else ""


def _output_unit(dynamics: ResidualDynamics, port: Port, live: str) -> str:
    space = dynamics.baseline.space
    if live in dynamics.baseline.parameters.names:
        return dynamics.baseline.parameters[live].unit
    if port is Port.ACTION:
        units = {space.unit(n) for n in space.action}
    elif port is Port.STATE:
        units = {f"{space.unit(n)}/s" for n in space.state_names}
    else:
        units = {_force_unit(dynamics, space.unit(n)) + ("·s/" + space.unit(n).removesuffix("/s") if live == "damping" else "")
                 for n in space.velocity}
    return units.pop() if len(units) == 1 else "1"


def _energy(dynamics: ResidualDynamics, prediction: Prediction, length: Tensor, visited: _Visited, force: Tensor) -> EnergyBalance:
    baseline, batch = dynamics.baseline, len(length)
    known, p = visited.state[:, : baseline.space.nx], dynamics.resolve(None, prediction.states)
    unknown = force.new_full((batch,), torch.nan)

    def per_window(power: Tensor) -> Tensor:
        window = torch.nonzero(visited.rows)[:, 0]
        total = power.new_zeros(batch).index_add(0, window, dynamics.dt * power)
        return torch.where(visited.rows.sum(1) == length, total, unknown)

    try:
        ends = prediction.states[torch.arange(batch, device=length.device), length][:, : baseline.space.nx]
        stored = baseline.energy(ends, p) - baseline.energy(prediction.states[:, 0, : baseline.space.nx], p)
        stored = torch.where(torch.isfinite(stored), stored, unknown)
    except ModelError:
        stored = unknown
    try:
        as_stepped = dynamics.correction(visited.state, visited.action)
        dissipated = per_window(baseline.dissipation_power(known, as_stepped.action, as_stepped.values))
    except ModelError:
        dissipated = unknown
    work = unknown
    if hasattr(baseline, "mass_matrix"):
        mean_v = 0.5 * (baseline.space.split(known)[1] + baseline.space.split(visited.after[:, : baseline.space.nx])[1])
        work = per_window((force * mean_v).sum(-1))
    return EnergyBalance(stored=_array(stored), dissipated=_array(dissipated), residual_work=_array(work))
