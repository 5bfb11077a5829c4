"""The contacts of one's own equations of motion, in torch: spheres, corners of boxes, and planes.

The description is that of ``residual_mbrl.contacts``, with the conventions of MuJoCo: the gap is the signed distance of the surfaces, the
contact point lies midway between them, the normal points from the first geom to the second. Everything is differentiable, by the
state and by sizes and friction. Where the bodies are and how their points move is the model's to say:

    def contacts(self, state, action, parameters=None, *, most, reach=0.0, force=None):
        ...
        floor = Plane(point, normal)
        touching = [corners_on_plane(floor, position, rotation, half), ...]
        return describe(touching, velocity, mass_matrix, names=("floor", "box"), most=most, reach=reach)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from residual_mbrl.contacts import Contacts

PointJacobian = Callable[[Tensor], Tensor]
"""From points [*batch, k, 3] of a body, in the world, to the Jacobian of their velocities by v, shape [*batch, k, 3, nv]."""
_APART = 1e-12
"""Distance of centres [m] below which spheres have no direction between them."""


class Plane(NamedTuple):
    """A half-space that does not move."""

    point: Tensor
    """Any point of it [m], shape [*#batch, 3]."""
    normal: Tensor
    """Outward unit vector, shape [*#batch, 3]."""


@dataclass(frozen=True, kw_only=True)
class Touching:
    """k possible contacts of two geoms.

    Args:
        gap: Signed distance [m], shape [*batch, k].
        position: Midway between the surfaces [m], shape [*batch, k, 3].
        normal: From the first geom to the second, shape [*batch, k, 3].
        jacobian: Of the second body's velocity against the first's there, in the world, shape [*batch, k, 3, nv]; set by ``moving``.
        friction: Sliding (2) [1], spin and rolling (2) [m], shape [5] or [*batch, k, 5]; zero where there is none.
        geoms: Indices of the two geoms.
        force: Of the model on the second body in the contact frame [N], shape [*batch, k, 3]; None for none.
    """

    gap: Tensor
    position: Tensor
    normal: Tensor
    jacobian: Tensor | None = None
    friction: Tensor | None = None
    geoms: tuple[int, int] = (0, 1)
    force: Tensor | None = None

    def moving(self, second: PointJacobian, first: PointJacobian | None = None) -> Touching:
        """Return these with the Jacobian of two bodies; a first one of None does not move."""
        jacobian = second(self.position)
        return replace(self, jacobian=jacobian if first is None else jacobian - first(self.position))


def sphere_on_plane(plane: Plane, centre: Float[Tensor, "*batch 3"], radius: Tensor | float) -> Touching:
    """Return the contact of a sphere [m] with a plane, which is the first geom."""
    normal = plane.normal.expand_as(centre)
    gap = ((centre - plane.point) * normal).sum(-1) - radius
    position = centre - normal * (0.5 * gap + radius).unsqueeze(-1)
    return Touching(gap=gap.unsqueeze(-1), position=position.unsqueeze(-2), normal=normal.unsqueeze(-2))


def corners_on_plane(plane: Plane, position: Float[Tensor, "*batch 3"], rotation: Float[Tensor, "*batch 3 3"],
                     half: Float[Tensor, "*#batch 3"]) -> Touching:
    """Return the contacts of a box's eight corners with a plane, which is the first geom.

    Args:
        plane: The plane.
        position: The box's centre [m].
        rotation: From the box's frame to the world.
        half: Half extents [m].
    """
    signs = half.new_tensor([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    corners = position.unsqueeze(-2) + (signs * half.unsqueeze(-2)) @ rotation.mT
    normal = plane.normal.unsqueeze(-2).expand_as(corners)
    gap = ((corners - plane.point.unsqueeze(-2)) * normal).sum(-1)
    return Touching(gap=gap, position=corners - 0.5 * normal * gap.unsqueeze(-1), normal=normal)


def sphere_on_sphere(first: Float[Tensor, "*batch 3"], first_radius: Tensor | float, second: Float[Tensor, "*batch 3"],
                     second_radius: Tensor | float) -> Touching:
    """Return the contact of two spheres, by centres and radii [m]; of one centre the normal is x, as in MuJoCo."""
    between = second - first
    apart = between.square().sum(-1, keepdim=True) > _APART**2
    between = torch.where(apart, between, between.new_tensor([1.0, 0.0, 0.0]))
    distance = torch.linalg.vector_norm(between, dim=-1)
    normal = between / distance.unsqueeze(-1)
    gap = torch.where(apart.squeeze(-1), distance, 0.0) - first_radius - second_radius
    position = first + normal * (first_radius + 0.5 * gap).unsqueeze(-1)
    return Touching(gap=gap.unsqueeze(-1), position=position.unsqueeze(-2), normal=normal.unsqueeze(-2))


def free_body(position: Float[Tensor, "*batch 3"], rotation: Float[Tensor, "*batch 3 3"], first: int, nv: int) -> PointJacobian:
    """Return the Jacobian of points of a free body whose v is world velocity and rate in its own frame, from entry ``first`` on."""
    def at(points: Tensor) -> Tensor:
        arm = (points - position.unsqueeze(-2)) @ rotation  # in the body's frame
        x, y, z = arm.unbind(-1)
        zero = torch.zeros_like(x)
        cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
        jacobian = points.new_zeros(*points.shape, nv)
        jacobian[..., first : first + 3] = torch.eye(3, dtype=points.dtype, device=points.device)
        jacobian[..., first + 3 : first + 6] = -rotation.unsqueeze(-3) @ cross
        return jacobian

    return at


def contact_frame(normal: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Return axes as rows: the normal, then two tangents as MuJoCo chooses them, from y or, of normals along y, from z."""
    along_y = (normal[..., 1:2].abs() >= 0.5).to(normal)
    start = along_y * normal.new_tensor([0.0, 0.0, 1.0]) + (1 - along_y) * normal.new_tensor([0.0, 1.0, 0.0])
    tangent = start - normal * (start * normal).sum(-1, keepdim=True)
    tangent = tangent / torch.linalg.vector_norm(tangent, dim=-1, keepdim=True)
    return torch.stack([normal, tangent, torch.linalg.cross(normal, tangent)], -2)


def describe(touching: Sequence[Touching], velocity: Float[Tensor, "*batch nv"], mass_matrix: Float[Tensor, "*batch nv nv"], *,
             names: Sequence[str], most: int, reach: float = 0.0) -> Contacts:
    """Return the contacts with the smallest gaps, those up to ``reach`` [m] before they touch.

    Args:
        touching: Possible contacts, ``moving``.
        velocity: v.
        mass_matrix: M.
        names: Of the geoms, by index.
        most: Rows of the result; contacts beyond are counted.
        reach: Distance [m] up to which pairs are listed before they touch.

    Raises:
        ValueError: if there is nothing to describe, something has no Jacobian, or most or reach mean nothing.
    """
    if most < 1 or reach < 0 or not touching or any(t.jacobian is None for t in touching):
        raise ValueError(f"describe: expected contacts with a Jacobian (Touching.moving), most >= 1 and reach >= 0, received "
                         f"{len(touching)} contacts, {most}, {reach}")
    batch = velocity.shape[:-1]

    def joined(parts: list[Tensor], *shape: int) -> Tensor:
        return torch.cat([x.expand(*batch, t.gap.shape[-1], *shape) for x, t in zip(parts, touching, strict=True)], len(batch))

    nv, like = velocity.shape[-1], velocity
    gap = joined([t.gap for t in touching])
    rows = [t.jacobian for t in touching if t.jacobian is not None]
    found = {"position": joined([t.position for t in touching], 3), "jacobian": joined(rows, 3, nv),
             "frame": contact_frame(joined([t.normal for t in touching], 3)),
             "force": joined([like.new_zeros(3) if t.force is None else t.force for t in touching], 3),
             "friction": joined([like.new_zeros(5) if t.friction is None else t.friction for t in touching], 5)}
    geoms = joined([torch.tensor(t.geoms, device=like.device) for t in touching], 2)
    found["jacobian"] = found["frame"] @ found["jacobian"]
    near = gap < reach if reach else gap <= 0
    order = torch.where(near, gap, torch.inf).argsort(dim=-1, stable=True)[..., :most]
    kept = {name: _chosen(x, order, most) for name, x in {**found, "gap": gap, "geoms": geoms, "present": near}.items()}
    on = kept["present"]
    kept = {name: torch.where(on.reshape(*on.shape, *[1] * (x.ndim - on.ndim)), x, torch.zeros_like(x)) for name, x in kept.items()}
    response = torch.linalg.solve(mass_matrix, kept["jacobian"].flatten(-3, -2).mT).mT.unflatten(-2, (most, 3))
    moving = torch.einsum("...kin,...n->...ki", kept["jacobian"], velocity)
    return Contacts(**kept, response=response, velocity=moving, torque=torch.zeros_like(kept["force"]), names=tuple(names),
                    missed=(near.sum(-1) - on.sum(-1)))


def _chosen(x: Tensor, order: Tensor, most: int) -> Tensor:
    """Return entries by their order, filled up with zeros, shape [*batch, most, ...]."""
    axis = order.ndim - 1
    index = order.reshape(*order.shape, *[1] * (x.ndim - order.ndim)).expand(*order.shape, *x.shape[order.ndim :])
    picked = x.gather(axis, index)
    missing = list(picked.shape)
    missing[axis] = most - picked.shape[axis]
    return torch.cat([picked, picked.new_zeros(missing)], axis)
