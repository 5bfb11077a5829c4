"""The Coulomb cone with spin and rolling, an ellipse of friction over every normal force, and the room that is left in it."""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-30
"""Far below any force squared; keeps the slope of a root finite."""


def cone_excess(force: Tensor, torque: Tensor, friction: Tensor) -> Tensor:
    """Return ``μ (|(f_t / μ, τ / μ_τ)| - f_n)`` [N], how far forces are outside the cone, shape [*batch].

    Coefficients that are zero allow nothing: what acts there counts in full. μ is the first one.

    Args:
        force: Normal first [N], shape [*batch, 3].
        torque: Spin, then rolling [N·m], shape [*batch, 3].
        friction: Sliding (2), spin, rolling (2), shape [*batch, 5].
    """
    sideways = torch.cat([force[..., 1:], torque], -1)
    free = friction > 0
    used = torch.where(free, sideways / torch.where(free, friction, 1.0), 0.0)
    excess = friction[..., 0] * (torch.linalg.vector_norm(used, dim=-1) - force[..., 0])
    return torch.maximum(excess, torch.where(free, 0.0, sideways.abs()).amax(-1))


def room(force: Tensor, torque: Tensor, friction: Tensor, direction: Tensor) -> Tensor:
    """Return the largest ``a >= 0`` [N] with ``f_t - a d`` in the cone, shape [*batch]; zero outside it and without friction.

    Args:
        force: As in ``cone_excess``.
        torque: As in ``cone_excess``.
        friction: As in ``cone_excess``.
        direction: Unit vectors d, shape [*batch, 2].
    """
    free = friction > 0
    scale = torch.where(free, friction, 1.0)
    used = torch.where(free, torch.cat([force[..., 1:], torque], -1) / scale, 0.0)
    along = direction / scale[..., :2]
    a = along.square().sum(-1)
    b = (used[..., :2] * along).sum(-1)
    left = (force[..., 0].clamp_min(0).square() - used.square().sum(-1)).clamp_min(0)
    root = (b * b + a * left).clamp_min(_TINY).sqrt()
    # of the two forms of the positive root, the one in which nothing cancels
    found = torch.where(b > 0, (b + root) / a, left / (root + b.abs()))
    return torch.where(free[..., :2].all(-1) & (force[..., 0] > 0), found, 0.0)
