"""Inverse dynamics takes a model along a motion exactly, residuals and delays included."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
import torch

from residual_mbrl.demo_arm import TRUTH, arm_xml, robot_model
from residual_mbrl.demo_logs import FEEDBACK
from residual_mbrl.demo_motion import excitation, home_pose
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import ModelError
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.physics.pendulum import Pendulum
from residual_mbrl.residuals.joint_springs import JointSprings
from residual_mbrl.rollouts import rollout
from residual_mbrl.tracking import Feedback, advanced, calibrated_torques, inverse_torques, track

NOTHING = Feedback(stiffness=np.zeros(7), damping=np.zeros(7))


class Exact:
    """A plant without noise or delay."""

    def __init__(self, model, position):
        self.model, self.data, self.dt = model, mujoco.MjData(model), model.opt.timestep
        self.data.qpos[:] = position

    @property
    def position(self):
        return np.array(self.data.qpos)

    def read(self):
        return self.position

    def send(self, torque):
        self.data.ctrl[:] = torque
        mujoco.mj_step(self.model, self.data)


@pytest.fixture(scope="module")
def motion():
    return excitation(home_pose(robot_model()), 3)


@pytest.fixture(scope="module")
def time():
    return 0.002 * np.arange(500)


def test_the_own_model_leaves_nothing_to_the_feedback(motion, time):
    """With torques of the plant's own inverse dynamics, friction and spring included, it stays on the motion to solver precision."""
    model = robot_model()
    run = track(Exact(model, motion(time[:1])[0]), motion, inverse_torques(model, motion, time), NOTHING)
    assert run.rms < 1e-6
    assert np.array_equal(run.measured, run.positions)


def test_feedback_corrects_a_wrong_model(motion, time):
    """With the data sheet's torques the feedback keeps the real arm near the motion; without it the arm falls away."""
    torques = inverse_torques(mujoco.MjModel.from_xml_string(arm_xml()), motion, time)
    start = motion(time[:1])[0]
    held, free = (track(Exact(robot_model(), start), motion, torques, f).rms for f in (FEEDBACK, NOTHING))
    assert held < 0.01
    assert free > 0.1


def test_a_calibrated_model_follows_its_own_torques(motion, time):
    """A rollout of identified parameters with a residual, driven by the torques that invert both, is the motion."""
    simulator = MujocoSimulator(arm_xml(), tuple(TRUTH))
    springs = JointSprings(nq=7, scale=5.0)
    with torch.no_grad():
        springs.amplitudes.copy_(torch.randn(28, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    dynamics = ResidualDynamics(simulator, [springs], TRUTH)
    torques = calibrated_torques(dynamics, motion, time)
    start = torch.tensor(np.concatenate([motion(time[:1])[0], np.zeros(7)]))
    with torch.no_grad():
        states = rollout(dynamics, start, torch.tensor(torques)).numpy()
    assert np.abs(states[:-1, :7] - motion(time)).max() < 1e-5
    plain = calibrated_torques(dynamics.with_residuals([]), motion, time)
    assert np.abs(torques - plain).max() > 0.1


def test_torques_are_sent_ahead_of_the_delay():
    """What is sent is what shall act one delay later, for each motor its own; the last torque is held."""
    torques = np.stack([np.arange(10.0), 10 * np.arange(10.0)], 1)
    sent = advanced(torques, 0.002, np.array([0.004, 0.001]))
    assert sent[:, 0] == pytest.approx([2, 3, 4, 5, 6, 7, 8, 9, 9, 9])
    assert sent[:, 1] == pytest.approx([5, 15, 25, 35, 45, 55, 65, 75, 85, 90])


def test_another_baseline_is_refused(motion, time):
    """Only MuJoCo models of hinges and slides can be inverted."""
    with pytest.raises(ModelError, match="received Pendulum"):
        calibrated_torques(ResidualDynamics(Pendulum()), motion, time)
