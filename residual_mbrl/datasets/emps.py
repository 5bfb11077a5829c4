"""The electro-mechanical positioning system's estimation record (Janot, Gautier, Brunot, 2019), one file at 1 kHz."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from residual_mbrl.bootstrap import interval
from residual_mbrl.datasets.log_set import LogSet, Part, check_lengths, open_arrays, read_split
from residual_mbrl.errors import LogError
from residual_mbrl.metrics import Metric
from residual_mbrl.model import Model
from residual_mbrl.trajectories import Trajectory
from residual_mbrl.windows import cut_windows

Array = NDArray[np.float64]

WINDOW = 2000
WARM_UP = 250
"""Rows at the start from rest that no window of training begins in: the rig's first breakaway is unlike all later ones."""

BLOCKS = 3
"""Blocks of the training part, each a group of its own for cross-validation; the validation part is one more."""

STRIDE = 250


def read(folder: Path, parts: Sequence[Part]) -> LogSet:
    """Read parts of the record: command force [N]; measurements position [m] and speed [m/s] (smoothed central difference).

    Train and val are cut into blocks in time with windows starting every 250 rows; test windows start where the split says.

    Raises:
        LogError: naming the file and what is wrong with it.
    """
    path = folder / "emps.npz"
    d, split = _record(path), read_split(folder)
    logs: dict[Part, list[Trajectory]] = {}
    starts: dict[Part, list[list[int]]] = {}
    for part in parts:
        a, b = _rows(folder, split, part)
        if part == "test":
            logs[part], starts[part] = [_trajectory(d, a, b, part)], [[s - a for s in _starts(split, part)]]
            continue
        edges = np.linspace(a, b, (BLOCKS if part == "train" else 1) + 1).astype(int)
        logs[part] = [_trajectory(d, int(i), int(j), f"{part}{k}") for k, (i, j) in enumerate(zip(edges[:-1], edges[1:], strict=True))]
        starts[part] = [list(range(WARM_UP if i == 0 else 0, int(j - i) - WINDOW, STRIDE))
                        for i, j in zip(edges[:-1], edges[1:], strict=True)]
    begin, end = _rows(folder, split, "train")[0], _rows(folder, split, "val")[1]
    together = {"train", "val"} <= set(parts)
    return LogSet(logs=logs, starts=starts, files=[path], whole=[_trajectory(d, begin, end, "train+val")] if together else (),
                  whole_starts=[range(WARM_UP, end - begin - WINDOW, STRIDE)] if together else ())


def score(model: Model, folder: Path, part: Part, name: str) -> list[Metric]:
    """Score 2 s windows, and one open-loop simulation of the whole part from its first row; RMSE of position [mm].

    Args:
        model: The model.
        folder: Data folder.
        part: Part of the split.
        name: Name of the model in the metrics.
    """
    dt = model.dynamics.dt
    d, split = _record(folder / "emps.npz"), read_split(folder)
    a, b = _rows(folder, split, part)
    record = [_trajectory(d, a, b, part)]
    windows = cut_windows(record, dt, horizon=WINDOW - 1, starts=[[s - a for s in _starts(split, part)]])
    error = 1e3 * (model.predict(windows).measurements - windows.measurements)[..., 0].numpy()
    squares = (error**2).mean(-1)
    low, high = np.sqrt(interval(squares))
    whole = cut_windows(record, dt)
    open_loop = 1e3 * (model.predict(whole).measurements - whole.measurements)[..., 0].numpy()
    return [Metric(model=name, metric="rmse_windows_mm", value=float(np.sqrt(squares.mean())), unit="mm", horizon=WINDOW,
                   ci95=(float(low), float(high))),
            Metric(model=name, metric="rmse_open_loop_mm", value=float(np.sqrt((open_loop**2).mean())), unit="mm")]


def _record(path: Path) -> dict[str, Array]:
    d = open_arrays(path, ("t", "q", "force"))
    check_lengths(path, d)
    return d


def _rows(folder: Path, split: Mapping[str, object], part: Part) -> tuple[int, int]:
    rows = split.get(part)
    if not isinstance(rows, list) or len(rows) != 2:
        raise LogError(f"{folder / 'split.json'}: expected rows [start, stop) for part {part!r}, received {rows!r}")
    return int(rows[0]), int(rows[1])


def _starts(split: Mapping[str, object], part: Part) -> list[int]:
    starts = split.get(f"{part}_window_starts")
    if not isinstance(starts, list):
        raise LogError(f"split.json: no list {part}_window_starts")
    return [int(s) for s in starts]


def _trajectory(d: Mapping[str, Array], a: int, b: int, group: str) -> Trajectory:
    """Cut rows [a, b) out of the record; speeds are those that the metric starts from."""
    speed = np.gradient(np.convolve(d["q"], np.ones(11) / 11, "same"), d["t"])
    speed[0] = 0.0
    rows = slice(a, b)
    return Trajectory(name=f"emps[{a}:{b}]", command_time=d["t"][rows], commands=d["force"][rows, None], command_names=("force",),
                      measurement_time=d["t"][rows], measurements=np.stack([d["q"], speed], 1)[rows],
                      measurement_names=("position", "speed"), units={"force": "N", "position": "m", "speed": "m/s"}, group=group)
