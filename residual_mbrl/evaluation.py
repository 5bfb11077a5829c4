"""How well models predict logs: errors over horizon and per log, with intervals over logs and paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from residual_mbrl.bootstrap import Array, Band, band, divide, draw, fraction_better, hidden_if_single, mean_band, per_unit, ratio
from residual_mbrl.errors import ModelError
from residual_mbrl.examination import Examination, examine
from residual_mbrl.metrics import Metric
from residual_mbrl.model import Model
from residual_mbrl.windows import Windows

CURVE_POINTS = 150
HORIZONS = (1, 10, 100, 1000)


@dataclass(frozen=True, kw_only=True)
class Score:
    """How one model did.

    Args:
        predicted: Predicted columns, shape [B, H + 1, ny].
        error: Absolute error, shape [B, H + 1, ny]; NaN where nothing was recorded, infinite where the prediction diverged.
        over_horizon: Mean error over windows at each of ``Evaluation.steps``, shape [K, ny].
        log_mae: Mean absolute error of each log, shape [L, ny].
        log_rmse: Root mean squared error of each log, shape [L, ny].
        mae: Mean absolute error over all samples, shape [ny].
        rmse: Root mean squared error over all samples, shape [ny].
        diverged: Whether each window's prediction became non-finite within its log, shape [B].
        examination: Forces, energy and certificates along the predictions.
    """

    predicted: Array
    error: Array
    over_horizon: Band
    log_mae: Array
    log_rmse: Array
    mae: Band
    rmse: Band
    diverged: NDArray[np.bool_]
    examination: Examination


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Difference between two models on the same samples, resampled together.

    Args:
        reference: The model compared against.
        model: The other one.
        difference: Mean absolute error of ``model`` minus that of ``reference``, shape [ny]; negative is better.
        better: Fraction of units (logs, or windows of a single log) on which ``model`` errs less, shape [ny].
        worse: Fraction on which it errs more, shape [ny].
    """

    reference: str
    model: str
    difference: Band
    better: Array
    worse: Array

    def turned(self) -> Paired:
        """Return the same comparison with the roles exchanged."""
        d = self.difference
        return Paired(reference=self.model, model=self.reference, difference=Band(-d.value, -d.upper, -d.lower),
                      better=self.worse, worse=self.better)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How models did on the same windows.

    Args:
        split: Name of the data, such as "test".
        scores: Score of each model.
        pairs: Every pair of models, the earlier one as reference.
        columns: Names of the columns evaluated.
        units: Their units.
        logs: Names of the logs that have windows.
        log: Place of each window's log in ``logs``, shape [B].
        time: Time of every sample since its log's zero [s], shape [B, H + 1].
        measured: Measured columns, shape [B, H + 1, ny]; NaN where not recorded.
        steps: Horizons of ``Score.over_horizon`` [steps], shape [K].
        horizons: The horizons that become metrics [steps].
        dt: Seconds per step.
        unit_name: What the bootstrap drew: "log" or "window".
        unit_count: How many of them there are.
        resamples: Bootstrap resamples.
        seed: Seed of the resamples.
    """

    split: str
    scores: Mapping[str, Score]
    pairs: tuple[Paired, ...]
    columns: tuple[str, ...]
    units: tuple[str, ...]
    logs: tuple[str, ...]
    log: NDArray[np.int64]
    time: Array
    measured: Array
    steps: NDArray[np.int64]
    horizons: tuple[int, ...]
    dt: float
    unit_name: str
    unit_count: int
    resamples: int
    seed: int

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models, in the order given."""
        return tuple(self.scores)

    def column(self, name: str | None) -> int:
        """Return the place of a column, the first one for None.

        Raises:
            ValueError: if there is no such column.
        """
        if name is not None and name not in self.columns:
            raise ValueError(f"no column {name!r} was evaluated; there are {list(self.columns)}")
        return 0 if name is None else self.columns.index(name)

    def pair(self, reference: str, model: str) -> Paired:
        """Return a paired difference, turned round where it was computed the other way.

        Raises:
            ValueError: if either model was not evaluated.
        """
        for p in self.pairs:
            if (p.reference, p.model) == (reference, model):
                return p
            if (p.model, p.reference) == (reference, model):
                return p.turned()
        raise ValueError(f"no pair {reference!r}, {model!r}; the models are {list(self.models)}")

    def metrics(self) -> list[Metric]:
        """Return the numbers as metrics: mae_*, rmse_*, error_* over horizon, differences, shares and energies."""
        out: list[Metric] = []
        for name, score in self.scores.items():
            for c, (column, unit) in enumerate(zip(self.columns, self.units, strict=True)):
                out += [_metric(name, f"mae_{column}", unit, score.mae, c), _metric(name, f"rmse_{column}", unit, score.rmse, c)]
                out += [_metric(name, f"error_{column}", unit, score.over_horizon, (int(np.searchsorted(self.steps, h)), c), horizon=h)
                        for h in self.horizons]
            energy = score.examination.energy
            plain = [("residual_force_share", score.examination.force_share, "1"), ("diverged_windows", score.diverged.sum(), "1"),
                     ("stored_energy_change", energy.stored.mean(), "J"), ("dissipated_energy", energy.dissipated.mean(), "J"),
                     ("residual_work", energy.residual_work.mean(), "J")]
            out += [Metric(model=name, metric=m, value=float(x), unit=u) for m, x, u in plain if not np.isnan(x)]
        for p in self.pairs:
            out += [_metric(p.model, f"mae_{column}_minus_{p.reference}", unit, p.difference, c)
                    for c, (column, unit) in enumerate(zip(self.columns, self.units, strict=True))]
        return out


def evaluate(models: Mapping[str, Model], windows: Windows, *, columns: Sequence[str] | None = None,
             horizons: Sequence[int] | None = None, split: str = "test", skip: int = 1, resamples: int = 2000, seed: int = 0) -> Evaluation:
    """Score models on windows of logs, each window simulated from its own first recorded sample.

    Errors are absolute differences of recorded samples; padded and unrecorded ones do not count. Intervals are 95 %
    percentile bootstrap over logs, or over windows where there is one log (then they hold only as far as its windows are
    independent: cut them without overlap). A prediction that is not finite has infinite error and is counted as diverged.

    Args:
        models: Models by name: "nominal", "identified", "residual", "identified+residual", "network", ... The order is
            that of tables and figures.
        windows: The data; whole logs or windows.
        columns: Measured columns to score; where None, all whose noise is finite.
        horizons: Steps ahead that become metrics; 1, 10, 100, 1000 and the whole window where None.
        split: Name of the data.
        skip: Samples at the start of each window that are not scored, since the models are given them; 0 scores them, as
            some published protocols do.
        resamples: Bootstrap resamples.
        seed: Seed of the resamples.

    Raises:
        ModelError: if a model's rate or columns do not fit the windows.
        ValueError: if there are no models or windows, or a horizon or column does not exist.
    """
    chosen, names, units = _columns(models, windows, columns)
    horizon = windows.horizon
    reported = tuple(sorted({*(h for h in HORIZONS if h < horizon), horizon})) if horizons is None else tuple(sorted(set(horizons)))
    if any(not 1 <= h <= horizon for h in reported) or not 0 <= skip <= horizon:
        raise ValueError(f"evaluate: horizons must lie in [1, {horizon}] and skip in [0, {horizon}], received {list(reported)}, {skip}")
    steps = np.unique([*np.linspace(1, horizon, min(horizon, CURVE_POINTS)).astype(int), *reported])
    with_windows = sorted(set(windows.log.tolist()))
    log = np.searchsorted(with_windows, windows.log.cpu().numpy())
    by_log = len(with_windows) > 1
    unit = log if by_log else np.arange(len(log))
    count = int(unit.max()) + 1
    recorded = windows.recorded[..., chosen].cpu().numpy()
    measured = np.where(recorded, _array(windows.measurements[..., chosen]), np.nan)
    data = _Data(windows=windows, chosen=chosen, measured=measured, scored=recorded & (np.arange(horizon + 1) >= skip)[:, None],
                 log=log, logs=len(with_windows), unit=unit, units=count, draws=draw(count, resamples=resamples, seed=seed), steps=steps)
    scored = {name: _score(model, data) for name, model in models.items()}
    pairs = tuple(_paired(a, b, scored[a], scored[b]) for a, b in combinations(scored, 2))
    return Evaluation(split=split, scores={n: s.score for n, s in scored.items()}, pairs=pairs, columns=names, units=units,
                      logs=tuple(windows.names[i] for i in with_windows), log=log, time=_array(windows.time), measured=measured,
                      steps=steps, horizons=reported, dt=windows.dt, unit_name="log" if by_log else "window", unit_count=count,
                      resamples=resamples, seed=seed)


class _Data(NamedTuple):
    """What all models are scored on; shapes as in ``Evaluation``."""

    windows: Windows
    chosen: list[int]
    measured: Array
    scored: NDArray[np.bool_]
    log: NDArray[np.int64]
    logs: int
    unit: NDArray[np.int64]
    units: int
    draws: Array
    steps: NDArray[np.int64]


class _Scored(NamedTuple):
    """A score with what paired differences need: resampled errors [resamples, ny] and each unit's error [units, ny]."""

    score: Score
    drawn: Array
    unit_mae: Array


def _score(model: Model, data: _Data) -> _Scored:
    prediction = model.predict(data.windows)
    predicted = _array(prediction.measurements[..., data.chosen])
    error = np.abs(np.where(np.isfinite(predicted), predicted, np.inf) - np.nan_to_num(data.measured))
    error = np.where(data.scored, error, np.nan)
    sums, counts = per_unit(error, data.unit, data.units)
    squares, _ = per_unit(error**2, data.unit, data.units)
    log_sums, log_counts = per_unit(error, data.log, data.logs)
    log_squares, _ = per_unit(error**2, data.log, data.logs)
    total, number = sums.sum(1), counts.sum(1)
    mean_square = mean_band(squares.sum(1), number, data.draws)
    score = Score(
        predicted=predicted, error=error, over_horizon=mean_band(sums[:, data.steps], counts[:, data.steps], data.draws),
        log_mae=divide(log_sums.sum(1), log_counts.sum(1)), log_rmse=np.sqrt(divide(log_squares.sum(1), log_counts.sum(1))),
        mae=mean_band(total, number, data.draws), rmse=Band(*(np.sqrt(x) for x in mean_square)),
        diverged=np.asarray(np.isinf(error).any((1, 2))),
        examination=examine(model.parts(data.windows), prediction, _length(data.windows.recorded)))
    return _Scored(score, hidden_if_single(ratio(total, number, data.draws), data.units), divide(total, number))


def _paired(reference: str, model: str, a: _Scored, b: _Scored) -> Paired:
    with np.errstate(invalid="ignore"):  # where both diverged the difference is unknown
        difference = band(b.score.mae.value - a.score.mae.value, b.drawn - a.drawn)
    return Paired(reference=reference, model=model, difference=difference, better=fraction_better(a.unit_mae, b.unit_mae),
                  worse=fraction_better(b.unit_mae, a.unit_mae))


def _columns(models: Mapping[str, Model], windows: Windows,
             columns: Sequence[str] | None) -> tuple[list[int], tuple[str, ...], tuple[str, ...]]:
    """Return places, names and units of the columns to score, checked against every model."""
    if not models or not len(windows):
        raise ValueError(f"evaluate: expected at least one model and one window, received {len(models)}, {len(windows)}")
    first = next(iter(models.values())).sensor
    names = [c.name for c in first.columns]
    for model_name, model in models.items():
        if [c.name for c in model.sensor.columns] != names or len(names) != windows.measurements.shape[-1]:
            raise ModelError(f"evaluate: model {model_name!r} predicts {[c.name for c in model.sensor.columns]}, expected {names} "
                             f"and the logs' {windows.measurements.shape[-1]} columns")
        if abs(windows.dt / model.dynamics.dt - 1) > 1e-6:
            raise ModelError(f"evaluate: model {model_name!r} steps {model.dynamics.dt:g} s, the windows {windows.dt:g} s")
    missing = [c for c in columns or () if c not in names]
    if missing:
        raise ValueError(f"evaluate: no columns {missing}; there are {names}")
    given = [c.name for c in first.columns if math.isfinite(c.noise)] if columns is None else columns
    chosen = [names.index(c) for c in given]
    units = tuple(first.unit(i) for i in chosen)
    return chosen, tuple(names[i] for i in chosen), units


def _length(recorded: torch.Tensor) -> torch.Tensor:
    """Return the last recorded step of each window, shape [B]."""
    some = recorded.any(-1)
    return (some * torch.arange(some.shape[1], device=some.device)).amax(1)


def _array(x: torch.Tensor) -> Array:
    return np.asarray(x.double().cpu().numpy())


def _metric(model: str, name: str, unit: str, numbers: Band, place: int | tuple[int, int], *,
            horizon: int | None = None) -> Metric:
    lower, upper = float(numbers.lower[place]), float(numbers.upper[place])
    return Metric(model=model, metric=name, value=float(numbers.value[place]), unit=unit, horizon=horizon,
                  ci95=None if np.isnan(lower) else (lower, upper))
