"""What moves a quadrotor: the forces and torques on its centre of mass; the equations are in ``quadrotor``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from residual_mbrl.baselines import Values
from residual_mbrl.physics.rotations import cross, rotate, rotate_back

TINY = 1e-20
"""Added to squared speeds [m²/s²], so that drag has a slope at rest."""
RAD = 1000.0
"""rad in a krad: with speeds in krad/s, squared speeds and thrusts are about one."""


class Body(NamedTuple):
    """What lasts a whole step, in vectors and matrices of shape [*batch, ...]; units as the parameters have."""

    mass: Tensor
    weight: Tensor
    """m g [N]."""
    centre: Tensor
    """Centre of mass c [m], shape [*batch, 3]."""
    inertia: Tensor
    """J about it [kg·m²], shape [*batch, 3, 3]."""
    inverse: Tensor
    """J⁻¹."""
    rotors: Tensor
    """Signs of x, of y, and spin, shape [3, 4]."""
    arms: Tensor
    """arm_x, arm_y [m], shape [*batch, 2]."""
    thrust: Tensor
    """k_i, shape [*batch, 4]."""
    drag_torque: Tensor
    momentum: Tensor
    """Of a rotor per speed in krad/s, J_r [N·m·s/krad]."""
    drag: Tensor
    """Shape [*batch, 3]."""
    drag_rotor: Tensor
    """Shape [*batch, 3], zero along z."""
    drag_quadratic: Tensor
    lever: Tensor
    """r_p - c [m], shape [*batch, 3]."""
    rate_drag: Tensor
    flow_moment: Tensor
    """Along x and y, shape [*batch, 2]."""
    flow_moment_axial: Tensor
    """Shape [*batch, 2]."""
    translational_lift: Tensor
    trim: Tensor
    lag: Tensor
    """τ [s]."""


def body_of(p: Values, rotors: Sequence[Sequence[int]]) -> Body:
    """Return the body with these values and, for each rotor, the signs of its x and y and its spin."""
    xx, yy, zz, xy, xz, yz = torch.broadcast_tensors(*(p[f"inertia_{n}"] for n in ("xx", "yy", "zz", "xy", "xz", "yz")))
    inertia = torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], -1).unflatten(-1, (3, 3))
    centre, like, level = _along_axes(p, "centre"), p["mass"], p["drag_rotor"]
    return Body(
        mass=p["mass"], weight=p["mass"] * p["gravity"], centre=centre, inertia=inertia, inverse=torch.linalg.inv(inertia),
        rotors=torch.tensor(rotors, dtype=like.dtype, device=like.device).mT, arms=_stacked(p["arm_x"], p["arm_y"]),
        thrust=_stacked(*(p[f"thrust{i}"] for i in (1, 2, 3, 4))), drag_torque=p["drag_torque"], momentum=RAD * p["rotor_inertia"],
        drag=_along_axes(p, "drag"), drag_rotor=_stacked(level, level, torch.zeros_like(level)), drag_quadratic=p["drag_quadratic"],
        lever=_along_axes(p, "pressure") - centre, rate_drag=_along_axes(p, "rate_drag"),
        flow_moment=_stacked(p["flow_moment_x"], p["flow_moment_y"]),
        flow_moment_axial=_stacked(p["flow_moment_axial_x"], p["flow_moment_axial_y"]), translational_lift=p["translational_lift"],
        trim=_along_axes(p, "trim"),
        lag=p["motor_lag"])


def acceleration(pose: Tensor, twist: Tensor, speed: Tensor, force: Tensor | None, body: Body) -> Tensor:
    """Return the acceleration of the centre of mass and of turning, but for what dh/dt does, shape [*batch, 6]."""
    attitude, w = pose[..., 3:], twist[..., 3:]
    squared = speed * speed.abs()
    x, y, spin = body.rotors
    thrust = body.thrust * squared
    up = thrust.new_tensor([0.0, 0.0, 1.0])
    velocity = rotate_back(attitude, twist[..., :3])
    _, drag = air_drag(velocity, w, speed, body)
    lift = (thrust.sum(-1) + body.translational_lift * velocity[..., :2].square().sum(-1)).unsqueeze(-1) * up
    from_rotors = _stacked((thrust * y).sum(-1) * body.arms[..., 1], -(thrust * x).sum(-1) * body.arms[..., 0],
                           -body.drag_torque * (spin * squared).sum(-1))
    momentum = times(body.inertia, w) + (body.momentum * (spin * speed).sum(-1)).unsqueeze(-1) * up
    torque = from_rotors + flow_torque(velocity, body) + cross(body.lever, drag) - body.rate_drag * w + body.trim - cross(w, momentum)
    pushed = rotate(attitude, lift + drag) - body.weight.unsqueeze(-1) * up
    at_origin = lift  # of the forces that act at the origin
    if force is not None:
        pushed, torque = pushed + force[..., :3], torque + force[..., 3:]
        at_origin = at_origin + rotate_back(attitude, force[..., :3])
    torque = torque - cross(body.centre, at_origin)
    return torch.cat(alike(pushed / body.mass.unsqueeze(-1), times(body.inverse, torque)), -1)


def air_drag(velocity: Tensor, w: Tensor, speed: Tensor, body: Body) -> tuple[Tensor, Tensor]:
    """Return the velocity [m/s] of the point where air drag acts and the drag [N], both in the body frame, shape [*batch, 3].

    Args:
        velocity: Of the centre of mass, in the body frame.
        w: Body rate.
        speed: Of the rotors.
        body: The body.
    """
    passing = velocity + cross(w, body.lever)
    pace = torch.sqrt(passing.square().sum(-1) + TINY)
    coefficient = body.drag + body.drag_rotor * speed.abs().sum(-1, keepdim=True) + (body.drag_quadratic * pace).unsqueeze(-1)
    return passing, -coefficient * passing


def flow_torque(velocity: Tensor, body: Body) -> Tensor:
    """Return the torque of the air that passes the rotors from the side [N·m], in the body frame, shape [*batch, 3].

    Args:
        velocity: Of the centre of mass, in the body frame.
        body: The body.
    """
    x, y, z = velocity.unbind(-1)
    slope = body.flow_moment + body.flow_moment_axial * z.unsqueeze(-1)
    return _stacked(slope[..., 0] * y, -slope[..., 1] * x, torch.zeros_like(z))


def reaction(change: Tensor, body: Body) -> Tensor:
    """Return what a change of rotor speeds [krad/s] does to the twist at once, shape [*batch, 6]."""
    momentum = body.momentum * (body.rotors[2] * change).sum(-1)
    turning = -body.inverse[..., 2] * momentum.unsqueeze(-1)
    return torch.cat([torch.zeros_like(turning), turning], -1)


def lagged(speed: Tensor, target: Tensor, time: float, body: Body) -> Tensor:
    """Return rotor speeds after some seconds, exactly."""
    return target + torch.exp(-time / body.lag).unsqueeze(-1) * (speed - target)


def alike(*tensors: Tensor, last: int = 1) -> list[Tensor]:
    """Broadcast all but the last dimensions."""
    batch = torch.broadcast_shapes(*(x.shape[:-last] for x in tensors))
    return [x.expand(*batch, *x.shape[-last:]) for x in tensors]


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Multiply matrices [*batch, n, n] with vectors [*batch, n]."""
    product: Tensor = (matrix @ vector.unsqueeze(-1)).squeeze(-1)
    return product


def _stacked(*values: Tensor) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*values), -1)


def _along_axes(p: Values, name: str) -> Tensor:
    return _stacked(*(p[f"{name}_{axis}"] for axis in "xyz"))
