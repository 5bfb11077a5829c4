"""Scores of the cube's models: tables, paired differences, rows, metrics of the artefact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import compare, say, show, write_rows
from cube_figure import draw
from cube_figure import phases as phases_of
from numpy.typing import NDArray

from residual_mbrl.artifact import write_metrics
from residual_mbrl.bootstrap import interval
from residual_mbrl.contact_phases import PHASES, growth
from residual_mbrl.datasets import cube
from residual_mbrl.files import write_bytes
from residual_mbrl.metrics import Metric
from residual_mbrl.trajectories import Trajectory

Array = NDArray[np.float64]

PAIRS = (("identified", "friction"), ("identified+residual", "identified"), ("identified+residual", "friction"),
         ("identified_32", "identified"))
"""Models whose errors are compared toss by toss."""
ERRORS = (("position_m", "m"), ("rotation_rad", "rad"))


@dataclass(frozen=True)
class Scores:
    """What was predicted of a part of the data.

    Args:
        part: Its name.
        logs: Its tosses.
        predictions: Positions and quaternions, by model and toss.
        floors: Mean distance [m] and angle [rad] of every toss, by what moved the start.
    """

    part: str
    logs: Sequence[Trajectory]
    predictions: Mapping[str, Mapping[str, tuple[Array, Array]]]
    floors: Mapping[str, Array]

    def rows(self, model: str) -> list[tuple[Array, Array]]:
        """Return the distance and angle of every row of every toss."""
        return [cube.errors(log, *self.predictions[model][log.name]) for log in self.logs]

    def means(self, model: str) -> Array:
        """Return mean distance and angle of every toss, shape [tosses, 2]."""
        return np.array([[e.mean() for e in found] for found in self.rows(model)])

    def metrics(self) -> dict[str, list[Metric]]:
        """Return the metrics of every model."""
        return {n: [*cube.score(self.logs, p, n), Metric(model=n, metric="penetration_m", value=self.penetration(n), unit="m")]
                for n, p in self.predictions.items()}

    def penetration(self, model: str | None = None) -> float:
        """Return how deep below zero the published cube's lowest corner gets, mean over tosses [m]; as logged where None."""
        poses = [(log.measurements[:, :3], log.measurements[:, 3:7]) if model is None else self.predictions[model][log.name]
                 for log in self.logs]
        return float(np.mean([-np.nanmin(cube.lowest_corner(*p)) for p in poses]))


def tell(scores: Scores) -> None:
    """Print the tables."""
    metrics = scores.metrics()
    show(f"{len(scores.logs)} tosses, {scores.part}", ["model", "position [m]", "rotation [rad]"],
         [[n, *(_interval(m) for m in found if m.metric in ("position_m", "rotation_rad"))] for n, found in metrics.items()])
    medians = {n: [m for m in found if m.metric.startswith("median")] for n, found in metrics.items()}
    header = [f"{m.metric.split('_')[1]}{'' if m.horizon is None else f' @{m.horizon}'} [{m.unit}]" for m in medians["nominal"]]
    show("medians over tosses: full length and at row 10, 20, 40", ["model", *header],
         [[n, *(f"{m.value:.4f}" for m in found)] for n, found in medians.items()])
    deep = ", ".join(f"{n} {1e3 * scores.penetration(n):.2f}" for n in scores.predictions)
    say(f"deepest corner, mean over tosses [mm]: logged {1e3 * scores.penetration():.2f}, {deep}")
    for name, floor in scores.floors.items():
        say(f"floor, starts moved by {name}: {floor[:, 0].mean():.4f} m, {floor[:, 1].mean():.3f} rad")
    for one, other in PAIRS:
        if one in scores.predictions:
            tell_gain(f"{one} minus {other}", scores.means(one) - scores.means(other))
    places = [phases_of(log) for log in scores.logs]
    lines = []
    for name in scores.predictions:
        shares = [growth([e[k] for e in scores.rows(name)], places) for k in range(2)]
        lines.append([name, *(f"{1e3 * shares[0][p]:.1f} mm, {shares[1][p]:.3f} rad" for p in PHASES)])
    show("growth of the error by phase, mean over tosses", ["model", *PHASES], lines)


def tell_gain(what: str, gain: Array) -> None:
    """Print the mean of paired differences over tosses, shape [tosses, 2], with bootstrap intervals."""
    for k, (_, unit) in enumerate(ERRORS):
        low, high = interval(gain[:, k])
        say(f"{what}, paired over {len(gain)} tosses: {gain[:, k].mean():+.4f} {unit} [{low:+.4f}, {high:+.4f}]")


def write(scores: Scores, rows: Path | None, metrics: Path, figure: Path | None, *, seconds: float) -> None:
    """Write the rows, each against tuned friction, the artefact's metrics and the figure."""
    found = scores.metrics()
    peer = {(m.metric, m.horizon): m.value for m in found["friction"]}
    suffix = lambda m: "" if m.horizon is None else f"_h{m.horizon}"  # noqa: E731
    lines = [compare(f"cube.{scores.part}.{m.metric}{suffix(m)}.{n}", m.value, peer[m.metric, m.horizon], m.unit)
             for n, ms in found.items() for m in ms]
    lines += [compare(f"cube.{scores.part}.floor.{name.replace(' ', '_')}.{n}", float(x[:, k].mean()), peer[n, None], u)
              for name, x in scores.floors.items() for k, (n, u) in enumerate(ERRORS)]
    write_rows(rows, lines)
    write_metrics(metrics, dataset="cube", split=scores.part, metrics=[m for ms in found.values() for m in ms], seconds=seconds)
    if figure is not None:
        write_bytes(figure, draw(scores.logs, {n: p for n, p in scores.predictions.items() if not n.startswith("identified_")},
                                 scores.floors["the first frame"].mean(0)))


def _interval(m: Metric) -> str:
    return f"{m.value:.4f}" + ("" if m.ci95 is None else f" [{m.ci95[0]:.4f}, {m.ci95[1]:.4f}]")
