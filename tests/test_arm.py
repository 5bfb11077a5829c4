"""The arm that ships with the package is a plausible robot, and the simulated real one differs from it as planned."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from residual_mbrl.demo_arm import DELAY, ENCODER_STEP, JOINTS, MOTORS, SPRING, TRUTH, Robot, arm_xml, robot_model
from residual_mbrl.demo_motion import home_pose


@pytest.fixture(scope="module")
def model():
    return mujoco.MjModel.from_xml_string(arm_xml())


def torque_of_gravity(model, q):
    data = mujoco.MjData(model)
    data.qpos[:] = q
    mujoco.mj_forward(model, data)
    return data.qfrc_bias


def test_it_has_seven_driven_joints(model):
    """Joints, motors, links, payload and tool have the names that everything else uses; nothing else moves."""
    assert tuple(model.joint(i).name for i in range(model.njnt)) == JOINTS
    assert tuple(model.actuator(i).name for i in range(model.nu)) == MOTORS
    assert all(model.body(f"link{i}").mass[0] > 0 for i in range(1, 8))
    assert model.body("payload").parentid[0] == model.body("link7").id
    assert model.site("tool").bodyid[0] == model.body("payload").id


def test_it_weighs_what_such_arms_weigh(model):
    """Total mass and reach are those of a small collaborative robot."""
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    assert 15 < model.body_mass.sum() < 25
    assert 0.9 < data.site("tool").xpos[2] < 1.3


def test_inertias_are_possible(model):
    """Principal moments of every body fulfil the triangle inequality."""
    inertia = model.body_inertia[1:]
    assert (inertia > 0).all()
    assert (2 * inertia.max(1) <= inertia.sum(1) * (1 + 1e-9)).all()


def test_motors_hold_a_payload_of_three_kilograms_stretched_out(model):
    """Gravity of the stretched arm with the heaviest payload leaves a third of every motor's torque."""
    heavy = mujoco.MjModel.from_xml_string(arm_xml())
    heavy.body("payload").mass = 3.0
    worst = torque_of_gravity(heavy, [0, np.pi / 2, 0, 0, 0, 0, 0])
    assert (np.abs(worst) < 0.67 * heavy.actuator_ctrlrange[:, 1]).all()


def test_home_is_within_the_ranges_and_points_down(model):
    """At home every joint is well inside its range and the hand points to the floor."""
    home = home_pose(model)
    assert (home > model.jnt_range[:, 0] + 0.1).all() and (home < model.jnt_range[:, 1] - 0.1).all()
    data = mujoco.MjData(model)
    data.qpos[:] = home
    mujoco.mj_forward(model, data)
    assert data.site("tool").xmat.reshape(3, 3)[2, 2] < -0.95


def test_the_robot_is_what_the_truth_says():
    """Friction and payload of the simulated robot are the planted ones; the spring is no parameter of the data sheet."""
    robot, nominal = robot_model(), mujoco.MjModel.from_xml_string(arm_xml())
    assert robot.body("payload").mass[0] == TRUTH["mass:payload"]
    assert np.array_equal(robot.dof_frictionloss, [TRUTH[f"frictionloss:{n}"] for n in JOINTS])
    assert robot.joint(SPRING.joint).stiffness[0] == SPRING.stiffness
    assert not nominal.jnt_stiffness.any()
    assert all(abs(robot.dof_frictionloss / nominal.dof_frictionloss - 1) > 0.2)


def test_torques_arrive_late():
    """A torque moves the robot no earlier than after the delay."""
    q = home_pose(robot_model())
    still, pushed = (Robot(q, np.zeros(7)) for _ in range(2))
    steps = round(DELAY / still.dt)
    for k in range(steps + 1):
        assert np.array_equal(still.position, pushed.position), k
        still.send(np.zeros(7))
        pushed.send(np.full(7, 9.0))
    assert np.abs(still.position - pushed.position).max() > 1e-6


def test_encoders_count():
    """Angles read are whole counts, near the true ones, the same for the same seed."""
    q = home_pose(robot_model())
    shown = [Robot(q, np.zeros(7), seed).read() for seed in (0, 0, 1)]
    assert np.abs(shown[0] / ENCODER_STEP - np.round(shown[0] / ENCODER_STEP)).max() < 1e-9
    assert np.abs(shown[0] - q).max() < 1e-3
    assert np.array_equal(shown[0], shown[1]) and not np.array_equal(shown[0], shown[2])
