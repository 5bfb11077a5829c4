"""Violations are found where they are, in their units, and an engine that keeps the laws has none."""

from __future__ import annotations

import pytest
import torch
from contact_problem import make, near_floor
from test_contact_parameters import LIVE, actions, randomise, simulator, states

from residual_mbrl.contact_violations import contact_violations
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.physics.pendulum import Pendulum
from residual_mbrl.residuals import ContactParameters


def test_the_engine_has_none_with_random_parameters():
    """Adhesion, force at a gap, cone: to rounding; learned parameters leave them so."""
    residual, x = ContactParameters(live=LIVE, lower=0.05, upper=0.5), states()
    randomise(residual, 3.0)
    found = contact_violations(ResidualDynamics(simulator(), [residual]), x, actions(x))
    assert found.states == len(x)
    assert max(found.adhesion, found.at_a_gap, found.outside_cone) < 1e-6
    assert found.penetration > 0


def test_depth_is_in_millimetres():
    """A cube that lies two millimetres deep."""
    plant = simulator()
    x = torch.zeros(1, 13, dtype=torch.float64)
    x[0, 2], x[0, 3] = 0.0524 - 0.002, 1.0
    found = contact_violations(ResidualDynamics(plant), x, actions(x))
    assert found.penetration == pytest.approx(2.0)
    assert [unit for *_, unit in found.rows()] == ["N", "N", "N", "mm", "J"]


def test_energy_given_in_contact_is_seen():
    """A deep start is pushed out and gains what the penalty had stored; states in flight do not count."""
    plant = make("cube")
    deep = near_floor(plant, "cube", 1)
    deep[:, 7:] = 0
    deep[:, 2] = 0.03
    assert contact_violations(ResidualDynamics(plant), deep, actions(deep)).energy_gain > 1e-3
    deep[:, 2] = 1.0
    assert contact_violations(ResidualDynamics(plant), deep, actions(deep)).energy_gain == -float("inf")


def test_models_without_contacts_are_refused():
    """By name."""
    plant = Pendulum(dt=0.01)
    with pytest.raises(ValueError, match="received a Pendulum"):
        contact_violations(ResidualDynamics(plant), torch.zeros(1, plant.space.nx), torch.zeros(1, plant.space.nu))
