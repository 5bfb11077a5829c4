"""Forecasts of the 45 g quadrotor as streams: of each type of trajectory by a model that never saw it, and of others by the stored one.

Held-out types say how large errors are where a trajectory is unknown, which is what the test flights are; the design is the stored
model's, fitted anew on the other two types. Errors are sizes: of a vector, or the angle of a rotation, as the benchmark's metric has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nanodrone as benchmark
import numpy as np
import torch
from common import say
from nanodrone_model import Design, balanced_values, build, correct, rows_of, windows_of
from numpy.typing import NDArray

from residual_mbrl.datasets import nanodrone
from residual_mbrl.datasets.nanodrone import HORIZON, TYPES, Prediction
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.horizon_fitting import predict
from residual_mbrl.trajectories import Trajectory
from residual_mbrl.uncertainty.past_errors import Stream

Array = NDArray[np.float64]
STRIDE = 5
RECENT = 1
"""Place, among the lengths of the context's means, of ten rows."""
LEAST = (0.05, 0.1, 0.003)
"""Added to the features: tilt [rad], missing acceleration [m/s²], change of a motor's speed in a step [krad/s]."""


@dataclass(frozen=True, kw_only=True)
class Flights:
    """Streams of flights, the model's and those of a state that stays, by type."""

    model: dict[str, list[Stream]]
    naive: dict[str, list[Stream]]


def known_types(folder: Path) -> Flights:
    """Forecast all train and validation flights, each type by a model of the other two."""
    logs, design = benchmark.read(folder, ("train", "val"), "filtered"), benchmark.stored()[3]
    found = Flights(model={}, naive={})
    for kind in TYPES:
        say(f"nanodrone: held out {kind}")
        train = [x for x in logs if x.group != kind]
        balanced = ResidualDynamics(build(), (), balanced_values(build(), train))
        _add(found, kind, [x for x in logs if x.group == kind], correct(train, balanced, design), balanced, design)
    return found


def stored_forecasts(folder: Path, part: nanodrone.Part) -> Flights:
    """Forecast the flights of a part, which the stored model was not fitted on, by the stored model."""
    balanced, _, corrected, design = benchmark.stored()
    found = Flights(model={}, naive={})
    _add(found, part, benchmark.read(folder, (part,), "filtered"), corrected, balanced, design)
    return found


def _add(found: Flights, kind: str, logs: list[Trajectory], dynamics: ResidualDynamics, balanced: ResidualDynamics, design: Design) -> None:
    found.model[kind], found.naive[kind] = map(list, zip(*(streams(x, dynamics, balanced, design) for x in logs), strict=True))


def streams(log: Trajectory, dynamics: ResidualDynamics, balanced: ResidualDynamics, design: Design) -> tuple[Stream, Stream]:
    """Return the errors of every ``STRIDE``-th row's forecast, of the model and of a state that stays, with what is known before."""
    windows, found = windows_of([log], balanced, design, stride=1, skip=0), []
    with torch.no_grad():
        for i in range(0, len(windows), 1024):
            found.append(predict(dynamics, windows.take(slice(i, i + 1024)))[..., :13].double().numpy())
    said, rows = np.concatenate(found), slice(0, None, STRIDE)
    x, y = said[rows, :, 4], said[rows, :, 5]
    tilt = np.arccos(np.clip(1 - 2 * (x * x + y * y), -1, 1))
    means = windows.context[rows, : 12 * len(design.lengths)].reshape(len(x), len(design.lengths), 12).numpy()
    missing = np.linalg.norm(means[:, RECENT, 6:9], axis=-1)
    commands = rows_of(log)[1].unfold(0, HORIZON, 1)[: len(said)][rows].numpy()
    changes = np.sqrt(np.square(np.diff(commands, axis=-1)).mean((1, 2)))
    features = np.stack([np.sqrt(np.square(tilt).mean(1)), missing, changes], -1) + np.array(LEAST)
    both = (nanodrone.errors(log, Prediction.of_states(said)), nanodrone.errors(log, nanodrone.naive(log)))
    model, naive = (Stream(error=np.pad(e[rows], ((0, 0), (1, 0), (0, 0))), features=features, stride=STRIDE) for e in both)
    return model, naive
