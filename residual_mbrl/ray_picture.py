"""A picture of a MuJoCo model by casting rays: shaded, with a shadow, and without any graphics library or display."""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

AMBIENT, SHADOW, GLOSS = 0.42, 0.55, 0.25
"""Share of light that comes from everywhere, share that a shadow leaves of the rest, and strength of highlights."""
SKY = (1.0, 1.0, 1.0)
FADE = 0.6
"""Extents of the model within which the floor fades out."""
LIFT = 1e-4
"""Distance [m] within which light that ends before a point still counts as reaching it."""


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Where the picture is taken from; a pinhole.

    Args:
        position: [m], shape [3].
        target: Point in the middle of the picture [m], shape [3].
        width: Pixels.
        height: Pixels.
        angle: Vertical field of view [rad].
        light: Position of the lamp [m], shape [3].
    """

    position: tuple[float, float, float]
    target: tuple[float, float, float]
    width: int = 560
    height: int = 640
    angle: float = 0.55
    light: tuple[float, float, float] = (1.2, -1.6, 2.6)

    @property
    def axes(self) -> Array:
        """Right, down and forward in world coordinates, shape [3, 3]."""
        forward = np.subtract(self.target, self.position)
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, (0.0, 0.0, 1.0))
        right = right / np.linalg.norm(right)
        return np.stack([right, np.cross(forward, right), forward])

    @property
    def focal(self) -> float:
        """Focal length [pixels]."""
        return float(0.5 * self.height / np.tan(0.5 * self.angle))

    def project(self, points: Array) -> Array:
        """Return the pixel (column, row) of world points [*, 3], shape [*, 2]."""
        local = (points - np.array(self.position)) @ self.axes.T
        return np.asarray(self.focal * local[..., :2] / local[..., 2:] + 0.5 * np.array([self.width, self.height]))


def cast_picture(model: mujoco.MjModel, data: mujoco.MjData, camera: Camera, *, samples: int = 2) -> Array:
    """Return what a camera sees of a model as it stands, red, green and blue within 0 and 1, shape [height, width, 3].

    Args:
        model: The model; geoms show in their own colour or their material's, planes fade out with distance.
        data: Its state, after ``mj_forward``.
        camera: Where from.
        samples: Rays along each side of a pixel, against jagged edges.
    """
    n, m = camera.height * samples, camera.width * samples
    row, column = np.meshgrid((np.arange(n) + 0.5) / samples, (np.arange(m) + 0.5) / samples, indexing="ij")
    local = np.stack([column - 0.5 * camera.width, row - 0.5 * camera.height, np.full_like(row, camera.focal)], -1).reshape(-1, 3)
    rays = local @ camera.axes
    rays = rays / np.linalg.norm(rays, axis=1, keepdims=True)
    origin, lamp = np.array(camera.position), np.array(camera.light)
    geom, distance, normal = _cast(model, data, origin, rays)
    hit = geom >= 0
    image = np.tile(np.array(SKY), (len(rays), 1))
    points = origin + distance[hit, None] * rays[hit]
    to_lamp = lamp - points
    far = np.linalg.norm(to_lamp, axis=1)
    to_lamp /= far[:, None]
    facing = np.clip((normal[hit] * to_lamp).sum(1), 0.0, 1.0)
    blocked, reach, _ = _cast(model, data, lamp, -to_lamp)
    lit = np.where((blocked >= 0) & (reach < far - LIFT), SHADOW, 1.0)
    halfway = to_lamp - rays[hit]
    halfway /= np.linalg.norm(halfway, axis=1, keepdims=True)
    shine = np.where(lit == 1.0, GLOSS * np.clip((normal[hit] * halfway).sum(1), 0.0, 1.0) ** 40, 0.0)
    plane = model.geom_type[geom[hit]] == int(mujoco.mjtGeom.mjGEOM_PLANE)
    colour = _colours(model)[geom[hit]] * np.where(plane, lit, AMBIENT + (1 - AMBIENT) * facing * lit)[:, None]
    colour += np.where(plane, 0.0, shine)[:, None]
    # a floor has no edge worth drawing: it fades into the sky around what stands on it
    away = np.linalg.norm((points - np.array(camera.target))[:, :2], axis=1) / model.stat.extent
    fade = np.where(plane, np.clip(1.0 - away / FADE, 0.0, 1.0), 1.0)[:, None]
    image[hit] = fade * np.clip(colour, 0.0, 1.0) + (1 - fade) * np.array(SKY)
    return np.asarray(image.reshape(camera.height, samples, camera.width, samples, 3).mean((1, 3)))


def _cast(model: mujoco.MjModel, data: mujoco.MjData, origin: Array, rays: Array) -> tuple[NDArray[np.int32], Array, Array]:
    """Return geom (-1 for none), distance and surface normal that rays [N, 3] from one point meet."""
    n = len(rays)
    geom, distance, normal = np.full(n, -1, np.int32), np.zeros(n), np.zeros(3 * n)
    mujoco.mj_multiRay(model, data, origin, np.ascontiguousarray(rays).ravel(), None, 1, -1, geom, distance, normal, n, mujoco.mjMAXVAL)
    return geom, distance, normal.reshape(n, 3)


def _colours(model: mujoco.MjModel) -> Array:
    """Return red, green and blue of every geom, shape [ngeom, 3]."""
    own = np.array(model.geom_rgba[:, :3], dtype=np.float64)
    for i in np.flatnonzero(model.geom_matid >= 0):
        own[i] = model.mat_rgba[model.geom_matid[i], :3]
    return own
