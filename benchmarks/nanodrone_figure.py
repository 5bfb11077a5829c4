"""Errors of a quadrotor's rollouts over the horizon."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from residual_mbrl.datasets.nanodrone import DT, QUANTITIES
from residual_mbrl.figure_style import WIDTH, colours, key, panel, png

Array = NDArray[np.float64]
NAMES = {"p": "position", "v": "velocity", "R": "rotation", "omega": "body rate"}


def draw(errors: Mapping[str, Array]) -> bytes:
    """Return a PNG: mean error of position, velocity, rotation and body rate over the horizon, logarithmic.

    Args:
        errors: Mean error at each horizon by model, shape [50, 4].
    """
    colour = colours(list(errors))
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axes = figure.subplots(2, 2)
    for k, ((quantity, unit), ax) in enumerate(zip(QUANTITIES.items(), axes.flat, strict=True)):
        place = panel(ax, x="time ahead [s]" if k > 1 else "", y=f"{NAMES[quantity]} error [{unit}]")
        for name, e in errors.items():
            place.plot(DT * np.arange(1, len(e) + 1), e[:, k], color=colour[name], label=name, lw=1.4)
        place.set_yscale("log")
    key(figure, axes.flat[0])
    return png(figure)
