"""What a MuJoCo baseline tells an audit of its gradients: contacts, method, and a copy solved to rounding."""

from __future__ import annotations

import torch
from mujoco_problems import ARM, BOXES, DELAYED, commands, start

from residual_mbrl.physics.mujoco_simulator import MujocoSimulator


def test_contacts_are_named_once():
    """Four corners on the floor are one pair; a ball in the air is none."""
    simulator = MujocoSimulator(BOXES)
    rest = start(simulator, spread=0.0)
    rest[2] -= 0.001
    rest[9] += 1.0
    assert simulator.describe_contacts(rest) == ("floor/box",)
    rest[2] += 1.0
    assert simulator.describe_contacts(rest) == ()


def test_limits_are_named():
    """A joint beyond its range is held by a force as a contact is."""
    simulator = MujocoSimulator(ARM)
    assert simulator.describe_contacts(torch.tensor([0.0, 1.2, 0.0, 0.0])) == ("limit of elbow",)
    assert simulator.describe_contacts(torch.zeros(4)) == ()


def test_delay_buffers_are_no_obstacle():
    """Time follows the engine's own state."""
    simulator = MujocoSimulator(DELAYED)
    assert simulator.describe_contacts(start(simulator)) == ()


def test_method_is_named():
    """Exact by state, differences by a parameter, and why where nothing is exact."""
    simulator = MujocoSimulator(ARM)
    assert simulator.gradient_method("state") == "exact adjoint"
    assert simulator.gradient_method("mass:lower") == "centred differences"
    assert simulator.gradient_method("force") == "exact adjoint"
    assert "delays" in MujocoSimulator(DELAYED).gradient_method("state")


def test_solved_to_rounding_changes_the_copy_alone():
    """The same step to the solver's tolerance, parameters included."""
    simulator = MujocoSimulator(BOXES.replace('tolerance="0" iterations="100"', ""), ["mass:box"])
    before = simulator.model.opt.tolerance
    exact = simulator.solved_to_rounding()
    assert (simulator.model.opt.tolerance, exact.model.opt.tolerance) == (before, 0.0)
    x, u, mass = start(simulator, 3, spread=0.05), commands(simulator, 3), {"mass:box": torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)}
    ours, theirs = simulator.step(x, u, None, mass), exact.step(x, u, None, mass)
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert not torch.equal(exact.step(x, u), theirs)
