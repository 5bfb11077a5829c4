"""The arm as it follows a motion: a picture with the tool's path, and its error over time, by the model that it was driven by."""

from __future__ import annotations

from collections.abc import Mapping

import mujoco
import numpy as np
import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from residual_mbrl.demo_arm import JOINTS, arm_xml, robot_model
from residual_mbrl.demo_motion import TRAVEL
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.figure_style import GREY, WIDTH, colours, key, panel
from residual_mbrl.ray_picture import Camera, cast_picture
from residual_mbrl.tracking import Run

Array = NDArray[np.float64]

CAMERA = Camera(position=(1.9, -2.2, 1.3), target=(0.16, -0.05, 0.40), angle=0.37, width=560, height=600)
COLOURS = {"nominal": GREY, "calibrated": colours(["identified+residual"])["identified+residual"], "true": "#000000"}
LABELS = {"nominal": "data sheet", "calibrated": "calibrated", "true": "true model"}
MAGNIFIED = 5
"""How many times as large as they are the picture shows the errors of the path."""
SHOWN = 0.75
"""Part of the joints' travel in the logs over which the springs are drawn."""
LEAST = 0.01
"""Smallest error that the curves show [mm]."""


def tool_path(positions: Array) -> Array:
    """Return where the tool is at joint positions [T, 7], shape [T, 3] [m]."""
    model = mujoco.MjModel.from_xml_string(arm_xml())
    data, path = mujoco.MjData(model), np.empty((len(positions), 3))
    for k, q in enumerate(positions):
        data.qpos[:] = q
        mujoco.mj_kinematics(model, data)
        path[k] = data.site("tool").xpos
    return path


def tracking_figure(runs: Mapping[str, Run]) -> Figure:
    """Draw the arm with the path of its tool, errors magnified, and beside it the tool's error over time.

    Args:
        runs: Runs along one motion on one plant, by "nominal", "calibrated" and "true".
    """
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.1))
    one = next(iter(runs.values()))
    asked = tool_path(one.reference)
    misses = {name: tool_path(run.positions) - asked for name, run in runs.items()}
    _draw_arm(left, one.reference[0], asked, misses)
    panel(right, x="time [s]", y="error of the tool [mm]")
    for name, miss in misses.items():
        error = 1e3 * np.linalg.norm(miss, axis=1)
        rms = float(np.sqrt(np.mean(error**2)))
        right.semilogy(one.time, np.maximum(error, 0.1 * LEAST), color=COLOURS[name], linewidth=0.8 if name == "true" else 1.4,
                       label=f"{LABELS[name]}: {rms:.3g} mm rms", zorder=2 if name == "true" else 3)
    right.set_xlim(0, float(one.time[-1]))
    right.set_ylim(LEAST, None)
    right.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    figure.legend(*right.get_legend_handles_labels(), loc="outside upper right", ncols=len(runs), frameon=False, fontsize=8.5,
                  handlelength=1.4, columnspacing=1.2, borderpad=0.1)
    return figure


def spring_figure(dynamics: ResidualDynamics) -> Figure:
    """Draw the torque of the learned residual at each joint over its angle, and that of the spring which is really there.

    Args:
        dynamics: Calibrated dynamics of the arm, with residuals that depend on positions alone.
    """
    model = robot_model()
    figure = Figure(figsize=(WIDTH, 1.9), layout="constrained")
    grid = figure.subplots(1, len(JOINTS), sharey=True)
    for j, axes in enumerate(grid):
        turn = np.linspace(-SHOWN * TRAVEL[j], SHOWN * TRAVEL[j], 60)
        state = np.zeros((len(turn), 2 * len(JOINTS)))
        state[:, : len(JOINTS)] = model.key_qpos[0]
        state[:, j] += turn
        with torch.no_grad():
            force = dynamics.correction(torch.tensor(state), torch.zeros(len(turn), len(JOINTS), dtype=torch.float64)).force
        axes.plot(state[:, j], -model.jnt_stiffness[j] * (state[:, j] - model.qpos_spring[j]), color=COLOURS["true"], linewidth=0.9,
                  linestyle=(0, (3, 2)), label="true")
        if force is not None:
            axes.plot(state[:, j], force[:, j].numpy(), color=COLOURS["calibrated"], linewidth=1.4, label="learned")
        panel(axes, y="torque [N·m]" if j == 0 else "", title=JOINTS[j])
    figure.supxlabel("angle [rad]", fontsize=9)
    key(figure, grid[0])
    return figure


def _draw_arm(axes: Axes, pose: Array, asked: Array, misses: Mapping[str, Array]) -> None:
    """Draw the arm at a pose, and over it the path asked for and those that were taken."""
    model = mujoco.MjModel.from_xml_string(arm_xml())
    data = mujoco.MjData(model)
    data.qpos[:] = pose
    mujoco.mj_forward(model, data)
    axes.imshow(np.clip(cast_picture(model, data, CAMERA), 0.0, 1.0), interpolation="antialiased")
    halo = [patheffects.Stroke(linewidth=2.6, foreground="white", alpha=0.8), patheffects.Normal()]
    for name in ("nominal", "calibrated"):
        if name in misses:
            axes.plot(*CAMERA.project(asked + MAGNIFIED * misses[name]).T, color=COLOURS[name], linewidth=1.3, path_effects=halo)
    axes.plot(*CAMERA.project(asked).T, color="#000000", linewidth=0.7, linestyle=(0, (3, 2)))
    axes.set_xlim(0, CAMERA.width)
    axes.set_ylim(CAMERA.height, 0)
    axes.set_axis_off()
    axes.set_title(f"path of the tool, errors × {MAGNIFIED}; dashed: asked for", fontsize=8.5, color="#333333", y=-0.04)
