"""Flights of a simulated quadrotor under a controller that knows its nominal model: data for adaptation and outliers, without a log."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.physics.quadrotor import ROTORS, Quadrotor
from residual_mbrl.physics.quadrotor_parameters import PARAMETERS
from residual_mbrl.rollouts import rollout

Array = NDArray[np.float64]
DT = 0.01
PATHS = ("lissajous", "square", "hover")
FACTS = {"motor_lag": 0.03, "drag_x": 0.01, "drag_y": 0.01, "drag_z": 0.01, "rotor_inertia": 1e-8, "inertia_zz": 4e-5, "drag_torque": 4e-4}
"""What differs from the published numbers here, so that the craft has a rotor lag to carry and some hold on its yaw."""
NOISE = {"position": 0.0005, "rotation": 0.001, "velocity": 0.01, "rate": 0.05}
SPREADS = np.repeat(list(NOISE.values()), 3)
"""Of the measured tangent, shape [12]."""


def quadrotor(**values: float) -> Quadrotor:
    """Return the craft, or one of other parameter values, stepped every ``DT``."""
    return Quadrotor(PARAMETERS.replaced(**{n: {"nominal": x} for n, x in {**FACTS, **values}.items()}), dt=DT, substeps=1)


def fly(seconds: float, values: Mapping[str, float], *, seed: int = 0, path: str = "lissajous", batch: int = 1) -> tuple[Array, Array]:
    """Fly craft with these parameter values along paths of random phase; return states [batch, T + 1, 17] and commands [batch, T, 4].

    Args:
        seconds: Duration.
        values: True parameter values.
        seed: Of phases and of the dither of the commands.
        path: "lissajous", "square" or "hover".
        batch: Craft.

    Raises:
        ValueError: if the path is unknown.
    """
    if path not in PATHS:
        raise ValueError(f"fly: path must be one of {PATHS}, received {path!r}")
    plant = ResidualDynamics(quadrotor(**values))
    nominal = {**quadrotor().parameters.nominal()}
    rng = np.random.default_rng(seed)
    phase, rate = 2 * math.pi * rng.random((batch, 3)), 1.5 + 1.0 * rng.random((batch, 3))
    hover = math.sqrt(nominal["mass"] * 9.81 / (4 * nominal["thrust1"]))
    x = np.zeros((batch, 17))
    x[:, 3], x[:, 13:] = 1.0, hover
    states, commands = [x], []
    for t in range(round(seconds / DT)):
        target, speed = _target(path, t * DT, phase, rate)
        u = _command(x, target, speed, nominal) + 0.02 * rng.standard_normal((batch, 4))
        with torch.no_grad():
            x = rollout(plant, torch.from_numpy(x), torch.from_numpy(u[:, None]))[:, 1].numpy()
        states.append(x)
        commands.append(u)
    return np.stack(states, 1), np.stack(commands, 1)


def measured(states: Array, seed: int = 0) -> Array:
    """Return states with measurement noise and without rotor speeds, which nobody measures (NaN)."""
    space = quadrotor().space
    noise = np.zeros((*states.shape[:-1], space.ndx))
    noise[..., :12] = SPREADS * np.random.default_rng(seed).standard_normal((*states.shape[:-1], 12))
    shown = space.integrate(torch.from_numpy(states), torch.from_numpy(noise)).numpy()
    shown[..., 13:] = np.nan
    return shown


def _target(path: str, t: float, phase: Array, rate: Array) -> tuple[Array, Array]:
    if path == "hover":
        return np.zeros_like(phase), np.zeros_like(phase)
    if path == "square":
        corner = np.floor(t / 0.8 + phase[:, 0]) % 4
        at = np.stack([np.where((corner == 1) | (corner == 2), 1.0, -1.0), np.where(corner >= 2, 1.0, -1.0), 0 * corner], -1)
        return at, np.zeros_like(at)
    size = np.array([0.8, 0.8, 0.3])
    return size * (np.sin(rate * t + phase) - np.sin(phase)), size * rate * np.cos(rate * t + phase)


def _command(x: Array, target: Array, speed: Array, p: Mapping[str, float]) -> Array:
    q, v, w = x[:, 3:7], x[:, 7:10], x[:, 10:13]
    q = q / np.linalg.norm(q, axis=1, keepdims=True)
    want = np.clip(6 * (target - x[:, :3]) + 4 * (speed - v), -6, 6) + np.array([0, 0, 9.81])
    a, b, c, d = q.T
    up = np.stack([2 * (b * d + a * c), 2 * (c * d - a * b), 1 - 2 * (b * b + c * c)], -1)
    lift = p["mass"] * np.clip((want * up).sum(1), 2, 20)
    axis = np.cross(up, want / np.linalg.norm(want, axis=1, keepdims=True))
    # into the body frame: Rᵀ axis
    r = np.stack([np.stack([1 - 2 * (c * c + d * d), 2 * (b * c + a * d), 2 * (b * d - a * c)], -1),
                  np.stack([2 * (b * c - a * d), 1 - 2 * (b * b + d * d), 2 * (c * d + a * b)], -1), up], -2)
    tilt = (r @ axis[..., None])[..., 0]
    torque = np.array([p["inertia_xx"], p["inertia_yy"], p["inertia_zz"]]) * (80 * tilt - 15 * w)
    signs = np.array(ROTORS, dtype=float)
    thrust = lift[:, None] / 4 + torque[:, :1] * signs[:, 1] / (4 * p["arm_y"]) - torque[:, 1:2] * signs[:, 0] / (4 * p["arm_x"])
    thrust -= torque[:, 2:] * signs[:, 2] * p["thrust1"] / p["drag_torque"] / 4
    return np.asarray(np.sqrt(np.clip(thrust / p["thrust1"], 0.1, 6.0)))
