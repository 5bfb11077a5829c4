"""A quadrotor with every term of its equations at work, and flights of it."""

from __future__ import annotations

import torch
from torch import Tensor

from residual_mbrl.physics.mechanical import Integrator
from residual_mbrl.physics.quadrotor import Quadrotor
from residual_mbrl.physics.quadrotor_parameters import PARAMETERS

NAMES = PARAMETERS.names
VALUES = {**PARAMETERS.nominal(), "inertia_xx": 2.4e-5, "inertia_yy": 2.1e-5, "inertia_zz": 3.3e-5, "inertia_xy": 8e-7, "inertia_xz": -6e-7,
          "inertia_yz": 5e-7, "centre_x": 0.004, "centre_y": -0.003, "centre_z": 0.006, "arm_x": 0.033, "arm_y": 0.036,
          "thrust1": 0.030, "thrust2": 0.033, "thrust3": 0.031, "thrust4": 0.028, "drag_torque": 2e-4, "rotor_inertia": 2e-8,
          "motor_lag": 0.02, "command_gain": 1.1, "battery": 0.9, "battery_exponent": 0.8, "drag_x": 0.02, "drag_y": 0.03, "drag_z": 0.01,
          "drag_rotor": 0.002, "drag_quadratic": 0.004, "pressure_x": 0.003, "pressure_y": -0.004, "pressure_z": 0.02,
          "rate_drag_x": 2e-5, "rate_drag_y": 3e-5, "rate_drag_z": 1e-5, "flow_moment_x": 2e-4, "flow_moment_y": 3e-4,
          "flow_moment_axial_x": -5e-5, "flow_moment_axial_y": 8e-5, "translational_lift": 0.004,
          "trim_x": 1e-4, "trim_y": -2e-4, "trim_z": 5e-5}
"""Values at which every term counts."""


def quadrotor(*, dt: float = 0.01, substeps: int = 1, integrator: Integrator = "rk4", **values: float) -> Quadrotor:
    """Build a quadrotor with the values above, or others."""
    changes = {n: {"nominal": x} for n, x in {**VALUES, **values}.items()}
    return Quadrotor(PARAMETERS.replaced(**changes), dt=dt, substeps=substeps, integrator=integrator)


def random_flight(batch: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States of any attitude, commands, forces and parameter values, each [batch, ...], float64."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randn(batch, n, generator=g, dtype=torch.float64)  # noqa: E731
    q = draw(4)
    x = torch.cat([draw(3), q / q.norm(dim=-1, keepdim=True), 2 * draw(3), 8 * draw(3), 1.5 + 0.3 * draw(4)], -1)
    p = torch.tensor([VALUES[n] for n in NAMES], dtype=torch.float64) * (1 + 0.1 * draw(len(NAMES)))
    return x, 1.5 + 0.3 * draw(4), draw(6) * torch.tensor([0.2] * 3 + [1e-3] * 3, dtype=torch.float64), p


def step_by_vectors(drone: Quadrotor, x: Tensor, u: Tensor, force: Tensor, p: Tensor) -> Tensor:
    """Step with parameter values in order, shape [*batch, number]."""
    return drone.step(x, u, force, dict(zip(NAMES, p.unbind(-1), strict=True)))
