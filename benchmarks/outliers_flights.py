"""Real flights of types that were left out: is a square flight seen as none of those that were trained on?

Two types of trajectory are known, by their first two runs; the third runs set ranks and thresholds, the fourth are what belongs. Half
seconds are scored by how far their features lie from the training's and by how wrong one-step predictions of a model identified on the
training runs were. What the features are (means and spreads, in place of spectra and extremes) was chosen on chirp and random flights,
left out in turn; the squares then said what they say.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import nanodrone as benchmark
import numpy as np
from common import Row, compare, say, show
from nanodrone_model import balanced_values, build, rows_of
from numpy.typing import NDArray

from residual_mbrl.datasets.nanodrone import DT, TYPES
from residual_mbrl.disturbance import innovations
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.trajectories import Trajectory
from residual_mbrl.uncertainty.outliers import Detector, NeighbourDistance, window_features
from residual_mbrl.uncertainty.scores import auroc

Array = NDArray[np.float64]
HALF, CLOSE = 50, 5
PARTS = ("feature distance", "past innovation")


def signals(states: Array, commands: Array) -> Array:
    """Return body rate [rad/s], acceleration [m/s²], tilt and commands over stretches of flight, shape [N, T, 12].

    Args:
        states: Shape [N, T + 1, at least 13].
        commands: Shape [N, T, 4].
    """
    w, x, y, z = np.moveaxis(states[:, :-1, 3:7], -1, 0)
    tilt = np.stack([2 * (x * z + w * y), 2 * (y * z - w * x)], -1)
    return np.concatenate([states[:, :-1, 10:13], np.diff(states[..., 7:10], axis=1) / DT, tilt, commands], -1)


def detect_types(quick: bool) -> list[Row]:
    """Leave each type out in turn, print and return areas under the curve; nothing where the flights are not there."""
    folder = Path(os.environ.get("RESIDUAL_MBRL_DATA", Path(__file__).parents[2] / "shared" / "data")) / "nanodrone"
    if not folder.exists():
        say(f"no real flights in {folder}")
        return []
    logs = benchmark.read(folder, ("train", "val"), "filtered")
    fifth = [x for x in benchmark.read(folder, ("extra",), "filtered") if x.group == "square"]
    lines, rows = [], []
    for kind in TYPES[:1] if quick else TYPES:
        runs = [[x for x in logs if x.group != kind and x.name.endswith(ends)] for ends in (("1", "2"), ("3",), ("4",))]
        outside = [x for x in logs if x.group == kind] + (fifth if kind == "square" else [])
        *areas, flagged, alarms = _areas(*runs, outside)
        lines.append([f"{kind} left out", *areas, flagged, alarms])
        rows += [compare(f"auroc.real.{kind}.{p}", a, 0.9, "1") for p, a in zip(("all", *PARTS), areas, strict=True)]
        rows += [compare(f"real.{kind}.flagged", flagged, 1.0, "1"), compare(f"real.{kind}.false_alarms", alarms, 0.05, "1")]
    show("AUROC by half second of real flights", ("", "all", *PARTS, "flagged", "false alarms"), lines)
    return rows


def _areas(train: Sequence[Trajectory], validation: Sequence[Trajectory], inside: Sequence[Trajectory],
           outside: Sequence[Trajectory]) -> list[float]:
    """Return areas under the curve of the whole and of each part, and the fractions of outside and inside that are flagged."""
    baseline = build()
    model = ResidualDynamics(baseline, (), balanced_values(baseline, train))
    missed = np.concatenate([_innovations(model, x) for x in train]).std(0)
    distance = NeighbourDistance.of(np.concatenate([_features(x, CLOSE) for x in train]))

    def parts(logs: Sequence[Trajectory]) -> list[Array]:
        return [distance(np.concatenate([_features(x, HALF) for x in logs])),
                np.concatenate([np.sqrt(np.square(_innovations(model, x) / missed).mean(-1)) for x in logs])]

    detector, own, other = Detector.of(parts(validation)), parts(inside), parts(outside)
    return [auroc(detector.score(own), detector.score(other)), *(auroc(a, b) for a, b in zip(own, other, strict=True)),
            float(detector.flags(other).mean()), float(detector.flags(own).mean())]


def _stretches(log: Trajectory, every: int) -> tuple[Array, Array]:
    states, commands = (x.numpy() for x in rows_of(log))
    starts = range(HALF, len(commands), every)
    return np.stack([states[s - HALF : s + 1] for s in starts]), np.stack([commands[s - HALF : s] for s in starts])


def _features(log: Trajectory, every: int) -> Array:
    return window_features(signals(*_stretches(log, every)))


def _innovations(model: ResidualDynamics, log: Trajectory) -> Array:
    """Return means over half seconds of the accelerations that the model lacks, in the body's frame, shape [N, 6]."""
    states, commands = rows_of(log)
    missed = innovations(model, states, commands[:-1], body_frame=True)[:, 6:].numpy()
    return np.stack([missed[s - HALF : s].mean(0) for s in range(HALF, len(commands), HALF)])
