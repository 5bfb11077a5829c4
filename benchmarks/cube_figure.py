"""Errors of tosses over the horizon and by phase of the motion, beside what unknown starts alone account for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from residual_mbrl import contact_phases
from residual_mbrl.contact_phases import PHASES, growth
from residual_mbrl.datasets import cube
from residual_mbrl.figure_style import WIDTH, colours, key, panel, png
from residual_mbrl.trajectories import Trajectory

Array = NDArray[np.float64]


def phases(log: Trajectory) -> NDArray[np.int64]:
    """Return the phase of every recorded row; the published cube's lowest corner touches at zero, for the table lies a bit lower."""
    x = log.measurements
    speed, rate = np.linalg.norm(x[:, 7:10], axis=1), np.linalg.norm(x[:, 10:], axis=1)
    return contact_phases.phases(cube.lowest_corner(x[:, :3], x[:, 3:7]), speed, rate)


def draw(logs: Sequence[Trajectory], predictions: Mapping[str, Mapping[str, tuple[Array, Array]]], floor: Array) -> bytes:
    """Return a PNG: mean error of each row over the horizon, and mean growth of the error in each phase.

    Args:
        logs: The tosses.
        predictions: Position and quaternion of every row, by model and toss.
        floor: Mean distance [m] and angle [rad] of rollouts whose starts the uncertainty of the first frame has moved.
    """
    found = {n: [cube.errors(log, *p[log.name]) for log in logs] for n, p in predictions.items()}
    places = [phases(log) for log in logs]
    colour = colours(list(found))
    figure = Figure(figsize=(WIDTH, 4.8), layout="constrained")
    axes = figure.subplots(2, 2, width_ratios=(1.1, 1))
    width = 0.8 / len(found)
    for k, (what, unit, factor) in enumerate((("position error", "mm", 1e3), ("rotation error", "rad", 1.0))):
        left = panel(axes[k, 0], x="time [s]" if k else "", y=f"mean {what} [{unit}]")
        right = panel(axes[k, 1], y=f"growth a toss [{unit}]")
        for i, (name, errors) in enumerate(found.items()):
            shortest = min(len(e[k]) for e in errors)
            time = logs[0].interval * np.arange(shortest)
            left.plot(time, factor * np.mean([e[k][:shortest] for e in errors], 0), color=colour[name], label=name, lw=1.4)
            shares = growth([e[k] for e in errors], places)
            places_x = np.arange(len(PHASES)) + width * (i - (len(found) - 1) / 2)
            right.bar(places_x, factor * np.array([shares[p] for p in PHASES]), 0.9 * width, color=colour[name])
        left.axhline(factor * floor[k], color="0.55", lw=1.0, ls="--", label="unknown starts alone, mean of a toss")
        left.set_ylim(0, None)
        right.set_xticks(range(len(PHASES)), PHASES)
    key(figure, axes[0, 0])
    return png(figure)
