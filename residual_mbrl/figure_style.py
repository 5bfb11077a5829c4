"""How every figure looks: one colour per model everywhere, labels with units, nothing that carries no data."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

# Okabe and Ito (2008), Color Universal Design: told apart with any colour vision, and grey for what is not corrected yet
_COLOURS = {"measured": "#000000", "nominal": "#8C8C8C", "identified": "#0072B2", "residual": "#E69F00",
            "identified+residual": "#D55E00", "network": "#009E73"}
_FURTHER = ("#CC79A7", "#56B4E9", "#F0E442")
GREY = "#8C8C8C"
WIDTH = 7.2
"""Inches; 1080 pixels at 150 dpi."""
FAR_APART = 6.0
"""Ratio of typical errors beyond which an axis of errors is logarithmic."""


def colours(models: Sequence[str]) -> dict[str, str]:
    """Return the colour of each model: its own wherever it appears; models of other names share three further colours."""
    others = [m for m in models if m not in _COLOURS]
    return {m: _COLOURS.get(m) or _FURTHER[others.index(m) % len(_FURTHER)] for m in models}


def panel(axes: Axes, *, x: str = "", y: str = "", title: str = "") -> Axes:
    """Give axes the common look: two spines, thin ticks, small type, a faint horizontal grid behind the data."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_linewidth(0.7)
        axes.spines[side].set_color("#444444")
    axes.tick_params(which="major", labelsize=8, width=0.7, length=3, color="#444444")
    axes.tick_params(which="minor", width=0.5, length=1.5, color="#444444")
    axes.grid(axis="y", linewidth=0.4, color="#DDDDDD")
    axes.set_axisbelow(True)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.set_title(title, fontsize=9, loc="left", color="#333333")
    return axes


def error_axis(axes: Axes, which: Literal["x", "y"], values: Sequence[NDArray[np.float64]]) -> None:
    """Scale an axis of errors: from zero, or logarithmic where the models lie far apart.

    Args:
        axes: Where.
        which: The axis.
        values: Errors of each model, any shapes; infinite and NaN ones do not count.
    """
    rows = [x[np.isfinite(x) & (x > 0)] for x in values]
    typical = [float(np.median(x)) for x in rows if len(x)]
    if not typical or max(typical) < FAR_APART * min(typical):
        (axes.set_xlim if which == "x" else axes.set_ylim)(0, None)
        return
    known = np.concatenate(rows)
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    (axes.set_xlim if which == "x" else axes.set_ylim)(known.min() / 1.5, known.max() * 1.5)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0,) if known.max() > 200 * known.min() else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def key(figure: Figure, axes: Axes) -> None:
    """Put one line of legend above everything."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False, fontsize=8.5, handlelength=1.6,
                  columnspacing=1.6, borderpad=0.1)


def png(figure: Figure, dpi: int = 150) -> bytes:
    """Draw a figure as PNG, white behind it so that it reads on a dark page too."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
