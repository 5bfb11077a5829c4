"""Uncertainty carried over a horizon: sampled members and noise in one batch of rollouts, or covariances along one path.

Trajectory sampling after Chua, Calandra, McAllister, Levine, "Deep reinforcement learning in a handful of trials", NeurIPS 2018:
a particle keeps its member for the whole horizon (TS∞), or is handed to a random one at every step (TS1).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from residual_mbrl.baselines import Values
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.rollouts import Linearisation, rollout
from residual_mbrl.uncertainty.correction import CorrectionNoise

Scheme = Literal["ts1", "tsinf"]


def sample(dynamics: ResidualDynamics, state: Float[Tensor, "batch nx"], actions: Float[Tensor, "batch horizon nu"], *, particles: int,
           members: int | None = None, noise: CorrectionNoise | None = None, scheme: Scheme = "tsinf", parameters: Values | None = None,
           lead: Float[Tensor, "batch lead nu"] | None = None, seed: int = 0) -> Float[Tensor, "particles batch horizon+1 nx"]:
    """Simulate particles of every window, each by a member of an ensemble and with noise of its own, without gradients.

    All windows, members and particles are one batch. Without noise TS∞ is one rollout; else each step is one rollout of one step.
    TS1 shuffles each window's particles among the members, so that each member has as many at every step.

    Args:
        dynamics: The model; an ensemble's weights carry the members.
        state: First states, shape [B, nx]; residual memory is appended.
        actions: Shape [B, H, nu].
        particles: Particles P of each window; a multiple of the members.
        members: Members M of an ensemble; None for a single model.
        noise: Density of the correction and of the first state; none for the spread of the members alone.
        scheme: "ts1" or "tsinf".
        parameters: Physical values by name, shape [M, 1] or a number.
        lead: Commands before the first, shape [B, L, nu].
        seed: Of all draws.
    """
    m = members or 1
    if particles < 1 or particles % m:
        raise ValueError(f"sample: expected particles to be a positive multiple of the {m} members, received {particles}")
    if scheme not in ("ts1", "tsinf"):
        raise ValueError(f"sample: scheme must be ts1 or tsinf, received {scheme!r}")
    generator = torch.Generator().manual_seed(seed)
    b, horizon, nu = actions.shape
    per = particles // m
    shape = (m, per * b) if members else (per * b,)
    values = {n: v for n, v in (parameters or {}).items()}

    def spread(x: Tensor) -> Tensor:
        return x.expand(m * per, *x.shape).reshape(*shape, *x.shape[1:])

    with torch.no_grad():
        x, u = spread(state), spread(actions)
        draws = _Draws(noise, (*shape,), state, generator) if noise is not None else None
        if draws is not None:
            x = draws.start(x)
        before = None if lead is None else spread(lead)
        if draws is None and scheme == "tsinf":
            return rollout(dynamics, x, u, values, before).reshape(particles, b, horizon + 1, -1)
        if x.shape[-1] < dynamics.space.nx:
            x = dynamics.initial_state(x, u[..., 0, :], before)
        states = [x]
        for t in range(horizon):
            action = u[..., t, :]
            if scheme == "ts1" and m > 1:
                x = _shuffled(x.reshape(particles, b, -1), generator).reshape(*shape, -1)
            after = rollout(dynamics, x, action.unsqueeze(-2), values)[..., 1, :]
            x = after if draws is None else draws.move(dynamics, x, action, after)
            states.append(x)
        return torch.stack(states, -2).reshape(particles, b, horizon + 1, -1)


def _shuffled(x: Tensor, generator: torch.Generator) -> Tensor:
    """Permute the particles of each window, x [P, B, nx]; a particle's past stays with its place, only its future changes hands."""
    order = torch.rand(x.shape[:2], generator=generator).argsort(0)
    return x.gather(0, order.unsqueeze(-1).expand_as(x))


class _Draws:
    """The noise of all particles: its state from step to step, and the scale that a Student-t path has of its own."""

    def __init__(self, noise: CorrectionNoise, shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> None:
        self.noise, self.generator, self.like = noise, generator, like
        self.persistence = float(noise.persistence)
        self.path = like.new_ones(*shape, 1)
        if noise.raw_dof is not None:
            dof = float(noise.dof)
            gamma = torch._standard_gamma(torch.full((*shape, 1), dof / 2, dtype=torch.float64), generator=generator)
            self.path = (dof / 2 / gamma).sqrt().to(like)
        self.now = self._normal((*shape, noise.space.nv))

    def _normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.like)

    def start(self, state: Tensor) -> Tensor:
        space = self.noise.space
        d = self.path * self.noise.start.to(state) * self._normal((*state.shape[:-1], space.ndx))
        return torch.cat([space.integrate(state[..., : space.nx], d), state[..., space.nx :]], -1)

    def move(self, dynamics: ResidualDynamics, state: Tensor, action: Tensor, after: Tensor) -> Tensor:
        """Return the state after a step with its correction moved by the noise of this step."""
        space, rho = self.noise.space, self.persistence
        scale = self.noise.scale(self.noise.inputs(dynamics, state, action), state.shape[:-1]).to(state)
        push = dynamics.dt * scale * self.path * self.now
        self.now = rho * self.now + (1 - rho * rho) ** 0.5 * self._normal(self.now.shape)
        v = slice(space.nq, space.nq + space.nv)
        moved = after.clone()
        moved[..., v] += push
        return moved


def variances(noise: CorrectionNoise, along: Linearisation, scale: Float[Tensor, "batch horizon nv"], dt: float,
              memory: int = 0) -> Float[Tensor, "batch horizon+1 ndx"]:
    """Return the variance of each tangent entry of the state at each step, to first order along a path; differentiable in the noise.

    ``P' = F P Fᵀ + Q`` on (δx, ξ) with ``F = [[A, dt G σ], [0, ρ]]``, ``Q = (1 - ρ²)`` on ξ, where G takes an acceleration to its
    velocity: the covariance of ``CorrectionNoise`` propagated, moment-matched. For Student-t it is that of the path's scale one.

    Args:
        noise: Density.
        along: Of the path, its ``A`` with shape [B, H, ndx + memory, ndx + memory].
        scale: σ along the path.
        dt: Seconds per step.
        memory: Entries of residual memory at the end of the state.
    """
    b, horizon, n, _ = along.A.shape
    space = noise.space
    nv, ndx = space.nv, space.ndx
    start = torch.cat([noise.start.square(), noise.start.new_zeros(memory)])
    p = torch.diag_embed(torch.cat([start, torch.ones(nv, dtype=start.dtype)])).expand(b, n + nv, n + nv)
    lower = torch.cat([scale.new_zeros(nv, n), noise.persistence * torch.eye(nv, dtype=scale.dtype)], 1).expand(b, nv, n + nv)
    fresh = torch.diag(torch.cat([scale.new_zeros(n), (1 - noise.persistence**2).expand(nv)]))
    out = [p.diagonal(dim1=-2, dim2=-1)[:, :ndx]]
    for t in range(horizon):
        push = torch.nn.functional.pad(torch.diag_embed(dt * scale[:, t]), (0, 0, nv, n - 2 * nv))
        f = torch.cat([torch.cat([along.A[:, t], push], 2), lower], 1)
        p = f @ p @ f.mT + fresh
        out.append(p.diagonal(dim1=-2, dim2=-1)[:, :ndx])
    return torch.stack(out, 1)
