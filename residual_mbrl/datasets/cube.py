"""Tosses of a cube onto a table, tracked at 147 Hz (Pfrommer, Halm, Posa, "ContactNets", CoRL 2020, arXiv 2009.11193)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from residual_mbrl.bootstrap import interval
from residual_mbrl.datasets.log_set import LogSet, Part, open_arrays, read_split
from residual_mbrl.errors import LogError
from residual_mbrl.free_flight import Poses
from residual_mbrl.metrics import Metric
from residual_mbrl.trajectories import Trajectory

Array = NDArray[np.float64]

WIDTHS = {"pos": 3, "quat": 4, "vel": 3, "omega": 3}
COLUMNS = ("x", "y", "z", "qw", "qx", "qy", "qz", "vx", "vy", "vz", "wx", "wy", "wz")
UNITS = {**dict.fromkeys(("x", "y", "z"), "m"), **dict.fromkeys(("vx", "vy", "vz"), "m/s"), **dict.fromkeys(("wx", "wy", "wz"), "rad/s")}

HALF_WIDTH = 0.0524
"""Of the cube [m], as published."""

CLEARANCE = 0.01
"""Height of the lowest corner above the table [m] down to which a row counts as free flight."""

FOLDS = 5
HORIZONS = (10, 20, 40)


def read(folder: Path, parts: Sequence[Part]) -> LogSet:
    """Read the tosses of some parts: no commands; position [m], attitude w-x-y-z, velocity [m/s], body rate [rad/s].

    Tosses are sorted into five groups for cross-validation by their number.

    Raises:
        LogError: naming the file and what is wrong with it.
    """
    path = folder / "cube.npz"
    d = open_arrays(path, (*WIDTHS, "offsets", "dt"))
    offsets, dt = _check(path, d)
    split = read_split(folder)
    logs: dict[Part, list[Trajectory]] = {}
    for part in parts:
        numbers = split.get(part)
        if not isinstance(numbers, list) or not all(isinstance(k, int) and 0 <= k < len(offsets) - 1 for k in numbers):
            raise LogError(f"{folder / 'split.json'}: expected toss numbers below {len(offsets) - 1} for part {part!r}")
        logs[part] = [_trajectory(d, int(offsets[k]), int(offsets[k + 1]), dt, k) for k in numbers]
    return LogSet(logs=logs, starts={}, files=[path])


def poses(log: Trajectory) -> Poses:
    """Return a toss as poses."""
    x = log.measurements
    return Poses(name=log.name, time=log.measurement_time, position=x[:, :3], quaternion=x[:, 3:7], velocity=x[:, 7:10], omega=x[:, 10:])


def flight(log: Trajectory) -> Poses:
    """Return the rows before any corner comes within ``CLEARANCE`` of the table."""
    low = lowest_corner(log.measurements[:, :3], log.measurements[:, 3:7]) < CLEARANCE
    return poses(log).first(int(np.argmax(low)) if low.any() else len(low))


def lowest_corner(position: Array, quaternion: Array) -> Array:
    """Return the height of the lowest corner of the published cube [m], shape [...].

    Args:
        position: Shape [..., 3].
        quaternion: Shape [..., 4].
    """
    w, x, y, z = np.moveaxis(quaternion, -1, 0)
    # of a cube about its centre, the lowest corner is below it by the half width times the 1-norm of the world's z in the body
    up = np.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1)
    return np.asarray(position[..., 2] - HALF_WIDTH * np.abs(up).sum(-1))


def errors(log: Trajectory, position: Array, quaternion: Array) -> tuple[Array, Array]:
    """Return the distance [m] and the angle [rad] of every predicted row to the recorded one, each shape [N].

    Args:
        log: The toss.
        position: Predicted, shape [N, 3].
        quaternion: Predicted, w-x-y-z, shape [N, 4]; either sign, any length.

    Raises:
        ValueError: if there is not one prediction a row.
    """
    truth = log.measurements
    if position.shape != (len(truth), 3) or quaternion.shape != (len(truth), 4):
        raise ValueError(f"{log.name}: expected predictions ({len(truth)}, 3) and ({len(truth)}, 4), received {position.shape} and "
                         f"{quaternion.shape}")
    a, b = (q / np.linalg.norm(q, axis=1, keepdims=True) for q in (quaternion, truth[:, 3:7]))
    b = np.where((a * b).sum(1, keepdims=True) < 0, -b, b)
    angle = 4 * np.arctan2(np.linalg.norm(a - b, axis=1), np.linalg.norm(a + b, axis=1))
    return np.linalg.norm(position - truth[:, :3], axis=1), angle


def score(logs: Sequence[Trajectory], predictions: Mapping[str, tuple[Array, Array]], name: str) -> list[Metric]:
    """Score full-length rollouts: mean over tosses of the mean over all rows, the first included, and medians at fixed rows.

    Args:
        logs: The tosses.
        predictions: Position and quaternion of every row, by the toss's name.
        name: Name of the model in the metrics.
    """
    found = [errors(log, *predictions[log.name]) for log in logs]
    metrics = []
    for k, (metric, unit) in enumerate((("position_m", "m"), ("rotation_rad", "rad"))):
        means = np.array([e[k].mean() for e in found])
        metrics.append(Metric(model=name, metric=metric, value=float(means.mean()), unit=unit, ci95=interval(means)))
        metrics.append(Metric(model=name, metric=f"median_{metric}", value=float(np.median(means)), unit=unit,
                              ci95=interval(means, np.median)))
        for h in HORIZONS:
            at = np.array([e[k][h] for e in found if h < len(e[k])])
            metrics.append(Metric(model=name, metric=f"median_{metric}", horizon=h, value=float(np.median(at)), unit=unit,
                                  ci95=interval(at, np.median)))
    return metrics


def _check(path: Path, d: Mapping[str, NDArray[np.float64]]) -> tuple[NDArray[np.int64], float]:
    """Return offsets and time step of a file whose arrays fit together."""
    offsets = d["offsets"].astype(np.int64)
    rows = {n: d[n].shape for n in WIDTHS}
    wrong = {n: s for n, s in rows.items() if s != (len(d["pos"]), WIDTHS[n])}
    if wrong:
        raise LogError(f"{path}: expected {len(d['pos'])} rows of {WIDTHS}, received {wrong}")
    if offsets.ndim != 1 or len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != len(d["pos"]) or (np.diff(offsets) < 2).any():
        raise LogError(f"{path}: offsets must rise from 0 to {len(d['pos'])} by at least two rows a toss")
    dt = float(d["dt"]) if d["dt"].size == 1 else float("nan")
    if not dt > 0:
        raise LogError(f"{path}: dt must be one positive number of seconds")
    return offsets, dt


def _trajectory(d: Mapping[str, NDArray[np.float64]], a: int, b: int, dt: float, toss: int) -> Trajectory:
    time = dt * np.arange(b - a, dtype=np.float64)
    return Trajectory(name=f"toss{toss}", command_time=time, commands=np.zeros((b - a, 0)), command_names=(), measurement_time=time,
                      measurements=np.concatenate([d[n][a:b] for n in WIDTHS], 1), measurement_names=COLUMNS, units=UNITS,
                      group=f"fold{toss % FOLDS}")
