"""Errors of tosses over the horizon and by phase of the motion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from residual_mbrl.datasets import cube
from residual_mbrl.figure_style import WIDTH, colours, key, panel, png
from residual_mbrl.trajectories import Trajectory

Array = NDArray[np.float64]

PHASES = ("before", "impact", "tumbling", "sliding", "rest")
TOUCH = 0.0
"""Height of the published cube's lowest corner [m] at which it touches: the table's top lies a millimetre lower."""

IMPACT_ROWS = 3
SLOW_TURN = 1.0
"""Body rate [rad/s] below which a moving cube slides."""

SLOW = 0.02
"""Speed [m/s] below which a cube that does not turn rests."""


def phases(log: Trajectory) -> NDArray[np.int64]:
    """Return the phase of every recorded row, as a place in ``PHASES``, shape [N]."""
    x = log.measurements
    low = cube.lowest_corner(x[:, :3], x[:, 3:7]) < TOUCH
    touch = int(np.argmax(low)) if low.any() else len(x)
    turning = np.linalg.norm(x[:, 10:], axis=1) > SLOW_TURN
    moving = np.linalg.norm(x[:, 7:10], axis=1) > SLOW
    found = np.where(turning, 2, np.where(moving, 3, 4))
    found[:touch], found[touch : touch + IMPACT_ROWS] = 0, 1
    return found


def draw(logs: Sequence[Trajectory], predictions: Mapping[str, Mapping[str, tuple[Array, Array]]]) -> bytes:
    """Return a PNG: mean error of each row over the horizon, and mean growth of the error in each phase."""
    found = {n: [cube.errors(log, *p[log.name]) for log in logs] for n, p in predictions.items()}
    places = [phases(log) for log in logs]
    colour = colours(list(found))
    figure = Figure(figsize=(WIDTH, 4.8), layout="constrained")
    axes = figure.subplots(2, 2, width_ratios=(1.1, 1))
    for k, (what, unit, factor) in enumerate((("position error", "mm", 1e3), ("rotation error", "rad", 1.0))):
        left = panel(axes[k, 0], x="time [s]" if k else "", y=f"mean {what} [{unit}]")
        right = panel(axes[k, 1], y=f"growth a toss [{unit}]")
        for i, (name, errors) in enumerate(found.items()):
            shortest = min(len(e[k]) for e in errors)
            time = logs[0].interval * np.arange(shortest)
            left.plot(time, factor * np.mean([e[k][:shortest] for e in errors], 0), color=colour[name], label=name, lw=1.4)
            growth = [np.mean([np.diff(e[k])[p[1:] == j].sum() for e, p in zip(errors, places, strict=True)]) for j in range(len(PHASES))]
            right.bar(np.arange(len(PHASES)) + 0.26 * (i - 1), factor * np.array(growth), 0.24, color=colour[name])
        left.set_ylim(0, None)
        right.set_xticks(range(len(PHASES)), PHASES)
    key(figure, axes[0, 0])
    return png(figure)
