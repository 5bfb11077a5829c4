"""Return over plant data, one panel a plant: interquartile means over seeds with their 95 % bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from residual_mbrl.figure_style import GREY, WIDTH, panel, png

SHOWN = {"ours": ("ours", "#D55E00", "o"), "PETS": ("PETS, no baseline", "#0072B2", "s"), "SAC": ("SAC", "#009E73", "^"),
         "PPO": ("PPO", "#CC79A7", "v")}
"""Label, colour and mark of each method that learns."""
COLUMNS = 3


def draw(rows: Sequence[dict[str, Any]]) -> bytes:
    """Return the picture as PNG, from the rows of the benchmark's JSON."""
    plants = list(dict.fromkeys(r["plant"] for r in rows))
    figure = Figure(figsize=(WIDTH, 2.5 * -(-len(plants) // COLUMNS)), layout="constrained")
    axes = figure.subplots(-(-len(plants) // COLUMNS), COLUMNS, sharey=True, squeeze=False)
    for k, plant in enumerate(plants):
        place = axes[divmod(k, COLUMNS)]
        _curves(place, [r for r in rows if r["plant"] == plant])
        panel(place, x="plant data [s]", y="share of true-model MPC" if k % COLUMNS == 0 else "", title=plant)
    for spare in axes.flat[len(plants) :]:
        spare.axis("off")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, fontsize=8, **_corner(len(plants), axes.size))
    return png(figure)


def _curves(place: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Draw all methods of one plant."""
    place.axhspan(0.9, 1.12, color="#EEEEEE", linewidth=0)
    known = next(r["share"] for r in rows if r["method"] == "nominal")
    place.axhline(known, color=GREY, linewidth=1.2, linestyle="--", label="MPC, data sheet")
    for method, (label, colour, mark) in SHOWN.items():
        found = sorted((r for r in rows if r["method"] == method), key=lambda r: r["plant_seconds"])
        if not found:
            continue
        x = [r["plant_seconds"] for r in found]
        low, high = np.array([r["ci95"] for r in found]).T
        place.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        place.plot(x, [r["share"] for r in found], color=colour, marker=mark, markersize=4, linewidth=1.4, label=label)
        if len(found) == 1:
            place.vlines(x, low, high, color=colour, linewidth=1.4)
    place.set_xscale("log")
    place.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    place.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    place.xaxis.set_minor_formatter(NullFormatter())
    place.set_ylim(0, 1.12)


def _corner(plants: int, places: int) -> dict[str, Any]:
    """Return where the legend stands: in the free place at the end, or below."""
    if plants < places:
        return {"loc": "center", "bbox_to_anchor": (1 - 0.5 / COLUMNS, 0.25)}
    return {"loc": "outside lower center", "ncols": len(SHOWN) + 1}
