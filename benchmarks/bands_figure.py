"""Coverage and width of bands over the horizon, one column a set and quantity."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from residual_mbrl.figure_style import GREY, WIDTH, panel, png
from residual_mbrl.uncertainty.scores import BandScore

Quantities = Sequence[tuple[str, str, tuple[int, ...]]]
OURS = "#D55E00"


def draw(found: Sequence[tuple[str, Quantities, BandScore, BandScore]], level: float) -> bytes:
    """Return the picture as PNG."""
    columns = [(name, q, ours, naive) for name, quantities, ours, naive in found for q in quantities]
    figure = Figure(figsize=(WIDTH * max(1.0, len(columns) / 3), 4.2), layout="constrained")
    axes = figure.subplots(2, len(columns), squeeze=False, sharex="col")
    for k, (name, (quantity, unit, entries), ours, naive) in enumerate(columns):
        e, top, below = list(entries), axes[0, k], axes[1, k]
        for score, colour, label in ((naive, GREY, "state stays"), (ours, OURS, "model")):
            top.plot(score.steps, score.coverage.value[:, e].mean(1), color=colour, linewidth=1.4, label=label)
            below.plot(score.steps, score.width.value[:, e].mean(1), color=colour, linewidth=1.4, label=label)
        top.fill_between(ours.steps, ours.coverage.lower[:, e].mean(1), ours.coverage.upper[:, e].mean(1), color=OURS, alpha=0.15,
                         linewidth=0)
        top.axhspan(0.87, 0.93, color="#CCCCCC", alpha=0.5, linewidth=0)
        top.axhline(level, color="#444444", linewidth=0.6)
        top.set_ylim(0.5, 1.01)
        below.set_yscale("log")
        panel(top, y="coverage" if k == 0 else "", title=f"{name}\n{quantity}")
        panel(below, x="steps ahead", y=f"width [{unit}]")
    axes[1, 0].legend(frameon=False, fontsize=8)
    return png(figure)
