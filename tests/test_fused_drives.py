"""Actuators and signals in fused rollouts, and what the presets choose from, against the torch form in float64."""

from __future__ import annotations

import pytest
import torch
from fused_problem import F32, F64, assert_agrees, assert_agrees_at
from problems import MOVING, random_actions, random_states, randomise, system

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.presets.drive import DRIVE
from residual_mbrl.presets.pendulums import DOUBLE_PENDULUM, PENDULUM
from residual_mbrl.presets.servo import SERVO
from residual_mbrl.residuals import CommandActuator, EffortActuator, Feature, Unstructured
from residual_mbrl.rollouts import rollout


def driven(name, *, channels, delay=3.4, scale=0.7, **options):
    """A system whose residual force sees the command as it is executed."""
    baseline = system(name, friction=True)
    nu, nv = baseline.space.nu, baseline.space.nv
    actuator = CommandActuator(nu=nu, channels=channels, dt=baseline.dt, max_delay=delay * baseline.dt, **options)
    force = Unstructured(nv=nv, features=[Feature(source="action"), *MOVING], sizes=[nu, nv, nv], bound=1.0, hidden=(6,))
    dynamics = ResidualDynamics(baseline, [randomise(actuator, scale=scale, seed=1), randomise(force, scale=0.5, seed=2)])
    dynamics.normalise(random_states(baseline, 50), random_actions(baseline, 50))
    return dynamics


@pytest.mark.parametrize(("dynamics", "batch", "dtype"), [
    (driven("double_pendulum", channels=(0, 1)), 19, F64),
    (driven("double_pendulum", channels=(1,), limit=1.0), 3, F64),
    (driven("servo", channels=(0,), delay=1.0, limit=0.9), 20, F32),
    (driven("pendulum", channels=(0,), delay=0.0, limit=1.2), 3, F64),
    (driven("pendulum", channels=(0,), delay=0.0, max_lag=0.0), 2, F64),
], ids=["every channel", "one of two with a limit", "one of three", "no delay", "neither delay nor lag"])
def test_command_is_executed_as_in_torch(dynamics, batch, dtype):
    """Gain, limit, delay and lag: their weights, the memory and the command all get their gradient."""
    assert_agrees(dynamics, batch, dtype=dtype)


def test_delay_of_whole_steps_has_the_slope_of_torch():
    """At a kink of the interpolation, where a delay is a number of steps exactly, and with a command at its limit."""
    dynamics = driven("pendulum", channels=(0,), delay=4.0, limit=1.0, scale=0.0)  # half of the longest delay, gain 1
    x, u = random_states(dynamics.baseline, 3) / 3, random_actions(dynamics.baseline, 3, 12).sign()
    assert_agrees_at(dynamics, x, u, {}, F64)


def test_a_rollout_goes_on_from_its_memory():
    """What a state remembers is what the next launch starts from."""
    dynamics = driven("double_pendulum", channels=(0, 1))
    x, u = random_states(dynamics.baseline, 3) / 3, random_actions(dynamics.baseline, 3, 20)
    with torch.no_grad():
        whole = rollout(dynamics, x, u, backend="fused")
        rest = rollout(dynamics, whole[:, 8], u[:, 8:], backend="fused")
    assert torch.equal(whole[:, 8:], rest)


@pytest.mark.parametrize(("preset", "batch", "dtype"), [(SERVO, 20, F64), (DRIVE, 3, F64), (PENDULUM, 2, F32), (DOUBLE_PENDULUM, 18, F64)],
                         ids=lambda x: getattr(x, "name", None))
def test_every_candidate_of_a_preset_fuses(preset, batch, dtype):
    """All of them together: features of signals, an effort that is a signal, tables by direction of travel."""
    baseline = preset.baseline()
    residuals = [randomise(r, scale=0.5, seed=i) for i, rs in enumerate(preset.candidates(baseline, 0).values()) for r in rs]
    dynamics = ResidualDynamics(baseline, residuals)
    dynamics.normalise(random_states(baseline, 50) / 3, random_actions(baseline, 50))
    assert_agrees(dynamics, batch, dtype=dtype)


def test_an_effort_that_is_no_signal():
    """A state or an action is an effort too; one with the wrong number of entries, or none at all, has no Warp form."""
    pendulum, double = system("pendulum"), system("double_pendulum")
    entries = [Feature(source="action")]
    for baseline, signal, fuses in ((pendulum, "torque", True), (double, "action", True), (double, "angle1", False),
                                    (double, "duty", False)):
        actuator = EffortActuator(signal=signal, nv=baseline.space.nv, features=entries, sizes=[baseline.space.nu])
        assert (actuator.warp_form(baseline.space, {}) is not None) == fuses
