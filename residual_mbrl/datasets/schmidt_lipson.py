"""Motion-tracked pendulum and double pendulum (Schmidt & Lipson, Science 324, 2009, supplementary data)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.bootstrap import interval
from residual_mbrl.datasets.log_set import LogSet, Part, check_lengths, open_arrays, read_split
from residual_mbrl.errors import LogError
from residual_mbrl.metrics import Metric
from residual_mbrl.model import Model
from residual_mbrl.trajectories import Trajectory
from residual_mbrl.windows import Windows, cut_windows

Array = NDArray[np.float64]

SINGLE_STEP = 1 / 6
"""Step of the single pendulum's time axis, in the file's own unit (not seconds)."""

DOUBLE_STEP = 0.01
HORIZONS = (5, 10, 25)


def read_single(folder: Path, parts: Sequence[Part]) -> LogSet:
    """Read the single pendulum: theta [rad], omega [rad per unit of time]; a window starts at every pair of the part.

    Raises:
        LogError: naming the file and what is wrong with it.
    """
    path = folder / "real_pend_h_1.npz"
    d, pairs = open_arrays(path, ("t", "theta", "omega")), _section(folder, "single")
    check_lengths(path, d)
    grid = np.rint((d["t"] - d["t"][0]) / SINGLE_STEP).astype(int)
    logs: dict[Part, list[Trajectory]] = {}
    starts: dict[Part, list[list[int]]] = {}
    for part in parts:
        rows = _runs(np.asarray(_entry(folder, pairs, part), dtype=int))
        logs[part] = [_trajectory(f"pendulum[{a}:{b + 1}]", grid[a : b + 2] * SINGLE_STEP, _stack(d, ("theta", "omega"), a, b + 2),
                                  ("theta", "omega"), ("torque",), "", f"{part}{k}") for k, (a, b) in enumerate(rows)]
        starts[part] = [[int(grid[i] - grid[a]) for i in range(a, b + 1)] for a, b in rows]
    return LogSet(logs=logs, starts=starts, files=[path])


def read_double(folder: Path, parts: Sequence[Part]) -> LogSet:
    """Read the double pendulum: theta [rad], omega [rad/s], alpha [rad/s²] of both links, on the 10 ms grid with its gaps.

    Windows start at every fifth recorded row that has 0.25 s left, as the metric's rollouts do.

    Raises:
        LogError: naming the file and what is wrong with it.
    """
    path = folder / "real_double_pend_h_1.npz"
    d, split = open_arrays(path, ("t", "theta", "omega", "alpha")), _section(folder, "double")
    check_lengths(path, d)
    stride, steps = (int(_entry(folder, split, n)) for n in ("rollout_stride", "rollout_steps"))
    names = ("theta1", "theta2", "omega1", "omega2", "alpha1", "alpha2")
    logs: dict[Part, list[Trajectory]] = {}
    starts: dict[Part, list[list[int]]] = {}
    for part in parts:
        a, b = (int(x) for x in _entry(folder, split, part))
        grid = np.rint((d["t"][a:b] - d["t"][a]) / DOUBLE_STEP).astype(int)
        values = np.concatenate([d[n][a:b] for n in ("theta", "omega", "alpha")], 1)
        logs[part] = [_trajectory(f"double_pendulum[{a}:{b}]", grid * DOUBLE_STEP, values, names, ("torque1", "torque2"), "rad/s", part)]
        starts[part] = [[int(grid[i]) for i in range(0, b - a, stride) if grid[i] + steps <= grid[-1]]]
    return LogSet(logs=logs, starts=starts, files=[path])


def score_single(model: Model, folder: Path, part: Part, name: str) -> list[Metric]:
    """Score the mean squared error of the differences (x[k+1] - x[k]) / (t[k+1] - t[k]), and of the energy of one long rollout.

    The energy is 2.4 (1 - cos θ) + ω² with the logged ω, simulated from the part's first row to its last, as Greydanus et al.
    (Hamiltonian neural networks, NeurIPS 2019) define it for this pendulum.

    Args:
        model: The model.
        folder: Data folder.
        part: Part of the split.
        name: Name of the model in the metrics.
    """
    data = read_single(folder, [part])
    dt = model.dynamics.dt
    gaps = max(int(np.rint(np.diff(log.measurement_time).max() / dt)) for log in data.logs[part])
    windows = cut_windows(data.logs[part], dt, horizon=gaps, starts=data.starts[part])
    steps = windows.recorded[:, 1:, 0].to(torch.int8).argmax(1)
    rows = torch.arange(len(windows))
    seconds = dt * (steps + 1).to(windows.time).unsqueeze(-1)
    predicted = model.predict(windows).measurements
    error = ((predicted - windows.measurements)[rows, steps + 1] - (predicted - windows.measurements)[:, 0]) / seconds
    whole = cut_windows(data.logs[part][:1], dt)
    gap = (_energy(model.predict(whole).measurements) - _energy(whole.measurements))[whole.recorded[..., 0]]
    squares = error.square().mean(-1).numpy()
    low, high = interval(squares)
    return [Metric(model=name, metric="mse_dxdt", value=float(squares.mean()), unit="1", ci95=(low, high)),
            Metric(model=name, metric="mse_energy", value=float(gap.square().mean()), unit="1")]


def score_double(model: Model, folder: Path, part: Part, name: str) -> list[Metric]:
    """Score rollouts from recorded rows, median of the mean angle error of both links [rad], and R² of the accelerations.

    Accelerations are predicted from a row's (theta, omega) alone, through the sensor model.

    Args:
        model: The model.
        folder: Data folder.
        part: Part of the split.
        name: Name of the model in the metrics.
    """
    data = read_double(folder, [part])
    dt = model.dynamics.dt
    windows = cut_windows(data.logs[part], dt, horizon=HORIZONS[-1], starts=data.starts[part])
    difference = (model.predict(windows).measurements - windows.measurements)[..., :2]
    error = ((difference + torch.pi) % (2 * torch.pi) - torch.pi).abs().mean(-1).numpy()
    metrics = []
    for h in HORIZONS:
        e = error[windows.recorded[:, h, 0].numpy(), h]
        low, high = interval(e, np.median)
        metrics.append(Metric(model=name, metric="angle_median_rad", horizon=h, value=float(np.median(e)), unit="rad", ci95=(low, high)))
        metrics.append(Metric(model=name, metric="angle_mean_rad", horizon=h, value=float(e.mean()), unit="rad"))
    return metrics + _acceleration_r2(model, data.logs[part], name)


def _energy(x: Tensor) -> Tensor:
    return 2.4 * (1 - torch.cos(x[..., 0])) + x[..., 1] ** 2


def _acceleration_r2(model: Model, logs: Sequence[Trajectory], name: str) -> list[Metric]:
    dt = model.dynamics.dt
    starts = [[int(k) for k in np.rint((log.measurement_time - log.measurement_time[0]) / dt)] for log in logs]
    rows: Windows = cut_windows(logs, dt, horizon=1, starts=starts)
    predicted, measured = model.predict(rows).measurements[:, 0, 4:6], rows.measurements[:, 0, 4:6]
    r2 = 1 - (predicted - measured).square().sum(0) / (measured - measured.mean(0)).square().sum(0)
    return [Metric(model=name, metric=f"acceleration_r2_link{i + 1}", value=float(x), unit="1") for i, x in enumerate(r2)]


def _section(folder: Path, name: str) -> Mapping[str, Any]:
    section = read_split(folder).get(name)
    if not isinstance(section, dict):
        raise LogError(f"{folder / 'split.json'}: expected an object {name!r}")
    return section


def _entry(folder: Path, section: Mapping[str, Any], name: str) -> Any:
    entry = section.get(name)
    if not entry:
        raise LogError(f"{folder / 'split.json'}: nothing for {name!r}; there are {sorted(section)}")
    return entry


def _runs(rows: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return first and last of every run of consecutive numbers."""
    breaks = np.flatnonzero(np.diff(rows) != 1)
    return [(int(r[0]), int(r[-1])) for r in np.split(rows, breaks + 1)]


def _stack(d: Mapping[str, Array], names: Sequence[str], a: int, b: int) -> Array:
    return np.stack([d[n][a:b] for n in names], 1).astype(np.float64)


def _trajectory(name: str, time: Array, values: Array, columns: tuple[str, ...], commands: tuple[str, ...], rate: str,
                group: str) -> Trajectory:
    units = {c: "rad" if c.startswith("theta") else rate if c.startswith("omega") else f"{rate}²" for c in columns if rate or c == "theta"}
    return Trajectory(name=name, command_time=time, commands=np.zeros((len(time), len(commands))), command_names=commands,
                      measurement_time=time, measurements=values, measurement_names=columns, units=units, group=group)
