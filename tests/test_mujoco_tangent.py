"""Rotation vectors of MuJoCo's quaternions against the engine's integration and centred differences."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from residual_mbrl.physics.mujoco_tangent import angle_rate, rotation, turned

SIZES = (1e-4, 0.02, 0.2, 2.0)


def drawn(size):
    """Quaternions, rotation vectors of about a size, and angular velocities."""
    rng = np.random.default_rng(0)
    quaternion = rng.normal(size=(5, 4))
    return quaternion / np.linalg.norm(quaternion, axis=1)[:, None], size * rng.normal(size=(5, 3)), rng.normal(size=(5, 3))


def slopes(function, x, step=1e-6):
    """Centred differences of a function of [n, 3], shape [n, k, 3]."""
    return np.stack([(function(x + step * e) - function(x - step * e)) / (2 * step) for e in np.eye(3)], -1)


@pytest.mark.parametrize("size", SIZES)
def test_turned_is_the_engines_integration(size):
    """Of a quaternion by a rotation vector."""
    quaternion, angle, _ = drawn(size)
    found = turned(quaternion, angle)
    for q, phi in zip(quaternion, angle, strict=True):
        mujoco.mju_quatIntegrate(q, phi, 1.0)
    np.testing.assert_allclose(found, quaternion, atol=1e-14)


@pytest.mark.parametrize("size", SIZES)
def test_angle_rate_moves_the_rotation_at_the_angular_velocity(size):
    """The exponential map's right Jacobian takes it back to the angular velocity."""
    _, angle, velocity = drawn(size)
    found = (rotation(angle)[1] @ angle_rate(angle, velocity)[0][..., None])[..., 0]
    np.testing.assert_allclose(found, velocity, atol=1e-13)


@pytest.mark.parametrize("size", SIZES)
def test_derivatives_of_angle_rate(size):
    """By angular velocity and by rotation vector."""
    _, angle, velocity = drawn(size)
    _, by_velocity, by_angle = angle_rate(angle, velocity)
    np.testing.assert_allclose(by_velocity, slopes(lambda w: angle_rate(angle, w)[0], velocity), atol=1e-8)
    np.testing.assert_allclose(by_angle, slopes(lambda phi: angle_rate(phi, velocity)[0], angle), atol=1e-8)
