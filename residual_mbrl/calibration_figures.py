"""Figures of what was calibrated: parameters, friction curves, error over amount of data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from residual_mbrl.figure_style import GREY, WIDTH, colours, error_axis, key, panel
from residual_mbrl.identifiability import Estimate
from residual_mbrl.verdict import number

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DataPoint:
    """Error of one model that was calibrated on some amount of data.

    Args:
        amount: How much, in the unit of the axis.
        model: Name of the model.
        value: Error.
        interval: 95 % interval; None where there is none.
    """

    amount: float
    model: str
    value: float
    interval: tuple[float, float] | None = None


def parameter_intervals(estimates: Sequence[Estimate]) -> Figure:
    """Draw every identified parameter with its 95 % interval against nominal, in parts of the parameter's scale.

    An interval that leaves the panel ends in an arrow at its edge; a parameter at its bound is an open dot; the numbers
    at the right are nominal and identified value.
    """
    figure = Figure(figsize=(WIDTH, 0.75 + 0.24 * max(len(estimates), 2)), layout="constrained")
    axes = panel(figure.subplots(), x="change from nominal / scale of the parameter [1]")
    shift = np.array([(e.value - e.parameter.nominal) / e.parameter.scale for e in estimates])
    half = np.array([1.96 * e.std / e.parameter.scale for e in estimates])
    # wide enough for every estimate and for ordinary intervals; one that the data hardly determine must not shrink the rest
    largest = float(np.abs(shift).max(initial=0.1))
    edge = 1.15 * min(max(largest, float((np.abs(shift) + half).max(initial=0.0))), 2.5 * largest)
    colour = colours(["identified"])["identified"]
    for row, (e, x, h) in enumerate(zip(estimates, shift, half, strict=True)):
        low, high = max(x - h, -edge), min(x + h, edge)
        axes.plot([low, high], [row, row], color=colour, linewidth=1.6, solid_capstyle="butt")
        for end, marker, cut in ((low, "<", x - h < -edge), (high, ">", x + h > edge)):
            if cut:
                axes.plot(end, row, marker=marker, color=colour, markersize=4, clip_on=False)
        axes.plot(x, row, "o", color=colour, markersize=5, markerfacecolor="white" if e.at_bound else colour)
    axes.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    axes.set_xlim(-edge, edge)
    axes.set_ylim(len(estimates) - 0.4, -0.6)
    axes.set_yticks(range(len(estimates)), [f"{e.parameter.name} [{e.parameter.unit}]" for e in estimates])
    axes.tick_params(axis="y", length=0)
    values = axes.secondary_yaxis("right")
    values.set_yticks(range(len(estimates)), [f"{number(e.parameter.nominal)} → {number(e.value)}" for e in estimates], fontsize=8)
    values.tick_params(length=0)
    values.spines["right"].set_visible(False)
    return figure


def friction_curve(velocity: Array, baseline: Array, corrected: Array, *, labels: Sequence[str], velocity_unit: str = "rad/s",
                   force_unit: str = "N·m") -> Figure:
    """Draw friction over velocity, of the baseline alone (dashed) and with the residual (solid), at some loads.

    Args:
        velocity: Shape [N].
        baseline: Friction of the baseline alone, shape [K, N].
        corrected: Friction with the residual, shape [K, N].
        labels: What each of the K curves stands for, such as "load 0.5 N·m".
        velocity_unit: Unit of the velocity.
        force_unit: Unit of the friction.

    Raises:
        ValueError: if the shapes do not fit.
    """
    if baseline.shape != (len(labels), len(velocity)) or corrected.shape != baseline.shape:
        raise ValueError(f"friction_curve: expected baseline and corrected of shape {(len(labels), len(velocity))}, received "
                         f"{baseline.shape}, {corrected.shape}")
    figure = Figure(figsize=(WIDTH, 1.1 + 2.1), layout="constrained")
    grid = figure.subplots(1, len(labels), sharey=True, squeeze=False)[0]
    hue = colours(["identified", "identified+residual"])
    for k, (axes, label) in enumerate(zip(grid, labels, strict=True)):
        axes.fill_between(velocity, baseline[k], corrected[k], color=hue["identified+residual"], alpha=0.12, linewidth=0)
        axes.plot(velocity, baseline[k], color=hue["identified"], linewidth=1.3, linestyle=(0, (4, 2)), label="baseline")
        axes.plot(velocity, corrected[k], color=hue["identified+residual"], linewidth=1.5, label="with residual")
        panel(axes, x=f"velocity [{velocity_unit}]", y=f"friction [{force_unit}]" if k == 0 else "", title=label)
        axes.set_xlim(float(velocity.min()), float(velocity.max()))
        if velocity.min() < 0 < velocity.max():
            axes.axhline(0, color=GREY, linewidth=0.6, zorder=0)
            axes.axvline(0, color=GREY, linewidth=0.6, zorder=0)
        else:
            axes.set_ylim(bottom=0)
    key(figure, grid[0])
    return figure


def error_over_data(points: Sequence[DataPoint], *, amount: str, error: str) -> Figure:
    """Draw the error against the amount of data that a model was calibrated on.

    Args:
        points: One for each model and amount.
        amount: Label of the horizontal axis with its unit, such as "logs [1]" or "data [s]".
        error: Label of the vertical axis with its unit.
    """
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    axes = panel(figure.subplots(), x=amount, y=error)
    models = list(dict.fromkeys(p.model for p in points))
    for m, colour in colours(models).items():
        own = sorted((p for p in points if p.model == m), key=lambda p: p.amount)
        x, y = [p.amount for p in own], [p.value for p in own]
        axes.plot(x, y, color=colour, linewidth=1.5, marker="o", markersize=4, label=m)
        low = [p.interval[0] if p.interval else np.nan for p in own]
        high = [p.interval[1] if p.interval else np.nan for p in own]
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    amounts = sorted({p.amount for p in points})
    if amounts and amounts[0] > 0 and amounts[-1] / amounts[0] >= 8:
        axes.set_xscale("log")
    axes.set_xticks(amounts, [f"{a:g}" for a in amounts])
    axes.minorticks_off()
    error_axis(axes, "y", [np.array([p.value for p in points if p.model == m]) for m in models])
    key(figure, axes)
    return figure
