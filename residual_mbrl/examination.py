"""What a model does physically along the trajectories it predicts: forces of its residuals, energy, certificates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.baselines import Port
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import ModelError
from residual_mbrl.observation import Prediction
from residual_mbrl.residuals.base import Certificate, Context, Residual

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


def examine(dynamics: ResidualDynamics, prediction: Prediction, length: Tensor) -> Examination:
    """Examine a model along its own predictions.

    Args:
        dynamics: The model that predicted.
        prediction: Its states [B, H + 1, nx] and actions [B, H, nu].
        length: Steps of each window up to its last recorded sample, shape [B].
    """
    states, actions = prediction.states, prediction.actions
    within = torch.arange(actions.shape[1]) < length[:, None]
    rows = within & torch.isfinite(states).all(-1)[:, :-1] & torch.isfinite(states).all(-1)[:, 1:]
    visited = _Visited(rows, states[:, :-1][rows], states[:, 1:][rows], actions[rows])
    with torch.no_grad():
        force = dynamics.residual_force(visited.state, visited.action)
        full = torch.full((*rows.shape, force.shape[-1]), torch.nan, dtype=force.dtype)
        full[rows] = force
        space = dynamics.baseline.space
        return Examination(residual_force=full.double().numpy(), force_names=space.velocity,
                           force_units=tuple(_force_unit(dynamics, space.unit(n)) for n in space.velocity),
                           force_share=_share(dynamics, visited, force), pieces=_pieces(dynamics, visited),
                           energy=_energy(dynamics, prediction, length, visited, force),
                           certificates=tuple(dynamics.certificates(visited.state, visited.action)) if len(visited.state) else ())


def _force_unit(dynamics: ResidualDynamics, velocity_unit: str) -> str:
    if not hasattr(dynamics.baseline, "mass_matrix"):
        return f"{velocity_unit}/s"
    return "N·m" if velocity_unit.startswith("rad") else "N"


def _share(dynamics: ResidualDynamics, visited: _Visited, force: Tensor) -> float:
    """Return rms of a force over rms of the total, in the norm of kinetic energy; see ``Examination``."""
    if not len(force):
        return float("nan")
    space = dynamics.baseline.space
    q, v, _ = space.split(visited.state[:, : space.nx])
    acceleration = (space.split(visited.after[:, : space.nx])[1] - v) / dynamics.dt
    mass_matrix = getattr(dynamics.baseline, "mass_matrix", None)
    if mass_matrix is None:
        part, total = force.square().sum(-1), acceleration.square().sum(-1)
    else:
        mass = mass_matrix(q, dynamics.resolve(None, q)).expand(len(q), space.nv, space.nv)
        part = (force * torch.linalg.solve(mass, force)).sum(-1)
        total = (acceleration * (mass @ acceleration.unsqueeze(-1)).squeeze(-1)).sum(-1)
    return float((part.mean() / total.mean().clamp_min(1e-300)).sqrt())


def _pieces(dynamics: ResidualDynamics, visited: _Visited) -> tuple[Piece, ...]:
    if not len(visited.state):
        return ()
    space, pieces, memory = dynamics.baseline.space, [], dynamics.baseline.space.nx
    p = dynamics.resolve(None, visited.state)
    for residual, context in _joined(dynamics, visited, p):
        own = slice(memory, memory + len(residual.memory_names))
        memory = own.stop
        alone = dynamics.with_residuals([residual])
        force = alone.residual_force(torch.cat([visited.state[:, : space.nx], visited.state[:, own]], -1), visited.action)
        low, high = np.quantile(residual(context).double().numpy(), [0.05, 0.95])
        pieces.append(Piece(name=residual.name, port=residual.port.value, live=_live(residual), low=float(low), high=float(high),
                            unit=_output_unit(dynamics, residual.port, _live(residual)),
                            share=_share(dynamics, visited, force)))
    return tuple(pieces)


def _joined(dynamics: ResidualDynamics, visited: _Visited, p: dict[str, Tensor]) -> list[tuple[Residual, Context]]:
    residuals = cast("list[Residual]", list(dynamics.residuals))
    return list(zip(residuals, dynamics.contexts(visited.state, visited.action, p), strict=True))


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
    unknown = torch.full((batch,), torch.nan, dtype=force.dtype)

    def per_window(power: Tensor) -> Tensor:
        window = torch.nonzero(visited.rows)[:, 0]
        total = torch.zeros(batch, dtype=power.dtype).index_add(0, window, dynamics.dt * power)
        return torch.where(visited.rows.sum(1) == length, total, unknown)

    try:
        ends = prediction.states[torch.arange(batch), length][:, : baseline.space.nx]
        stored = baseline.energy(ends, p) - baseline.energy(prediction.states[:, 0, : baseline.space.nx], p)
        stored = torch.where(torch.isfinite(stored), stored, unknown)
    except ModelError:
        stored = unknown
    try:
        dissipated = per_window(baseline.dissipation_power(known, *_as_executed(dynamics, visited)))
    except ModelError:
        dissipated = unknown
    work = unknown
    if hasattr(baseline, "mass_matrix"):
        mean_v = 0.5 * (baseline.space.split(known)[1] + baseline.space.split(visited.after[:, : baseline.space.nx])[1])
        work = per_window((force * mean_v).sum(-1))
    return EnergyBalance(stored=stored.double().numpy(), dissipated=dissipated.double().numpy(), residual_work=work.double().numpy())


def _as_executed(dynamics: ResidualDynamics, visited: _Visited) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the action and the parameters that the baseline's step sees, residuals on those ports added."""
    p, action = dynamics.resolve(None, visited.state), visited.action
    for residual, context in _joined(dynamics, visited, p):
        if residual.port is Port.ACTION:
            action = action + residual(context)
        elif residual.port is Port.PARAMETERS and residual.live is not None:
            out = residual(context)
            p[residual.live] = p[residual.live] + out if residual.live in p else out
    return action, p
