"""Servo logs in the form of Rhoban's BAM, resampled to 5 ms (Duclusaud et al., ICRA 2025, arXiv 2410.08650)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from residual_mbrl.bootstrap import interval
from residual_mbrl.datasets.log_set import LogSet, Part, check_lengths, open_arrays, read_split
from residual_mbrl.errors import LogError
from residual_mbrl.metrics import Metric
from residual_mbrl.model import Model
from residual_mbrl.trajectories import Trajectory
from residual_mbrl.windows import cut_windows

ARRAYS = ("t", "q", "dq", "q_goal", "torque_on", "kp")


def read_log(path: Path) -> Trajectory:
    """Read one log: commands goal [rad], enabled [1], gain [counts]; measurements q [rad], dq [rad/s]; grouped by gain.

    Raises:
        LogError: naming the file and what is wrong with it.
    """
    d = open_arrays(path, ARRAYS)
    gain = np.broadcast_to(d["kp"], d["t"].shape) if d["kp"].size == 1 else d["kp"]
    check_lengths(path, {**d, "kp": gain})
    flat = {n: a.shape for n, a in {**d, "kp": gain}.items() if a.ndim != 1}
    if flat:
        raise LogError(f"{path}: expected one number a row, received {flat}")
    return Trajectory(name=path.stem, command_time=d["t"], commands=_columns(d["q_goal"], d["torque_on"], gain),
                      command_names=("goal", "enabled", "gain"), measurement_time=d["t"], measurements=_columns(d["q"], d["dq"]),
                      measurement_names=("q", "dq"), units={"goal": "rad", "q": "rad", "dq": "rad/s", "gain": "counts"},
                      group=f"kp{float(d['kp'].flat[0]):g}")


def read(folder: Path, parts: Sequence[Part]) -> LogSet:
    """Read the logs of some parts of a folder's split; without a split.json, the logs of one gain are held out.

    Raises:
        LogError: if there is no log, or one is wrong.
    """
    if (folder / "split.json").is_file():
        split = read_split(folder)
        names = {p: [str(n) for n in split.get(p, [])] for p in parts}  # type: ignore[attr-defined]
    else:
        found = [p.stem for p in sorted(folder.glob("*.npz"))]
        names = {p: found if p == "train" else [] for p in parts}
    files = [folder / f"{n}.npz" for p in parts for n in names[p]]
    if not files:
        raise LogError(f"{folder}: no logs (*.npz) of {' or '.join(parts)}")
    logs = {p: [read_log(folder / f"{n}.npz") for n in names[p]] for p in parts}
    return LogSet(logs=logs, starts={}, files=files)


def score(model: Model, folder: Path, part: Part, name: str) -> list[Metric]:
    """Score closed-loop simulations of whole logs from their first row: mean over logs of the mean |q error| [rad].

    Args:
        model: The model.
        folder: Data folder.
        part: Part of the split.
        name: Name of the model in the metrics.
    """
    logs = read(folder, [part]).logs[part]
    windows = cut_windows(logs, model.dynamics.dt)
    error = (model.predict(windows).measurements - windows.measurements)[..., 0].abs() * windows.recorded[..., 0]
    per_log = (error.sum(-1) / windows.recorded[..., 0].sum(-1)).numpy()
    return [Metric(model=name, metric="mae_rad", value=float(per_log.mean()), unit="rad", ci95=interval(per_log)),
            *(Metric(model=name, metric=f"mae_rad[{n}]", value=float(e), unit="rad") for n, e in zip(windows.names, per_log, strict=True))]


def _columns(*columns: np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(c, dtype=np.float64) for c in columns], 1)
