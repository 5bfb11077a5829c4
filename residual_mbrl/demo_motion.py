"""Motions of the demo's arm: random sines that excite every joint, and a figure of eight that the tool draws."""

from __future__ import annotations

from collections.abc import Callable

import mujoco
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

Array = NDArray[np.float64]
Motion = Callable[[Array], Array]

REST = 0.1
"""Seconds of rest at the start of a motion."""

TRAVEL = np.array([0.9, 0.5, 0.8, 0.8, 1.4, 1.1, 1.6])
"""Largest excursion of each joint from home in the logs [rad]."""
WAVES, SLOWEST, FASTEST = 5, 0.15, 1.8
"""Sines that each joint's motion is made of, and between which frequencies [Hz] they lie."""
SHIFT = 0.3
"""Largest distance of a log's middle pose from home, in parts of the travel."""
FADE = 1.0
"""Seconds until they are at their full size."""

WIDTH, HEIGHT, ROUNDS = 0.26, 0.14, 2
"""Half width and half height of the eight [m], and how often it is drawn."""
KNOTS = 60
"""Poses of one round, between which joint angles are splines."""


def home_pose(model: mujoco.MjModel) -> Array:
    """Return the pose that the arm's keyframe holds [rad]."""
    return np.array(model.key_qpos[0])


def excitation(home: Array, seed: int) -> Motion:
    """Make a motion of random sines about a pose near home, where it starts at rest.

    Args:
        home: Home [rad], shape [7].
        seed: Seed of pose, frequencies, sizes and phases.
    """
    rng = np.random.default_rng(seed)
    middle = home + SHIFT * TRAVEL * rng.uniform(-1.0, 1.0, len(home))
    shape = (WAVES, len(home))
    rate = 2 * np.pi * rng.uniform(SLOWEST, FASTEST, shape)
    size = rng.uniform(0.5, 1.0, shape) / rate**0.8
    size = TRAVEL * size / size.sum(0)
    phase = rng.uniform(0.0, 2 * np.pi, shape)

    def motion(time: Array) -> Array:
        return np.asarray(middle + _smooth(time / FADE)[:, None] * (size * np.sin(rate * time[:, None, None] + phase)).sum(1))

    return lambda time: motion(time - REST)


def figure_of_eight(model: mujoco.MjModel, seconds: float) -> Motion:
    """Make the motion of joints that draws eights with the tool, upright in front of the arm, the hand held as it is at home.

    Args:
        model: The arm, with a keyframe for home and a site ``tool``.
        seconds: Until the last eight is drawn.
    """
    home = home_pose(model)
    data = mujoco.MjData(model)
    data.qpos[:] = home
    mujoco.mj_kinematics(model, data)
    centre, hand = data.site("tool").xpos.copy(), data.site("tool").xmat.copy()
    angle = np.linspace(0.0, 2 * np.pi * ROUNDS, ROUNDS * KNOTS + 1)
    points = centre + np.stack([np.zeros_like(angle), WIDTH * np.sin(angle), HEIGHT * np.sin(2 * angle)], 1)
    poses = []
    for point in points:
        poses.append(_reach(model, data, point, hand, home))
    path = CubicSpline(angle, np.array(poses), bc_type="clamped")
    return lambda time: np.asarray(path(angle[-1] * _smooth((time - REST) / (seconds - REST))))


def _smooth(share: Array) -> Array:
    """Go from 0 to 1, twice differentiable, as torques must not jump."""
    s = np.clip(share, 0.0, 1.0)
    return np.asarray(s**3 * (10 - 15 * s + 6 * s**2))


def _reach(model: mujoco.MjModel, data: mujoco.MjData, point: Array, hand: Array, home: Array) -> Array:
    """Solve for the pose nearest home that has the tool at a point and the hand turned as given; starts where ``data`` is."""
    tool, moving, turning = model.site("tool").id, np.zeros((3, model.nv)), np.zeros((3, model.nv))
    wanted, seen, turn = np.zeros(4), np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(wanted, hand)
    for _ in range(30):
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_jacSite(model, data, moving, turning, tool)
        mujoco.mju_mat2Quat(seen, data.site_xmat[tool])
        mujoco.mju_subQuat(turn, wanted, seen)
        error = np.concatenate([point - data.site_xpos[tool], data.site_xmat[tool].reshape(3, 3) @ turn])
        jacobian = np.concatenate([moving, turning])
        inverse = np.linalg.pinv(jacobian)
        free = home - data.qpos
        data.qpos[:] += inverse @ error + free - inverse @ (jacobian @ free)
    return np.array(data.qpos)
