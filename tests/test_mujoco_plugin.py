"""The plug-in makes the user's own simulation loop do what the calibrated model does."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
import torch
from mujoco_problems import ARM, BODIES, commands, start

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import ModelError
from residual_mbrl.mujoco_plugin import MujocoPlugin
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.physics.pendulum import Pendulum
from residual_mbrl.residuals import CommandActuator, Conservative, Dissipative, DryFriction, Feature, StateDelta, Unstructured
from residual_mbrl.rollouts import rollout

RATES = {"features": [Feature(source="velocity", transform="abs")], "hidden": (4,)}


def corrected(model, *residuals, dt=None, parameters=("damping:*",), values=None):
    """A model with residuals of random weights."""
    dynamics = ResidualDynamics(MujocoSimulator(model, parameters, dt=dt), residuals, values)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in dynamics.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return dynamics


def played(dynamics, state, actions, plugin=None):
    """States of a plain mj_step loop with the plug-in, shape [H + 1, nq + nv + na]."""
    plugin = plugin or MujocoPlugin(dynamics)
    data = mujoco.MjData(plugin.model)
    nq, nv = plugin.model.nq, plugin.model.nv
    data.qpos[:], data.qvel[:], data.act[:] = state[:nq], state[nq : nq + nv], state[nq + nv :]
    states = [state.numpy()]
    for action in actions.numpy():
        for _ in range(dynamics.baseline.substeps):
            data.ctrl[:] = action
            plugin(data)
            mujoco.mj_step(plugin.model, data)
        states.append(np.concatenate([data.qpos, data.qvel, data.act]))
    return np.array(states)


CASES = {
    "force and friction": lambda: corrected(ARM, Conservative(nq=2, scale=0.5), DryFriction(nv=2, sizes=[2], bound=0.3, **RATES)),
    "damping, substeps": lambda: corrected(ARM, Dissipative(nv=2, sizes=[2], bound=0.2, diagonal=True, **RATES), dt=0.006),
    "delay and lag": lambda: corrected(ARM, CommandActuator(nu=2, channels=[0, 1], dt=0.002, max_delay=0.007, limit=1.5)),
    "identified values": lambda: corrected(ARM, values={"damping:shoulder": 0.7}),
    "quaternions, activation": lambda: corrected(BODIES, Unstructured(nv=10, sizes=[10], bound=0.5, **RATES)),
}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())
def test_reproduces_the_rollout(make):
    """A thousand steps of the user's loop are those of the calibrated model, to 1e-9."""
    dynamics = make()
    state, actions = start(dynamics.baseline), commands(dynamics.baseline, 1000)
    with torch.no_grad():
        expected = rollout(dynamics, state, actions)[:, : dynamics.baseline.space.nx].numpy()
    assert np.abs(played(dynamics, state, actions) - expected).max() < 1e-9


def test_reset_starts_anew():
    """After a reset the plug-in does what it did the first time."""
    dynamics = CASES["delay and lag"]()
    plugin, state, actions = MujocoPlugin(dynamics), start(dynamics.baseline), commands(dynamics.baseline, 20)
    first = played(dynamics, state, actions, plugin)
    plugin.reset()
    assert np.array_equal(first, played(dynamics, state, actions, plugin))


def test_keeps_the_users_force():
    """What the user writes to qfrc_applied stays; the plug-in takes out only what it put in."""
    dynamics = CASES["force and friction"]()
    plugin = MujocoPlugin(dynamics)
    data = mujoco.MjData(plugin.model)
    data.qfrc_applied[:] = [1.0, 2.0]
    for _ in range(5):
        plugin(data)
        mujoco.mj_step(plugin.model, data)
    assert np.abs(plugin.force).max() > 0
    assert np.allclose(data.qfrc_applied - plugin.force, [1.0, 2.0])


def test_leaves_the_users_model_alone():
    """Identified values and learned friction go into a copy."""
    model = mujoco.MjModel.from_xml_string(ARM)
    before = model.dof_damping.copy(), model.dof_frictionloss.copy()
    dynamics = corrected(model, DryFriction(nv=2, sizes=[2], bound=0.3, **RATES), values={"damping:shoulder": 0.7})
    plugin = MujocoPlugin(dynamics)
    plugin(mujoco.MjData(plugin.model))
    assert plugin.model.dof_damping[0] == 0.7
    assert np.array_equal(model.dof_damping, before[0])
    assert np.array_equal(model.dof_frictionloss, before[1])


@pytest.mark.parametrize(("dynamics", "said"), [
    (lambda: ResidualDynamics(Pendulum(dt=0.01)), "received one of Pendulum"),
    (lambda: ResidualDynamics(MujocoSimulator(ARM), [StateDelta(nv=4, sizes=[2], bound=0.1, **RATES)]), "StateDelta.*cannot act inside")])
def test_refuses(dynamics, said):
    """Other baselines, and corrections that act after the step, are named."""
    with pytest.raises(ModelError, match=said):
        MujocoPlugin(dynamics())
