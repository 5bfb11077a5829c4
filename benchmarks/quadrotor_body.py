"""A quadrotor without rotor dynamics: 13 states and 4 thrusts, the model of published real-time neural MPC.

Salzmann et al., "Real-time neural MPC", IEEE RA-L 8(4), 2023: pose, velocity and body rate; thrusts act at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from residual_mbrl.baselines import Baseline, Parameter, Parameters, Port, Values, WarpStep
from residual_mbrl.spaces import StateSpace

SPACE = StateSpace(position=("x", "y", "z", "qw", "qx", "qy", "qz"), velocity=("vx", "vy", "vz", "wx", "wy", "wz"),
                   action=("thrust1", "thrust2", "thrust3", "thrust4"), quaternions=((3, 3),))
ROTORS = ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1))
"""Signs of x and y, and spin, of each rotor."""


class QuadrotorBody(Baseline):
    """A rigid body under four thrusts; force is world force [N] and body torque [N·m].

    ``m dv/dt = R(q) Σ T_i z - m g z + f``, ``J dω/dt = τ(T) - ω × J ω + t``, ``dq/dt = q ⊗ (0, ω) / 2`` by one classical Runge-Kutta
    step of fourth order with forces and thrusts held; the quaternion is brought back to unit length.

    Args:
        dt: Seconds per step.
    """

    ports = frozenset((Port.FORCE, Port.PARAMETERS))
    space = SPACE
    parameters = Parameters(
        Parameter(name="mass", nominal=0.75, lower=0.1, upper=5.0, unit="kg"),
        Parameter(name="gravity", nominal=9.81, lower=0.0, upper=30.0, unit="m/s²"),
        Parameter(name="inertia_x", nominal=2.5e-3, lower=1e-5, upper=1.0, unit="kg·m²"),
        Parameter(name="inertia_y", nominal=2.1e-3, lower=1e-5, upper=1.0, unit="kg·m²"),
        Parameter(name="inertia_z", nominal=4.3e-3, lower=1e-5, upper=1.0, unit="kg·m²"),
        Parameter(name="arm", nominal=0.1, lower=0.01, upper=1.0, unit="m", description="along x and along y"),
        Parameter(name="drag_torque", nominal=0.022, lower=0.0, upper=1.0, unit="m", description="torque about z per thrust"))

    def __init__(self, *, dt: float = 0.05) -> None:
        self.dt = dt
        self.live = frozenset(self.parameters.names)

    def step(self, state: Tensor, action: Tensor, force: Tensor | None = None, parameters: Values | None = None) -> Tensor:
        """Advance ``dt`` seconds; gradients by torch autograd."""
        p, h = self.parameters.resolve(parameters, state), self.dt
        outside = state.new_zeros(6) if force is None else force
        x, y, spin = state.new_tensor(ROTORS).unbind(-1)
        lift = action.sum(-1)
        roll, pitch, yaw = ((signs * action).sum(-1) for signs in (y, -x, -spin))
        torque = torch.stack([p["arm"] * roll, p["arm"] * pitch, p["drag_torque"] * yaw], -1) + outside[..., 3:]
        inertia = torch.stack([p["inertia_x"], p["inertia_y"], p["inertia_z"]], -1)
        push = outside[..., :3] / p["mass"].unsqueeze(-1)

        def rate(s: Tensor) -> Tensor:
            a, b, c, d = s[..., 3:7].unbind(-1)
            v, w = s[..., 7:10], s[..., 10:]
            up = torch.stack([2 * (b * d + a * c), 2 * (c * d - a * b), a * a - b * b - c * c + d * d], -1)
            fall = torch.stack([torch.zeros_like(a), torch.zeros_like(a), p["gravity"].expand_as(a)], -1)
            k, m, n = w.unbind(-1)
            turn = 0.5 * torch.stack([-b * k - c * m - d * n, a * k + c * n - d * m, a * m + d * k - b * n, a * n + b * m - c * k], -1)
            spinning = (torque - torch.linalg.cross(w, inertia * w)) / inertia
            return torch.cat([v, turn, up * (lift / p["mass"]).unsqueeze(-1) - fall + push, spinning], -1)

        k1 = rate(state)
        k2 = rate(state + 0.5 * h * k1)
        k3 = rate(state + 0.5 * h * k2)
        k4 = rate(state + h * k3)
        new = state + h / 6 * (k1 + 2 * (k2 + k3) + k4)
        q = new[..., 3:7]
        return torch.cat([new[..., :3], q / q.square().sum(-1, keepdim=True).sqrt(), new[..., 7:]], -1)

    def warp_step(self) -> WarpStep:
        """Return the same step as a Warp function of one world."""
        import warp as wp  # noqa: PLC0415  # half a second

        h, v13 = self.dt, wp.types.vector(length=13, dtype=wp.float32)
        rotors = tuple(tuple(float(s) for s in r) for r in ROTORS)

        @wp.func
        def substep(x: Any, u: Any, f: Any, p: Any) -> Any:
            mass, gravity, arm, drag = p[0], p[1], p[5], p[6]
            inertia = (p[2], p[3], p[4])
            lift = (u[0] + u[1] + u[2] + u[3]) / mass
            roll, pitch, yaw = f[3], f[4], f[5]
            for i in range(4):
                roll, pitch, yaw = roll + arm * rotors[i][1] * u[i], pitch - arm * rotors[i][0] * u[i], yaw - drag * rotors[i][2] * u[i]

            def rate(s: Any) -> Any:
                a, b, c, d, k, m, n = s[3], s[4], s[5], s[6], s[10], s[11], s[12]
                return v13(s[7], s[8], s[9],
                           0.5 * (-b * k - c * m - d * n), 0.5 * (a * k + c * n - d * m), 0.5 * (a * m + d * k - b * n),
                           0.5 * (a * n + b * m - c * k),
                           2.0 * (b * d + a * c) * lift + f[0] / mass, 2.0 * (c * d - a * b) * lift + f[1] / mass,
                           (a * a - b * b - c * c + d * d) * lift - gravity + f[2] / mass,
                           (roll - m * n * (inertia[2] - inertia[1])) / inertia[0],
                           (pitch - n * k * (inertia[0] - inertia[2])) / inertia[1],
                           (yaw - k * m * (inertia[1] - inertia[0])) / inertia[2])

            k1 = rate(x)
            k2 = rate(x + 0.5 * h * k1)
            k3 = rate(x + 0.5 * h * k2)
            k4 = rate(x + h * k3)
            y = x + h / 6.0 * (k1 + 2.0 * (k2 + k3) + k4)
            size = wp.sqrt(y[3] * y[3] + y[4] * y[4] + y[5] * y[5] + y[6] * y[6])
            return v13(y[0], y[1], y[2], y[3] / size, y[4] / size, y[5] / size, y[6] / size, y[7], y[8], y[9], y[10], y[11], y[12])

        return WarpStep(substep)
