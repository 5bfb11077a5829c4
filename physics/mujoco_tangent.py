"""Rotations of MuJoCo's quaternions as rotation vectors φ, ``q exp(φ)``, and how they answer to what moves them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_SMALL = 0.03
"""Angle [rad] below which series stand in for quotients that lose their digits."""


def rotation(angle: Array) -> tuple[Array, Array]:
    """Return ``exp(φ)ᵀ`` and the right Jacobian of the exponential map at rotation vectors φ [n, 3], shape [n, 3, 3] each."""
    K, norm = _skew(angle), np.linalg.norm(angle, axis=1)[:, None, None]
    half = np.sinc(norm / (2 * np.pi))
    sine, cosine = np.sinc(norm / np.pi), 0.5 * half * half
    with np.errstate(divide="ignore", invalid="ignore"):
        third = np.where(norm < _SMALL, 1 / 6 - norm**2 / 120 + norm**4 / 5040, (1 - sine) / norm**2)
    square = K @ K
    return np.eye(3) - sine * K + cosine * square, np.eye(3) - cosine * K + third * square


def turned(quaternion: Array, angle: Array) -> Array:
    """Return ``q exp(φ)``, shape [n, 4]."""
    norm = np.linalg.norm(angle, axis=1)[:, None]
    w, r = np.cos(norm / 2), 0.5 * np.sinc(norm / (2 * np.pi)) * angle
    a, b = quaternion[:, :1], quaternion[:, 1:]
    return np.concatenate([a * w - (b * r).sum(1, keepdims=True), a * r + w * b + np.cross(b, r)], 1)


def angle_rate(angle: Array, velocity: Array) -> tuple[Array, Array, Array]:
    """Return the rate of a rotation vector, ``k(φ, ω) = ω + φ × ω / 2 + g φ × (φ × ω)``, and its derivatives.

    It is the inverse of the exponential map's right Jacobian times ω; ``g = (1 - x/2 cot(x/2)) / x²``, x = |φ|.

    Args:
        angle: φ [rad], shape [n, 3].
        velocity: ω in the body's frame [rad/s], shape [n, 3].

    Returns:
        k [n, 3], ∂k/∂ω and ∂k/∂φ, shape [n, 3, 3] each.
    """
    K, x = _skew(angle), np.linalg.norm(angle, axis=1)[:, None, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        cotangent = 1 / np.tan(x / 2)
        g = np.where(x < _SMALL, 1 / 12 + x**2 / 720 + x**4 / 30240, (1 - x / 2 * cotangent) / x**2)
        slope = np.where(x < _SMALL, 1 / 360 + x**2 / 7560,  # of g, over x
                         (x / 4 / np.sin(x / 2) ** 2 - cotangent / 2) / x**3 - 2 * g / x**2)
    by_velocity = np.eye(3) + 0.5 * K + g * (K @ K)
    w, f = velocity[..., None], angle[:, None]
    of_square = (f @ w) * np.eye(3) + angle[..., None] * velocity[:, None] - 2 * w * f  # d φ × (φ × ω) / d φ
    by_angle = g * of_square - 0.5 * _skew(velocity) + slope * (K @ (K @ w)) * f
    return (by_velocity @ w)[..., 0], by_velocity, by_angle


def _skew(vector: Array) -> Array:
    """Return the matrices of ``v ×``, shape [n, 3, 3]."""
    K = np.zeros((len(vector), 3, 3))
    K[:, 2, 1], K[:, 0, 2], K[:, 1, 0] = vector.T
    return K - K.transpose(0, 2, 1)
