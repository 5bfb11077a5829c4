"""Small models with closed forms for tests of planners: a double integrator and a body that turns in space."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from residual_mbrl.baselines import Baseline, Parameter, Parameters, WarpStep
from residual_mbrl.costs import QuadraticCost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.spaces import StateSpace

F64 = torch.float64


class Cart(Baseline):
    """A mass on a rail: ``v' = v + dt u / m, x' = x + dt v'``; linear, so everything quadratic has a closed form."""

    def __init__(self, dt: float = 0.1) -> None:
        self.space = StateSpace(position=("x",), velocity=("v",), action=("u",))
        self.parameters = Parameters(Parameter(name="mass", nominal=1.0, lower=0.1, upper=10.0, unit="kg"))
        self.dt = dt

    def step(self, state, action, force=None, parameters=None):
        m = self.parameters.resolve(parameters, state)["mass"]
        v = state[..., 1] + self.dt * action[..., 0] / m
        return torch.stack([state[..., 0] + self.dt * v, v], -1)

    def warp_step(self):
        import warp as wp

        dt, v2 = self.dt, wp.types.vector(length=2, dtype=wp.float32)

        @wp.func
        def substep(x: Any, u: Any, force: Any, p: Any) -> Any:
            v = x[1] + dt * u[0] / p[0]
            return v2(x[0] + dt * v, v)

        return WarpStep(substep)


class Spin(Baseline):
    """A body with unit inertia: ``w' = w + dt u, q' = q ⊗ exp(dt w')``."""

    def __init__(self, dt: float = 0.1) -> None:
        self.space = StateSpace(position=("qw", "qx", "qy", "qz"), velocity=("wx", "wy", "wz"), action=("ux", "uy", "uz"),
                                quaternions=((0, 0),))
        self.parameters, self.dt = Parameters(), dt

    def step(self, state, action, force=None, parameters=None):
        w = state[..., 4:] + self.dt * action
        q = self.space.integrate_position(state[..., :4], self.dt * w)
        return torch.cat(torch.broadcast_tensors(q[..., :1], w[..., :1])[:1] + (q[..., 1:], w), -1)

    def warp_step(self):
        import warp as wp

        dt, v7 = self.dt, wp.types.vector(length=7, dtype=wp.float32)

        @wp.func
        def substep(x: Any, u: Any, force: Any, p: Any) -> Any:
            a, b, c = x[4] + dt * u[0], x[5] + dt * u[1], x[6] + dt * u[2]
            half = 0.5 * dt * wp.sqrt(wp.max(a * a + b * b + c * c, 1e-30))
            s, w = 0.5 * dt * wp.sin(half) / half, wp.cos(half)
            i, j, k = s * a, s * b, s * c
            return v7(x[0] * w - x[1] * i - x[2] * j - x[3] * k, x[0] * i + x[1] * w + x[2] * k - x[3] * j,
                      x[0] * j - x[1] * k + x[2] * w + x[3] * i, x[0] * k + x[1] * j - x[2] * i + x[3] * w, a, b, c)

        return WarpStep(substep)


def cart() -> ResidualDynamics:
    return ResidualDynamics(Cart())


def cart_cost(dynamics: ResidualDynamics, dtype: torch.dtype = F64, target: Tensor | None = None) -> QuadraticCost:
    return QuadraticCost(space=dynamics.space, state=torch.tensor([1.0, 0.1], dtype=dtype), action=torch.tensor([0.05], dtype=dtype),
                         terminal=torch.tensor([5.0, 1.0], dtype=dtype), target=target)


def spin_cost(dynamics: ResidualDynamics) -> QuadraticCost:
    goal = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0], dtype=F64)
    return QuadraticCost(space=dynamics.space, state=torch.tensor([1.0, 2.0, 3.0, 0.1, 0.1, 0.1], dtype=F64),
                         action=torch.full((3,), 0.02, dtype=F64), terminal=torch.tensor([10.0, 10.0, 10.0, 1.0, 1.0, 1.0], dtype=F64),
                         target=goal)


def condensed(x0: np.ndarray, steps: int, dt: float = 0.1) -> tuple[np.ndarray, np.ndarray, float, np.ndarray, np.ndarray]:
    """The cart's cost as ``½ u'Hu + g'u + c`` of all actions, and its states as ``S u + s``, rows of all but the first."""
    A, B = np.array([[1, dt], [0, 1]]), np.array([[dt * dt], [dt]])
    S, s = np.zeros((2 * steps, steps)), np.zeros(2 * steps)
    rows, free = np.zeros((2, steps)), x0.copy()
    for t in range(steps):
        rows = A @ rows
        rows[:, t] += B[:, 0]
        free = A @ free
        S[2 * t : 2 * t + 2], s[2 * t : 2 * t + 2] = rows, free
    Q = np.diag([*([1.0, 0.1] * (steps - 1)), 5.0, 1.0])
    H, g = 2 * (S.T @ Q @ S + 0.05 * np.eye(steps)), 2 * S.T @ Q @ s
    return H, g, float(s @ Q @ s + x0 @ np.diag([1.0, 0.1]) @ x0), S, s
