"""Coverage and width of bands over the horizon, one column a set and quantity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from residual_mbrl.figure_style import GREY, WIDTH, panel, png
from residual_mbrl.uncertainty.scores import BandScore

Quantities = Sequence[tuple[str, str, tuple[int, ...]]]
FIXED, ADAPTIVE = "#0072B2", "#D55E00"


def draw(found: Sequence[tuple[str, Quantities, Mapping[str, BandScore], Mapping[str, BandScore]]], level: float) -> bytes:
    """Return the picture as PNG."""
    columns = [(name, q, ours, naive) for name, quantities, ours, naive in found for q in quantities]
    figure = Figure(figsize=(WIDTH * max(1.0, len(columns) / 3.5), 4.2), layout="constrained")
    axes = figure.subplots(2, len(columns), squeeze=False, sharex="col")
    for k, (name, (quantity, unit, entries), ours, naive) in enumerate(columns):
        e, top, below = list(entries), axes[0, k], axes[1, k]
        shown = ((naive.get("adaptive", naive["fixed"]), GREY, "state stays"), (ours["fixed"], FIXED, "fixed factors"),
                 (ours["adaptive"], ADAPTIVE, "adaptive"))
        for score, colour, label in shown:
            top.plot(score.steps, score.coverage.value[:, e].mean(1), color=colour, linewidth=1.4, label=label)
            below.plot(score.steps, score.width.value[:, e].mean(1), color=colour, linewidth=1.4, label=label)
        last = ours["adaptive"]
        top.fill_between(last.steps, last.coverage.lower[:, e].mean(1), last.coverage.upper[:, e].mean(1), color=ADAPTIVE, alpha=0.15,
                         linewidth=0)
        top.axhspan(0.87, 0.93, color="#CCCCCC", alpha=0.5, linewidth=0)
        top.axhline(level, color="#444444", linewidth=0.6)
        top.set_ylim(0.7, 1.01)
        below.set_yscale("log")
        below.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        below.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        below.yaxis.set_minor_formatter(NullFormatter())
        panel(top, y="coverage" if k == 0 else "", title=f"{name.replace(', ', chr(10))}\n{quantity}")
        panel(below, x="steps ahead", y=f"width [{unit}]")
    axes[1, 0].legend(frameon=False, fontsize=7)
    return png(figure)
