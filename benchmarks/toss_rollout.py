"""Rollouts of many tosses of one cube, each as long as its log, with a contact law and a flight law that change at every row.

The engine steps all worlds in one call a row. Worlds whose log has ended are left out, and so are those that have come to rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mujoco
import numpy as np
from cube_model import FRICTION, LAW, SHAPE, SIGNS, expand
from mujoco.batch import Batch
from numpy.typing import NDArray

from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.physics.mujoco_warnings import QUIET

Array = NDArray[np.float64]

STILL = (1e-3, 1e-2)
"""Speed [m/s] and body rate [rad/s] below which a cube on its face has come to rest."""


@dataclass(frozen=True)
class Corners:
    """Corners of a cube against the floor, shapes [worlds, 8].

    Args:
        gap: Height of each corner's lowest point over the floor [m].
        falling: Its downward speed, not below zero [m/s].
        slip: Its horizontal speed [m/s].
        near: Which touch, or will within the row at this speed.
    """

    gap: Array
    falling: Array
    slip: Array
    near: NDArray[np.bool_]


Law = Callable[[Corners, Mapping[str, Array]], Mapping[str, Array]]
"""From the corners and the floor's own numbers (friction, timeconst, dampratio) to those of the next row, each [worlds]."""


def corners(state: Array, values: Mapping[str, float], floor: float, dt: float) -> Corners:
    """Return what the eight corners do.

    Args:
        state: Position, quaternion, velocity, body rate, shape [worlds, 13].
        values: Of the shape, nominal where missing.
        floor: Height of the floor [m].
        dt: Seconds a row.
    """
    shape = {p.name: values.get(p.name, p.nominal) for p in SHAPE}
    radius = shape["corner_radius"]
    half, offset = (np.array([shape[f"{n}.{a}"] for a in "xyz"]) for n in ("half_width", "offset"))
    places = np.array(SIGNS) * (half - radius) + offset
    w, x, y, z = state[:, 3:7].T
    turn = np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
                     2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
                     2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1).reshape(-1, 3, 3)
    up, rate = turn[:, 2], (turn @ state[:, 10:, None])[..., 0]
    arm = places @ turn.transpose(0, 2, 1)
    gap = state[:, 2:3] + up @ places.T - radius - floor
    arm[..., 2] -= radius + 0.5 * gap  # to where the engine has the contact point, halfway between the surfaces
    speed = state[:, None, 7:10] + np.cross(rate[:, None], arm)
    falling = np.maximum(-speed[..., 2], 0.0)
    return Corners(gap, falling, np.hypot(speed[..., 0], speed[..., 1]), gap < falling * dt)


def rollout(simulator: MujocoSimulator, starts: Array, rows: NDArray[np.int64], values: Mapping[str, float], law: Law | None = None, *,
            stop: bool = True) -> Array:
    """Return position and quaternion of every row, shape [worlds, most rows, 7], past the end of a log as at its end; NaN if lost.

    Args:
        simulator: The model; a row is one of its steps.
        starts: First states, shape [worlds, 13].
        rows: Rows of each log, shape [worlds].
        values: Of ``cube_model.searched``, nominal where missing.
        law: Sets the floor's numbers before every row; that of ``load_friction`` where None, if the values have its own.
        stop: Whether cubes at rest are left where they are.
    """
    found = expand(simulator, values)
    model, height, dt = simulator.model_with(found), found["pos:floor.z"], simulator.dt
    substeps = round(dt / model.opt.timestep)
    floor = mujoco.mj_name2id(model, int(mujoco.mjtObj.mjOBJ_GEOM), "floor")
    mass = float(model.body_mass[1])
    flight = mass * np.array([[-values.get("drag", 0.0), -values.get("swirl", 0.0)], [values.get("swirl", 0.0), -values.get("drag", 0.0)]])
    batch = Batch(model, len(starts), nthread=1)
    qpos, qvel, force = batch.bind("qpos"), batch.bind("qvel"), batch.bind("qfrc_applied")
    qpos[...], qvel[...] = starts[:, :7], starts[:, 7:]
    slide = found[FRICTION]
    friction = batch.expand("geom_friction")
    solref = batch.expand("geom_solref") if law is not None else None
    base = np.array(model.geom_solref[floor])
    poses = np.full((len(starts), int(rows.max()), 7), np.nan)
    poses[:, 0] = starts[:, :7]
    active = np.arange(len(starts))
    with QUIET:
        for k in range(1, poses.shape[1]):
            ended = rows[active] <= k
            state = np.concatenate([qpos[active], qvel[active]], 1)
            if stop:
                speed, rate = np.linalg.norm(state[:, 7:10], axis=1), np.linalg.norm(state[:, 10:], axis=1)
                ended |= (speed < STILL[0]) & (rate < STILL[1])
            if ended.any():
                poses[active[ended], k:] = qpos[active[ended], None]
                active, state = active[~ended], state[~ended]
            if not len(active):
                break
            seen = corners(state, values, height, dt)
            if law is not None:
                numbers = law(seen, {"friction": np.full(len(active), slide), "timeconst": np.full(len(active), base[0]),
                                     "dampratio": np.full(len(active), base[1])})
                friction[active, floor, 0] = numbers["friction"]
                solref[active, floor, 0], solref[active, floor, 1] = numbers["timeconst"], numbers["dampratio"]
            elif all(p.name in values for p in LAW):
                friction[active, floor, 0] = load_friction(seen, values)
            force[active, :2] = np.where((seen.gap > 0).all(1)[:, None], state[:, 7:9] @ flight.T, 0.0)
            batch.step(active, nstep=substeps)
            poses[active, k] = qpos[active]
    poses[(batch.warning[..., 1] > 0).any(1)] = np.nan
    return poses


def load_friction(seen: Corners, values: Mapping[str, float]) -> Array:
    """Return ``μ_impact + (μ_sliding - μ_impact) exp(-s / s0)``, s = max over touching corners of v_down + κ depth, shape [worlds]."""
    load = ((seen.falling + values["depth_rate"] * np.maximum(-seen.gap, 0)) * seen.near).max(1)
    low, high = values["impact_friction"], values[FRICTION]
    return low + (high - low) * np.exp(-load / values["impact_speed"])
