"""What of a MuJoCo model can touch anything, and what of that is approximated."""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError

from residual_mbrl.errors import ModelError
from residual_mbrl.physics.mujoco_model import element_name

_CONVEX = 0.01
"""Share by which a hull's volume may exceed its mesh's before the mesh counts as not convex."""


def check_collisions(model: mujoco.MjModel) -> None:
    """Refuse a model whose contacts cannot be described.

    Raises:
        ModelError: if nothing in it can touch anything, or it has flexes, which touch by vertices and not by geoms.
    """
    if int(model.nflex):
        raise ModelError("contacts: the model has flexes, whose contacts belong to no geom and cannot be described")
    if not int(model.npair) and not _collides(model).any():
        raise ModelError("contacts: no geom of this model can touch anything: contype and conaffinity are zero everywhere and there are "
                         "no contact pairs")


def describe_collisions(model: mujoco.MjModel) -> tuple[str, ...]:
    """Return in words which moving bodies can touch nothing, and which meshes the engine replaces by their convex hull."""
    collides, bodies = _collides(model), model.geom_bodyid
    touching = {int(b) for b in bodies[collides]}
    moving = [b for b in range(1, int(model.nbody)) if model.body_weldid[b] != 0]
    notes = [f"body {element_name(model, 'body', b)!r} has no collision geometry: it passes through everything"
             for b in moving if b not in touching]
    mesh = int(mujoco.mjtGeom.mjGEOM_MESH)
    for i in sorted({int(model.geom_dataid[g]) for g in np.flatnonzero(collides & (model.geom_type == mesh))}):
        excess = _hull_excess(model, i)
        if excess is None or excess > _CONVEX:
            by = "" if excess is None else f", which holds {100 * excess:.0f} % more than the mesh does"
            notes.append(f"mesh {element_name(model, 'mesh', i)!r} is not convex: it touches as its convex hull{by}")
    return tuple(notes)


def _collides(model: mujoco.MjModel) -> NDArray[np.bool_]:
    """Return which geoms may touch some other, shape [ngeom]."""
    collides = np.asarray((model.geom_contype != 0) | (model.geom_conaffinity != 0))
    collides[model.pair_geom1] = collides[model.pair_geom2] = True
    return collides


def _hull_excess(model: mujoco.MjModel, mesh: int) -> float | None:
    """Return by which share a mesh's hull is larger than the mesh; None where the mesh has no volume or no hull."""
    first, count = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
    face, faces = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
    vertices = np.asarray(model.mesh_vert[first : first + count], np.float64)
    a, b, c = vertices[model.mesh_face[face : face + faces]].transpose(1, 0, 2)
    volume = abs(float((np.cross(a, b) * c).sum())) / 6
    try:
        hull = float(ConvexHull(vertices).volume)
    except QhullError:
        return None
    return hull / volume - 1 if volume > 0 else None
