"""Choosing a residual on data that neither identification nor fitting has seen, with every ablation beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.evaluation import Evaluation, evaluate
from residual_mbrl.fitting import FitOptions, fit
from residual_mbrl.identification import Identification, IdentifyOptions, free_parameters, identify
from residual_mbrl.model import Model
from residual_mbrl.observation import Prediction
from residual_mbrl.physics.free_body import FreeBody
from residual_mbrl.presets.preset import Candidates
from residual_mbrl.residuals import Feature, Residual, Unstructured
from residual_mbrl.sensors import Sensor
from residual_mbrl.windows import Windows

log = logging.getLogger(__name__)
Tell = Callable[[str, float], None]

NETWORK = FitOptions(method="adam", horizons=(5, 20), rounds=3, iterations=40, learning_rate=3e-3, ridge=0.0, parameters=False)
"""Training of the ablation without a baseline."""

NETWORK_HORIZON = 60
"""Longest windows [steps] that the ablation without a baseline is trained on."""


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Windows to learn from and windows held out.

    Args:
        name: Name of the fold, such as the group left out.
        train: What may be used.
        held: What may only be predicted.
    """

    name: str
    train: Windows
    held: Windows


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is fitted in every fold, and in the end on everything.

    Args:
        dynamics: Nominal baseline.
        sensor: Sensor whose disturbances are not estimated.
        disturbed: The same with disturbances free, for the models with a residual.
        candidates: Residuals to choose from.
        identify: Options of identification.
        fit: Options of fitting.
    """

    dynamics: ResidualDynamics
    sensor: Sensor
    disturbed: Sensor
    candidates: Candidates
    identify: IdentifyOptions
    fit: FitOptions

    def identified(self, train: Windows, checkpoint: Path | None = None, tell: Tell | None = None) -> Identification:
        """Identify the parameters of the baseline and the sensor."""
        return identify(self.dynamics, self.sensor, train, self.identify, checkpoint=checkpoint, progress=tell)

    def corrected(self, found: Model, residuals: Sequence[Residual], train: Windows, checkpoint: Path | None = None,
                  tell: Tell | None = None) -> Model:
        """Fit residuals, and with them disturbances, on an identified model."""
        free = [] if not self.fit.parameters else free_parameters(found.dynamics, self.sensor, self.identify.free)
        exogenous = [p for p in self.disturbed.parameters if p.free and not self.sensor.parameters[p.name].free]
        start = Model(dynamics=found.dynamics.with_residuals(residuals), sensor=self.sensor, sensor_values=found.sensor_values)
        options = replace(self.fit, parameters=bool(free or exogenous))
        return fit(start, train, options=options, free=[*free, *exogenous], checkpoint=checkpoint, progress=tell).model

    def model(self, found: Identification) -> Model:
        """Return an identified model with its sensor."""
        return Model(dynamics=found.dynamics, sensor=self.sensor, sensor_values=found.sensor_values)

    @property
    def disturbance(self) -> bool:
        """Whether there are disturbances to estimate."""
        return any(p.free and not self.sensor.parameters[p.name].free for p in self.disturbed.parameters)


@dataclass(frozen=True, kw_only=True)
class HeldOut(Model):
    """Predicts every window by the model of the fold that held it out; ``dynamics`` are those of the last fold."""

    members: tuple[tuple[Windows, Model], ...]

    def predict(self, windows: Windows) -> Prediction:
        """Predict the held-out windows of all folds, in the order of the folds; ``windows`` must be their concatenation."""
        parts = [model.predict(held) for held, model in self.members]
        return Prediction(*(torch.cat(x) for x in zip(*parts, strict=True)))


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Outcome of the choice.

    Args:
        chosen: Name of the best candidate.
        evaluation: Every model on the held-out windows.
        errors: Held-out mean absolute error of every candidate, of "identified" and, where there are disturbances, of
            "identified+disturbance", in the unit of the first column.
        order: Models shown in the evaluation.
    """

    chosen: str
    evaluation: Evaluation
    errors: Mapping[str, float]


def folds_by_group(windows: Windows) -> list[Fold]:
    """Leave out the windows of one group of logs at a time."""
    names = list(dict.fromkeys(windows.groups[i] for i in windows.log.tolist()))
    return [Fold(name=n, train=windows.of_groups([m for m in names if m != n]), held=windows.of_groups([n])) for n in names]


def select(recipe: Recipe, folds: Sequence[Fold], work: Path, tell: Tell) -> Selection:
    """Fit every candidate and every ablation in each fold, and choose the candidate that predicts held-out data best.

    Args:
        recipe: What to fit.
        folds: At least one.
        work: Folder for checkpoints; work that is in it already is not repeated.
        tell: Called with a phrase and the fraction done.
    """
    per_fold: dict[str, list[tuple[Windows, Model]]] = {}

    def keep(name: str, fold: Fold, model: Model) -> None:
        per_fold.setdefault(name, []).append((fold.held, model))

    stages = len(recipe.candidates) + 3
    for i, fold in enumerate(folds):
        def step(k: int, what: str, i: int = i, fold: Fold = fold) -> Tell:
            return lambda phrase, done: tell(f"{fold.name}: {what}, {phrase}", (i * stages + k + min(done, 1.0)) / (len(folds) * stages))

        slug = f"fold{i}"
        found = recipe.model(recipe.identified(fold.train, work / f"{slug}_identify.npz", step(0, "identifying")))
        nominal = Model(dynamics=recipe.dynamics, sensor=recipe.sensor)
        keep("nominal", fold, nominal)
        keep("identified", fold, found)
        if recipe.disturbance:
            search = replace(recipe.identify, candidates=1, starts=1)
            drifting = identify(found.dynamics, recipe.disturbed, fold.train, search, checkpoint=work / f"{slug}_disturbed.npz")
            keep("identified+disturbance", fold, recipe.model(drifting))
        for k, (name, residuals) in enumerate(recipe.candidates.items()):
            file = work / f"{slug}_candidate{k}.npz"
            keep(name, fold, recipe.corrected(found, residuals, fold.train, file, step(1 + k, name)))
        network = _network(recipe, found, fold.train, work / f"{slug}_network.npz", step(stages - 1, "network"))
        keep("network", fold, network)
    held = joined([f.held for f in folds])
    errors = {n: _mean_error(HeldOut(dynamics=m[-1][1].dynamics, sensor=recipe.sensor, members=tuple(m)), held)
              for n, m in per_fold.items() if n not in ("nominal", "network")}
    chosen = min(recipe.candidates, key=lambda n: errors[n])
    log.info("held-out errors %s; chosen: %s", errors, chosen)
    for i, fold in enumerate(folds):
        alone = Model(dynamics=recipe.dynamics, sensor=recipe.sensor)
        keep("residual", fold, recipe.corrected(alone, recipe.candidates[chosen], fold.train, work / f"fold{i}_alone.npz",
                                                lambda phrase, done: tell(f"residual alone, {phrase}", 1.0)))
    per_fold["identified+residual"] = per_fold.pop(chosen)
    shown = ["nominal", "identified", "identified+disturbance", "residual", "identified+residual", "network"]
    models = {n: HeldOut(dynamics=per_fold[n][-1][1].dynamics, sensor=recipe.sensor, sensor_values=per_fold[n][-1][1].sensor_values,
                         members=tuple(per_fold[n])) for n in shown if n in per_fold}
    return Selection(chosen=chosen, evaluation=evaluate(models, held, split="held-out"), errors=errors)


def joined(parts: Sequence[Windows]) -> Windows:
    """Concatenate windows cut from the same logs; horizons are cut to the shortest."""
    horizon = min(w.horizon for w in parts)
    cut = [w.first(horizon) for w in parts]
    names = list(dict.fromkeys(n for w in cut for n in w.names))
    groups = {n: g for w in cut for n, g in zip(w.names, w.groups, strict=True)}
    place = torch.cat([torch.tensor([names.index(w.names[i]) for i in w.log.tolist()]) for w in cut])
    stack = lambda field: torch.cat([getattr(w, field) for w in cut])  # noqa: E731
    return Windows(actions=stack("actions"), measurements=stack("measurements"), recorded=stack("recorded"), time=stack("time"),
                   log=place, start=stack("start"), names=tuple(names), groups=tuple(groups[n] for n in names), dt=cut[0].dt)


def _network(recipe: Recipe, found: Model, train: Windows, checkpoint: Path, tell: Tell) -> Model:
    """Train a network without a baseline: acceleration from state and action, bounded by three times what was seen."""
    space, dt = recipe.dynamics.space, recipe.dynamics.dt
    short = train.first(NETWORK_HORIZON) if train.horizon <= NETWORK_HORIZON else _chopped(train, found)
    states = found.predict(train).states
    v = states[..., space.nq : space.nq + space.nv]
    fastest = float(torch.nan_to_num((v[:, 1:] - v[:, :-1]) / dt).abs().max())
    features = [Feature(source="position", transform="sin"), Feature(source="position", transform="cos"), Feature(source="position"),
                Feature(source="velocity"), Feature(source="action")]
    sizes = [space.nq, space.nq, space.nq, space.nv, len(space.action)]
    network = Unstructured(nv=space.nv, features=features, sizes=sizes, bound=max(3 * fastest, 1e-6), hidden=(32, 32))
    alone = ResidualDynamics(FreeBody(space, dt=dt), [network])
    start = Model(dynamics=alone, sensor=recipe.sensor, sensor_values=found.sensor_values)
    return fit(start, short, options=replace(NETWORK, loss=recipe.fit.loss), checkpoint=checkpoint, progress=tell).model


def _chopped(train: Windows, found: Model) -> Windows:
    """Cut long windows into short ones that start where the identified model's sensor has samples."""
    starts = range(0, train.horizon - NETWORK_HORIZON + 1, NETWORK_HORIZON)
    pieces = [Windows(actions=train.actions[:, s : s + NETWORK_HORIZON], measurements=train.measurements[:, s : s + NETWORK_HORIZON + 1],
                      recorded=train.recorded[:, s : s + NETWORK_HORIZON + 1], time=train.time[:, s : s + NETWORK_HORIZON + 1],
                      log=train.log, start=train.start + s, names=train.names, groups=train.groups, dt=train.dt) for s in starts]
    short = joined(pieces)
    return short.take(short.recorded[:, 0].all(-1))


def _mean_error(model: Model, windows: Windows) -> float:
    """Mean absolute error of the fitted columns, each in its noise, averaged over logs as they come."""
    noise = torch.tensor(model.sensor.noise)
    counted = windows.recorded & torch.isfinite(noise)
    error = ((model.predict(windows).measurements - windows.measurements) / noise).abs()
    per_log = [float(error[rows][counted[rows]].mean()) for rows in (windows.log == i for i in windows.log.unique())]
    return float(np.mean(np.nan_to_num(per_log, nan=np.inf)))
