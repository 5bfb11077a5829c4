"""Predictions of many members or particles on the tangent space: means, spreads, and errors against what a log shows."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from residual_mbrl.observation import Prediction
from residual_mbrl.sensors import Sensor
from residual_mbrl.spaces import StateSpace
from residual_mbrl.windows import Windows

CENTRINGS = 3
"""Steps to the mean on the manifold; differences within one rotation converge in two."""


def moments(space: StateSpace, states: Float[Tensor, "particles *batch nx"]) -> tuple[Tensor, Tensor]:
    """Return mean [*batch, nx] and covariance on its tangent space [*batch, ndx, ndx] of particles of equal weight.

    The mean is the one about which tangents average to zero (Karcher). Particles that are not finite are left out.

    Args:
        space: Of the states.
        states: Shape [P, *batch, nx].
    """
    mean, d, weight = _centred(space, states)
    known = weight.sum(0).clamp_min(1.0)
    return mean, torch.einsum("p...i,p...j->...ij", weight * d, d) / (known - 1).clamp_min(1.0).unsqueeze(-1)


def spread(space: StateSpace, states: Float[Tensor, "particles *batch nx"]) -> tuple[Tensor, Tensor]:
    """Return mean [*batch, nx] and variance of each tangent entry [*batch, ndx]; see ``moments``."""
    mean, d, weight = _centred(space, states)
    return mean, (weight * d.square()).sum(0) / (weight.sum(0) - 1).clamp_min(1.0)


def _centred(space: StateSpace, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    finite = torch.isfinite(states).all(-1, keepdim=True)
    weight, states = finite.to(states), torch.where(finite, states, states.nan_to_num(0.0, 0.0, 0.0))
    first = finite.to(torch.int8).argmax(0, keepdim=True)
    mean = states.gather(0, first.expand(1, *states.shape[1:]))[0]
    states = torch.where(finite, states, mean)
    d = space.difference(states, mean)
    for _ in range(CENTRINGS if space.quaternions else 1):
        mean = space.integrate(mean, (weight * d).sum(0) / weight.sum(0).clamp_min(1.0))
        d = space.difference(states, mean)
    return mean, d, weight


def tangent_names(space: StateSpace) -> tuple[str, ...]:
    """Return a name for each tangent entry: that of the position, of the three rotations ``rot0`` of a quaternion, of the velocity."""
    names: list[str] = []
    start = 0
    for k, (q0, _) in enumerate(sorted(space.quaternions)):
        names += [*space.position[start:q0], *(f"rotation{k}.{a}" for a in "xyz")]
        start = q0 + 4
    return (*names, *space.position[start:], *space.velocity, *space.activation)


def measured(sensor: Sensor, windows: Windows, prediction: Prediction) -> Float[Tensor, "*members batch time ndx"]:
    """Return the tangent from prediction to log, NaN where the log shows nothing, shape [*M, B, H + 1, ndx] of the sensor's space.

    An entry with a column is the difference of the columns, so that the sensor's effects are in both; a quaternion, which needs
    all four of its columns, is the rotation from the predicted to the recorded attitude. Columns of infinite noise do not count.

    Args:
        sensor: From states to columns.
        windows: The log.
        prediction: Of one model, of members or of particles.
    """
    space = sensor.space
    shown = prediction.measurements
    error = torch.where(windows.recorded, windows.measurements - shown, torch.nan)
    out = shown.new_full((*shown.shape[:-1], space.ndx), torch.nan)
    counts = [k for k in range(len(sensor.columns)) if sensor.columns[k].noise < float("inf")]
    place = {n: k for k in reversed(counts) if (n := sensor.shown(k)) is not None}
    names = tangent_names(space)
    for name, k in place.items():
        if name in names:
            out[..., names.index(name)] = error[..., k]
    for (q0, v0) in space.quaternions:
        columns = [place.get(n) for n in space.position[q0 : q0 + 4]]
        if None not in columns:
            known = windows.recorded[..., columns].all(-1, keepdim=True)
            out[..., v0 : v0 + 3] = torch.where(known, rotation(prediction.states[..., q0 : q0 + 4], windows.measurements[..., columns]),
                                                torch.nan)
    return out


def rotation(start: Tensor, end: Tensor) -> Tensor:
    """Return the rotation vector [rad] in the body frame between attitudes w-x-y-z of either sign and any length, shape [..., 3]."""
    unit = torch.nn.functional.normalize
    only = StateSpace(position=("w", "x", "y", "z"), velocity=("a", "b", "c"), action=(), quaternions=((0, 0),))
    a, b = (torch.cat([unit(q, dim=-1), torch.zeros_like(q[..., :3])], -1) for q in torch.broadcast_tensors(start, end))
    return only.difference(b, a)[..., :3]
