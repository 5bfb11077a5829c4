"""Coulomb friction that falls from its sliding value to its impact value as a corner is pressed harder into the table.

    μ = μ_impact + (μ_sliding - μ_impact) exp(-s / s0),   s = max over touching corners of v_down + κ depth

s [m/s] stands for the load: a soft contact presses with stiffness times depth plus damping times speed. The value goes in through
the parameter port, so that the solver keeps its cone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from cube_model import FRICTION, LAW, SHAPE, SIGNS, expand
from torch import Tensor

from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.physics.rotations import rotate_back


def has_law(values: Mapping[str, float]) -> bool:
    """Tell whether values are those of a model with this law."""
    return all(p.name in values for p in LAW)


def friction(state: Tensor, values: Mapping[str, float], floor: float, dt: float) -> Tensor:
    """Return the friction of each world's next step [1], shape [batch].

    Args:
        state: Position, quaternion, velocity, body rate, shape [batch, 13].
        values: Of the shape, the friction and the law.
        floor: Height of the floor [m].
        dt: Seconds per step: a corner that will touch within it counts with its speed already.
    """
    shape = {p.name: values.get(p.name, p.nominal) for p in SHAPE}
    radius = shape["corner_radius"]
    half, offset = (state.new_tensor([shape[f"{n}.{a}"] for a in "xyz"]) for n in ("half_width", "offset"))
    corners = state.new_tensor(SIGNS) * (half - radius) + offset
    up = rotate_back(state[:, 3:7], state.new_tensor([0.0, 0.0, 1.0]))
    height = state[:, 2:3] + up @ corners.T - radius - floor
    falling = (-(state[:, 9:10] + torch.linalg.cross(up, state[:, 10:13]) @ corners.T)).clamp(min=0)
    load = ((falling + values["depth_rate"] * (-height).clamp(min=0)) * (height < falling * dt)).amax(1)
    low, high = values["impact_friction"], values[FRICTION]
    return low + (high - low) * torch.exp(-load / values["impact_speed"])


def rollout(simulator: MujocoSimulator, state: Tensor, steps: int, values: Mapping[str, float]) -> Tensor:
    """Return states, shape [batch, steps + 1, 13], with the friction set before every step where the values hold the law's.

    Args:
        simulator: The model.
        state: First states, shape [batch, 13].
        steps: Steps.
        values: Of ``cube_model.searched``.
    """
    fixed = {n: state.new_tensor(x) for n, x in expand(simulator, values).items()}
    with torch.no_grad():
        if not has_law(values):
            return simulator.rollout(state, state.new_zeros(len(state), steps, 0), fixed)
        states, action = [state], state.new_zeros(len(state), 0)
        for _ in range(steps):
            mu = friction(states[-1], values, float(fixed["pos:floor.z"]), simulator.dt)
            states.append(simulator.step(states[-1], action, None, {**fixed, FRICTION: mu}))
        return torch.stack(states, 1)
