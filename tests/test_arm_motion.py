"""Motions of the demo's arm start at rest, are smooth, and stay within what the arm can do."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from residual_mbrl.arm_figure import tool_path
from residual_mbrl.demo_arm import arm_xml, robot_model
from residual_mbrl.demo_motion import HEIGHT, WIDTH, excitation, figure_of_eight, home_pose
from residual_mbrl.tracking import inverse_torques

SECONDS = 6.0


@pytest.fixture(scope="module")
def model():
    return mujoco.MjModel.from_xml_string(arm_xml())


@pytest.fixture(params=["excitation 0", "excitation 1003", "eight"])
def motion(request, model):
    return figure_of_eight(model, SECONDS) if request.param == "eight" else excitation(home_pose(model), int(request.param.split()[1]))


def test_it_starts_at_rest_near_home(motion, model):
    """At first the arm stands still, not far from home."""
    first = motion(np.array([-1.0, 0.0, 0.05, 0.1]))
    assert first == pytest.approx(np.tile(first[0], (4, 1)), abs=1e-12)
    assert np.abs(first[0] - home_pose(model)).max() < 0.5


def test_it_is_smooth(motion):
    """Accelerations do not jump from one step to the next."""
    dt = 1e-3
    acceleration = np.diff(motion(dt * np.arange(5000)), 2, axis=0) / dt**2
    assert np.abs(np.diff(acceleration, axis=0)).max() < 0.05 * np.abs(acceleration).max()


def test_it_stays_within_ranges_and_torques(motion, model):
    """Joints stay off their stops, and the real robot's motors can follow."""
    time = 2e-3 * np.arange(3000)
    q = motion(time)
    assert (q > model.jnt_range[:, 0]).all() and (q < model.jnt_range[:, 1]).all()
    assert (np.abs(inverse_torques(robot_model(), motion, time)) < 0.9 * model.actuator_ctrlrange[:, 1]).all()


def test_the_tool_draws_eights(model):
    """The tool stays in a plane, comes back to where it began, and turns at the ends of an eight."""
    path = tool_path(figure_of_eight(model, SECONDS)(np.linspace(0, SECONDS, 400)))
    assert np.ptp(path[:, 0]) < 2e-3
    assert path[-1] == pytest.approx(path[0], abs=1e-6)
    assert np.ptp(path[:, 1]) == pytest.approx(2 * WIDTH, rel=0.01)
    assert np.ptp(path[:, 2]) == pytest.approx(2 * HEIGHT, rel=0.01)
