"""The cart-pole with its network in torch, as lean as it can be written: what mpc.pytorch and pytorch_mppi are given."""

from __future__ import annotations

import torch
from problem import Problem
from torch import Tensor, nn


class CartPole(nn.Module):
    """``forward(x, u)`` is one step, ``grad_input(x, u)`` its Jacobian; both for a batch."""

    def __init__(self, problem: Problem, dtype: torch.dtype) -> None:
        super().__init__()
        self.dt, self.bound, p = problem.dt, problem.bound, problem.parameters
        self.weights = [torch.tensor(w, dtype=dtype) for w in problem.weights]
        self.biases = [torch.tensor(b, dtype=dtype) for b in problem.biases]
        self.moment = p["pole_mass"] * p["length"]
        self.weight = self.moment * p["gravity"]
        self.m11, self.m22 = p["cart_mass"] + p["pole_mass"], p["pole_inertia"] + self.moment * p["length"]

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """Return the next states [B, 4]."""
        h = torch.cat([x, u], 1)
        for w, b in zip(self.weights, self.biases, strict=True):
            h = torch.tanh(torch.addmm(b, h, w))
        r = self.bound * h
        s, c, w = torch.sin(x[:, 1]), torch.cos(x[:, 1]), x[:, 3]
        b1, b2 = u[:, 0] + r[:, 0] + self.moment * w * w * s, r[:, 1] - self.weight * s
        m12 = self.moment * c
        det = self.m11 * self.m22 - m12 * m12
        v = x[:, 2:] + self.dt * torch.stack([(self.m22 * b1 - m12 * b2) / det, (self.m11 * b2 - m12 * b1) / det], 1)
        return torch.cat([x[:, :2] + self.dt * v, v], 1)

    def grad_input(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the Jacobians by x [B, 4, 4] and by u [B, 4, 1]."""
        h, slope = torch.cat([x, u], 1), None
        for w, b in zip(self.weights, self.biases, strict=True):
            h = torch.tanh(torch.addmm(b, h, w))
            slope = (1 - h * h).unsqueeze(2) * (w.T.expand(len(h), -1, -1) if slope is None else w.T @ slope)
        r, slope = self.bound * h, self.bound * slope
        s, c, w = torch.sin(x[:, 1]), torch.cos(x[:, 1]), x[:, 3]
        b1, b2 = u[:, 0] + r[:, 0] + self.moment * w * w * s, r[:, 1] - self.weight * s
        m12 = self.moment * c
        det = self.m11 * self.m22 - m12 * m12
        a1, a2 = (self.m22 * b1 - m12 * b2) / det, (self.m11 * b2 - m12 * b1) / det
        d1, d2 = slope[:, 0].clone(), slope[:, 1].clone()  # of b1 and b2 by (x, u)
        d1[:, 4] += 1
        d1[:, 1] += self.moment * (w * w * c + s * a2)  # less what the mass matrix changes
        d1[:, 3] += 2 * self.moment * w * s
        d2[:, 1] += self.moment * s * a1 - self.weight * c
        m12 = m12.unsqueeze(1)
        low = self.dt / det.reshape(-1, 1, 1) * torch.stack([self.m22 * d1 - m12 * d2, self.m11 * d2 - m12 * d1], 1)
        low[:, 0, 2] += 1
        low[:, 1, 3] += 1
        high = self.dt * low
        high[:, 0, 0] += 1
        high[:, 1, 1] += 1
        whole = torch.cat([high, low], 1)
        return whole[:, :, :4], whole[:, :, 4:]


def errors(problem: Problem) -> dict[str, float]:
    """Return how far a rollout, and the Jacobians along it from autograd's, are off in float64."""
    exact = CartPole(problem, torch.float64)
    x, u = torch.tensor(problem.check_states[:-1]), torch.tensor(problem.check_actions)
    slopes = torch.autograd.functional.jacobian(lambda x, u: exact(x, u).sum(0), (x, u))
    slope_error = max(float((a.transpose(0, 1) - b).abs().max()) for a, b in zip(slopes, exact.grad_input(x, u), strict=True))
    return {"dynamics_error": problem.error(lambda x, u: exact(torch.tensor(x)[None], torch.tensor(u)[None]).numpy()),
            "jacobian_error": slope_error}
