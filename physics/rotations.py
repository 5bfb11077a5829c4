"""Rotations of vectors by unit quaternions, and the derivative of the exponential map."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def rotate(q: Float[Tensor, "*#batch 4"], vector: Float[Tensor, "*#batch 3"]) -> Float[Tensor, "... 3"]:
    """Return a body vector in the world frame; q is a unit quaternion w-x-y-z, body to world."""
    return _turned(q[..., :1], q[..., 1:], vector)


def rotate_back(q: Float[Tensor, "*#batch 4"], vector: Float[Tensor, "*#batch 3"]) -> Float[Tensor, "... 3"]:
    """Return a world vector in the body frame; q is a unit quaternion w-x-y-z, body to world."""
    return _turned(q[..., :1], -q[..., 1:], vector)


def exponential_rate(rotation: Float[Tensor, "*#batch 3"], rate: Float[Tensor, "*#batch 3"]) -> Float[Tensor, "... 3"]:
    """Return the rate of a rotation vector θ of which q0 ⊗ exp(θ) turns with a body rate ω, to fourth order in θ.

    ``dθ/dt = ω + θ × ω / 2 + θ × (θ × ω) / 12``. Source: Munthe-Kaas, "Runge-Kutta methods on Lie groups", BIT 38, 1998.

    Args:
        rotation: θ [rad], shape [*batch, 3].
        rate: ω [rad/s], shape [*batch, 3].
    """
    first = cross(rotation, rate)
    return rate + 0.5 * first + cross(rotation, first) / 12


def cross(a: Float[Tensor, "*#batch 3"], b: Float[Tensor, "*#batch 3"]) -> Float[Tensor, "... 3"]:
    """Return a × b of vectors whose batches broadcast."""
    product: Tensor = torch.linalg.cross(*torch.broadcast_tensors(a, b))
    return product


def _turned(scalar: Tensor, axis: Tensor, vector: Tensor) -> Tensor:
    once = cross(axis, vector)
    return vector + 2 * (scalar * once + cross(axis, once))
