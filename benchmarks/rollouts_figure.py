"""The picture of how a fused gradient's time grows with batch, horizon and width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

TITLES = {"batch": "worlds (50 steps, 64 units)", "horizon": "steps (256 worlds, 64 units)",
          "width": "units of both layers (256 worlds, 50 steps)"}


def draw(path: Path, points: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """Write the picture: a panel each, both axes logarithmic, with the slope of proportional growth beside the points."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for axis, (name, measured) in zip(figure.subplots(1, len(points), sharey=True), points.items(), strict=True):
        sizes, times = [n for n, _ in measured], [ms for _, ms in measured]
        power = 2 if name == "width" else 1
        axis.loglog(sizes, [times[-1] * (n / sizes[-1]) ** power for n in sizes], color="0.75", lw=1.5,
                    label="∝ n²" if power == 2 else "∝ n")
        axis.loglog(sizes, times, "o-", color="#0072b2", ms=4, lw=1.2, label="measured")
        axis.set_xlabel(TITLES[name])
        axis.grid(which="major", color="0.92")
        axis.set_axisbelow(True)
        axis.legend(frameon=False, loc="upper left")
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("cost and gradient by actions [ms]")
    figure.savefig(path, dpi=150)
