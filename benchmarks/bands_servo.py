"""Forecasts of the servo: an ensemble on an identified model, for held-out gains and for the test gain, by one procedure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from common import say
from numpy.typing import NDArray

from residual_mbrl.calibration import make_recipe
from residual_mbrl.datasets import bam
from residual_mbrl.datasets.log_set import Part
from residual_mbrl.fitting import FitOptions
from residual_mbrl.identification import IdentifyOptions
from residual_mbrl.model import Model
from residual_mbrl.presets import PRESETS
from residual_mbrl.residuals import Feature
from residual_mbrl.trajectories import Trajectory
from residual_mbrl.uncertainty.correction import CorrectionNoise
from residual_mbrl.uncertainty.ensembles import Ensemble, fit_ensemble
from residual_mbrl.uncertainty.likelihood import LikelihoodOptions, fit_noise, forecast, scales
from residual_mbrl.uncertainty.past_errors import Stream
from residual_mbrl.windows import cut_windows

Array = NDArray[np.float64]
DT, HORIZON, STRIDE, MEMBERS = 0.005, 50, 25, 5
AHEAD = 5
"""Steps between forecasts that follow a log; every fifth of them starts where a window of the fits does."""
IDENTIFY = IdentifyOptions(candidates=48, starts=1, iterations=15, every=4)
FIT = FitOptions(method="adam", rounds=1, iterations=60, learning_rate=0.02, ridge=0.05, every=5, parameters=False)
PAST = 11
"""Samples up to a row from which its rate is estimated; the rate that the servo reports is late by 20 ms."""
LEVEL, START, COLUMNS = (20.0,), (0.001, 0.1), (0.001, 0.1)
"""Where the density starts: acceleration [rad/s²], first angle [rad] and rate [rad/s], and the encoder's noise."""


@dataclass(frozen=True, kw_only=True)
class Forecasts:
    """Errors and scales of some windows, shapes [N, H + 1, 1], and their naive errors; log and first row of each, shape [N]."""

    error: Array
    scale: Array
    naive: Array
    log: NDArray[np.int64]
    start: NDArray[np.int64]

    def apart(self) -> Forecasts:
        """Return those that start ``STRIDE`` steps from each other."""
        rows = self.start % STRIDE == 0
        return Forecasts(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def streams(self, *, naive: bool = False) -> list[Stream]:
        """Return each log's forecasts in turn, with the scale half way as what is known before."""
        middle = self.scale[:, HORIZON // 2, :1].astype(float)
        error = np.abs(self.naive if naive else self.error).astype(float)
        return [Stream(error=error[rows], features=middle[rows], stride=AHEAD) for rows in (self.log == k for k in np.unique(self.log))]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """An ensemble with its density."""

    ensemble: Ensemble
    path: Model
    noise: CorrectionNoise


def learn(logs: Sequence[Trajectory], seed: int) -> Fitted:
    """Identify from nominal values on whole logs, train members on windows, and a density of the correction on their errors."""
    recipe = make_recipe(PRESETS["servo"], seed=seed)
    search = replace(recipe, identify=replace(IDENTIFY, seed=seed))
    found = search.model(search.identified(cut_windows(logs, DT)))
    windows = cut_windows(logs, DT, horizon=HORIZON, stride=STRIDE)
    start = replace(found, dynamics=found.dynamics.with_residuals(recipe.candidates["dry friction"]))
    ensemble = fit_ensemble(start, windows, members=MEMBERS, options=FIT, seed=seed)
    features = [Feature(source="rate", transform="abs"), Feature(source="motor_torque", transform="abs"), Feature(source="enabled"),
                Feature(source="rate", transform="slow", width=0.3)]
    noise = CorrectionNoise(space=recipe.sensor.space, features=features, level=LEVEL, start=START, columns=COLUMNS, persistence=0.9)
    ahead = forecast(ensemble, windows, found)
    history = fit_noise(noise, ahead, LikelihoodOptions(steps=(1, 2, 5, 10, 17, 25, 37, 50), iterations=120))
    say(f"  density: {history[0]:.3f} to {history[-1]:.3f} nat, persistence {float(noise.persistence.detach()):.2f}, start "
        f"{[round(x, 4) for x in noise.start.tolist()]}, columns {[round(x, 4) for x in noise.columns.tolist()]}")
    return Fitted(ensemble=ensemble, path=found, noise=noise)


def ahead(fitted: Fitted, logs: Sequence[Trajectory]) -> Forecasts:
    """Forecast windows of logs."""
    windows = cut_windows(logs, DT, horizon=HORIZON, stride=AHEAD)
    found = forecast(fitted.ensemble, windows, fitted.path)
    with torch.no_grad():
        scale = scales(fitted.noise, found)
    angle = windows.measurements[..., :1]
    return Forecasts(error=found.error[..., :1].numpy(), scale=scale[..., :1].numpy(), naive=(angle - angle[:, :1]).numpy(),
                     log=windows.log.numpy(), start=windows.start.numpy())


def with_past_rates(log: Trajectory) -> Trajectory:
    """Return the log with each rate the end slope of a quadratic through the angles of this row and those before (a line at first)."""
    q, dt = log.measurements[:, 0], float(np.median(np.diff(log.measurement_time)))
    rate = log.measurements[:, 1].copy()
    for n, rows in ((4, range(3, PAST - 1)), (PAST, range(PAST - 1, len(q)))):
        back = np.arange(1 - n, 1) * dt
        slope = np.linalg.pinv(back[:, None] ** np.arange(2 if n < PAST else 3))[1]
        for i in rows:
            rate[i] = slope @ q[i - n + 1 : i + 1]
    return replace(log, measurements=np.stack([q, rate], 1))


def read(folder: Path, *parts: Part) -> list[Trajectory]:
    """Return the logs of these parts, with rates from past angles."""
    found = bam.read(folder, parts).logs
    return [with_past_rates(log) for p in parts for log in found[p]]


def held_out(folder: Path, seed: int) -> tuple[list[str], dict[str, Forecasts]]:
    """Forecast the logs of each gain by what was learned on the others, train and validation parts; test is not read."""
    known = read(folder, "train", "val")
    groups = sorted({t.group for t in known})
    found = {}
    for g in groups:
        say(f"servo: held out {g}")
        found[g] = ahead(learn([t for t in known if t.group != g], seed), [t for t in known if t.group == g])
    return groups, found


def test_forecasts(folder: Path, seed: int) -> Forecasts:
    """Learn on train and validation logs; read the test logs and forecast them."""
    say("servo: all known gains")
    return ahead(learn(read(folder, "train", "val"), seed), read(folder, "test"))
