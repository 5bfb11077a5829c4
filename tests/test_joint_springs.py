"""A learned spring at every joint: conservative, separate, linear in its weights, and able to be a real spring."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from residual_mbrl.physics.double_pendulum import DoublePendulum
from residual_mbrl.residuals.base import Context
from residual_mbrl.residuals.joint_springs import JointSprings
from residual_mbrl.spaces import StateSpace

SPACE = StateSpace(position=("a", "b"), velocity=("va", "vb"), action=("u",))


def context(q):
    return Context(SPACE, torch.cat([q, torch.zeros_like(q)], -1), q.new_zeros(*q.shape[:-1], 1))


@pytest.fixture
def springs():
    residual = JointSprings(nq=2, units=4, scale=3.0)
    with torch.no_grad():
        residual.amplitudes.copy_(torch.randn(8, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    residual.normalise(context(torch.randn(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))))
    return residual


def test_the_force_is_the_gradient_of_a_potential(springs):
    """The force is minus the potential's derivative; the certificate finds nothing else."""
    q = torch.randn(50, 2, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(springs.potential(q).sum(), q)[0]
    assert torch.allclose(springs(context(q)), -slope, atol=1e-12)
    assert springs.certificate(context(q.detach()), DoublePendulum()).holds


def test_joints_do_not_act_on_each_other(springs):
    """Moving one joint leaves the other's force as it is."""
    q = torch.randn(50, 2, dtype=torch.float64)
    moved = q.clone()
    moved[:, 0] += 1.0
    change = springs(context(moved)) - springs(context(q))
    assert torch.equal(change[:, 1], torch.zeros(50, dtype=torch.float64)) and change[:, 0].abs().min() > 0


def test_the_force_is_linear_in_the_weights(springs):
    """Twice the weights are twice the force; untrained there is none."""
    q = torch.randn(20, 2, dtype=torch.float64)
    once = springs(context(q))
    with torch.no_grad():
        springs.amplitudes.mul_(2)
    assert torch.allclose(springs(context(q)), 2 * once)
    assert torch.equal(JointSprings(nq=2)(context(q)), torch.zeros_like(q))


def test_it_can_be_a_linear_spring(springs):
    """Within two standard deviations of the travel, least squares find a linear spring to two per cent of its largest torque."""
    q = torch.linspace(-2, 2, 81, dtype=torch.float64)
    states = context(torch.stack([q * springs.spread[0] + springs.center[0], q * 0], -1))
    columns = []
    for k in range(4):
        with torch.no_grad():
            springs.amplitudes.copy_(torch.eye(8, dtype=torch.float64)[k])
            columns.append(springs(states)[:, 0].numpy())
    wanted = -8.0 * (q.numpy() - 0.4)
    weights = np.linalg.lstsq(np.stack(columns, 1), wanted, rcond=None)[0]
    assert np.abs(np.stack(columns, 1) @ weights - wanted).max() < 0.02 * np.abs(wanted).max()


def test_it_is_made_again_from_its_description(springs):
    """A copy from ``describe`` with the same state gives the same force; fixed ridges are no part of the state."""
    again = JointSprings(**springs.describe())
    again.load_state_dict(springs.state_dict())
    q = torch.randn(20, 2, dtype=torch.float64)
    assert torch.equal(springs(context(q)), again(context(q)))
    assert set(springs.state_dict()) == {"amplitudes", "center", "spread"}
