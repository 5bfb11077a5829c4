"""Velocities re-derived from poses are those of the motion."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from residual_mbrl.errors import LogError
from residual_mbrl.free_flight import Poses
from residual_mbrl.models import CUBE
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.pose_velocities import rederive_velocities


@pytest.fixture
def flight():
    """A cube that flies and turns, as the engine has it, with velocities that are wrong."""
    simulator = MujocoSimulator(CUBE, dt=0.0068)
    start = torch.tensor([0, 0, 2.0, 1, 0, 0, 0, 0.5, -0.3, 1.0, 3.0, -2.0, 1.0], dtype=torch.float64)
    x = simulator.rollout(start, torch.zeros(30, 0, dtype=torch.float64)).numpy()
    time = 0.0068 * np.arange(len(x))
    true = Poses(name="toss", time=time, position=x[:, :3], quaternion=x[:, 3:7], velocity=x[:, 7:10], omega=x[:, 10:])
    return true, replace(true, velocity=1.01 * true.velocity + 0.1, omega=np.zeros_like(true.omega)), simulator


@pytest.mark.parametrize("side", [1, 2, 4])
def test_they_are_the_engines(flight, side):
    """In the middle of a flight, whatever the log says of them; a row whose quaternion has the other sign is the same attitude."""
    true, wrong, simulator = flight
    wrong.quaternion[::3] *= -1
    found = rederive_velocities(wrong, side=side)
    inner = slice(side, -side)
    lag = simulator.velocity_lag * np.array([0, 0, 9.81])  # a semi-implicit engine's velocities are those of half a step before
    assert np.allclose(found.velocity[inner], true.velocity[inner] - lag, atol=1e-3)
    assert np.allclose(found.omega[inner], true.omega[inner], atol=2e-2)
    assert np.array_equal(found.position, wrong.position)


def test_the_ends_have_a_slope_too(flight):
    """To the neighbour, half a row late or early."""
    true, wrong, _ = flight
    found = rederive_velocities(wrong)
    assert found.velocity[0] == pytest.approx((true.position[1] - true.position[0]) / 0.0068)
    assert found.velocity[-1] == pytest.approx((true.position[-1] - true.position[-2]) / 0.0068)


def test_noise_falls_with_the_side(flight):
    """As the -3/2th power of the rows, roughly."""
    true, _, _ = flight
    rng = np.random.default_rng(0)
    noisy = replace(true, position=true.position + 1e-4 * rng.standard_normal(true.position.shape))
    spread = [np.std((rederive_velocities(noisy, side=s).velocity - true.velocity)[6:-6, 0]) for s in (1, 4)]
    assert spread[1] < 0.3 * spread[0]


def test_logs_that_have_no_slope_are_refused(flight):
    """One row, or rows that are not evenly spaced."""
    true, _, _ = flight
    with pytest.raises(LogError, match="toss: expected two rows or more"):
        rederive_velocities(true.first(1))
    with pytest.raises(LogError, match="evenly spaced"):
        rederive_velocities(replace(true, time=true.time**2))
    with pytest.raises(ValueError, match="side >= 1, received 0"):
        rederive_velocities(true, side=0)
