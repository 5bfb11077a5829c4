"""A carton that is shoved to where the finger cannot reach, seen from above, under MPC with three models.

Run ``python benchmarks/pusher_figure.py``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import tyro
from closed_loop import DT, MODELS, control, pusher
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from numpy.typing import NDArray
from pusher_plant import LENGTH, WIDTH

from residual_mbrl.figure_style import WIDTH as INCHES
from residual_mbrl.figure_style import panel, png
from residual_mbrl.files import write_bytes

Array = NDArray[np.float64]
COLOURS = {"nominal": "#8C8C8C", "calibrated": "#D55E00", "true": "#0072B2"}
LABELS = {"nominal": "data sheet", "calibrated": "calibrated", "true": "knows the plant"}


def outline(state: Array) -> Array:
    """Return the corners of the carton from above [m], shape [4, 2]."""
    turn = 2 * np.arctan2(state[8], state[5])
    corners = np.array([[LENGTH, WIDTH], [LENGTH, -WIDTH], [-LENGTH, -WIDTH], [-LENGTH, WIDTH]])
    return state[2:4] + corners @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])


def main(seed: int = 2, to: Path = Path("docs/figures/pusher.png")) -> None:
    """Draw where the carton starts, where it comes to rest, and how fast.

    Args:
        seed: Of the plant.
        to: File.
    """
    torch.set_num_threads(1)
    case = pusher()
    made = case.calibrate(seed)
    models = {"nominal": made.nominal, "calibrated": made.calibrated, "true": case.true(seed)}
    runs = {m: control(case, models[m], seed)[0] for m in MODELS}
    figure = Figure(figsize=(INCHES, 4.6), layout="constrained")
    above, beside = figure.subplots(2, 1, height_ratios=[1.5, 1])
    goal = case.goals(seed, np.zeros(1))[0]
    above.add_patch(Polygon(outline(goal), fill=True, facecolor="#DDDDDD", edgecolor="none"))
    above.add_patch(Polygon(outline(runs["true"][0]), fill=False, edgecolor="black", linestyle=":", linewidth=1))
    above.axvline(0.0, color="#444444", linewidth=0.6)
    above.text(0.005, 0.17, "end of the finger's rail", fontsize=8, color="#444444")
    for name, states in runs.items():
        above.plot(states[:, 2], states[:, 3], color=COLOURS[name], linewidth=1.2)
        above.add_patch(Polygon(outline(states[-1]), fill=False, edgecolor=COLOURS[name], linewidth=1.4, label=LABELS[name]))
        beside.plot(DT * np.arange(len(states)), states[:, 2], color=COLOURS[name], linewidth=1.4, label=LABELS[name])
    beside.axhline(goal[2], color="#BBBBBB", linewidth=3, zorder=0, label="target")
    above.set_aspect("equal")
    above.set_xlim(-0.25, 0.65)
    above.set_ylim(-0.17, 0.2)
    panel(above, x="x [m]", y="y [m]", title="start (dotted), target (grey), and where the carton comes to rest")
    panel(beside, x="time [s]", y="carton x [m]")
    beside.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    write_bytes(to, png(figure))


if __name__ == "__main__":
    tyro.cli(main)
