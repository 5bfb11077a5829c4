"""Figures of the demo draw, at full width, with what they claim to show."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import matplotlib.image
import mujoco
import numpy as np
import pytest
import torch

from residual_mbrl import arm_figure
from residual_mbrl.arm_figure import spring_figure, tool_path, tracking_figure
from residual_mbrl.demo_arm import arm_xml
from residual_mbrl.demo_motion import figure_of_eight, home_pose
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.figure_style import png
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.residuals.joint_springs import JointSprings
from residual_mbrl.tracking import Run


def test_the_tool_path_is_the_engines(tmp_path):
    """At home the tool is where the engine's kinematics have it."""
    model = mujoco.MjModel.from_xml_string(arm_xml())
    data = mujoco.MjData(model)
    data.qpos[:] = home_pose(model)
    mujoco.mj_forward(model, data)
    assert tool_path(home_pose(model)[None])[0] == pytest.approx(data.site("tool").xpos)


def test_the_legend_tells_the_error(monkeypatch):
    """A run that is off by an angle of the first joint shows the miss of the tool that follows from it."""
    monkeypatch.setattr(arm_figure, "CAMERA", replace(arm_figure.CAMERA, width=40, height=40))
    model = mujoco.MjModel.from_xml_string(arm_xml())
    time = np.linspace(0.0, 3.0, 50)
    asked = figure_of_eight(model, 3.0)(time)
    off = asked + np.array([0.01, 0, 0, 0, 0, 0, 0])
    run = {n: Run(time=time, reference=asked, positions=q, measured=q, torques=np.zeros((49, 7)))
           for n, q in (("nominal", off), ("calibrated", asked))}
    figure = tracking_figure(run)
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    distance = 1e3 * np.sqrt(np.mean(np.linalg.norm(tool_path(off) - tool_path(asked), axis=1) ** 2))
    assert texts == [f"data sheet: {distance:.3g} mm rms", "calibrated: 0 mm rms"]
    assert matplotlib.image.imread(BytesIO(png(figure))).shape[1] == 1080


def test_springs_are_drawn_beside_the_truth():
    """Only the joint with the planted spring shows a true torque, and an untrained residual shows none."""
    dynamics = ResidualDynamics(MujocoSimulator(arm_xml()), [JointSprings(nq=7)])
    figure = spring_figure(dynamics)
    true = [float(np.abs(axes.lines[0].get_ydata()).max()) for axes in figure.axes[:7]]
    learned = [float(np.abs(np.asarray(axes.lines[1].get_ydata())).max()) for axes in figure.axes[:7]]
    assert [t > 0 for t in true] == [False, False, False, True, False, False, False]
    assert learned == [0.0] * 7
    assert torch.equal(dynamics.residuals[0].amplitudes, torch.zeros(28, dtype=torch.float64))
