"""Fitting every model of one fold: identified, with each candidate residual, and the ablations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.fitting import FitOptions, fit
from residual_mbrl.identification import Identification, IdentifyOptions, free_parameters, identify
from residual_mbrl.model import Model
from residual_mbrl.physics.free_body import FreeBody
from residual_mbrl.presets.preset import Candidates
from residual_mbrl.residuals import Feature, Residual, Unstructured
from residual_mbrl.sensors import Sensor
from residual_mbrl.windows import Windows, joined

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

    def drifting(self, found: Model, train: Windows, checkpoint: Path | None = None) -> Model:
        """Identify disturbances with the parameters, from an identified model, without a residual."""
        search = replace(self.identify, candidates=1, starts=1)
        return self.model(identify(found.dynamics, self.disturbed, train, search, checkpoint=checkpoint))

    @property
    def disturbance(self) -> bool:
        """Whether there are disturbances to estimate."""
        return any(p.free and not self.sensor.parameters[p.name].free for p in self.disturbed.parameters)


def fit_fold(recipe: Recipe, fold: Fold, work: Path, slug: str, tell: Tell | None = None) -> dict[str, Model]:
    """Fit all models of one fold on its training windows.

    Args:
        recipe: What to fit.
        fold: Its windows.
        work: Folder of checkpoints.
        slug: Prefix of their names.
        tell: Called with a phrase and the fraction of the fold that is done.

    Returns:
        "nominal", "identified", "identified+disturbance" where there are disturbances, "network", and by candidate name
        the identified model with that residual.
    """
    stages = 2 + len(recipe.candidates)

    def stage(k: int, what: str) -> Tell:
        return lambda phrase, done: tell(f"{fold.name}: {what}, {phrase}", (k + min(done, 1.0)) / stages) if tell is not None else None

    nominal = Model(dynamics=recipe.dynamics, sensor=recipe.sensor)
    found = recipe.model(recipe.identified(fold.train, work / f"{slug}_identify.npz", stage(0, "identifying")))
    models = {"nominal": nominal, "identified": found}
    if recipe.disturbance:
        models["identified+disturbance"] = recipe.drifting(found, fold.train, work / f"{slug}_disturbed.npz")
    for k, (name, residuals) in enumerate(recipe.candidates.items()):
        models[name] = recipe.corrected(found, residuals, fold.train, work / f"{slug}_candidate{k}.npz", stage(1 + k, name))
    models["network"] = without_baseline(recipe, found, fold.train, work / f"{slug}_network.npz", stage(stages - 1, "network"))
    return models


def fit_alone(recipe: Recipe, fold: Fold, work: Path, slug: str, tell: Tell | None = None, *, chosen: str) -> Model:
    """Fit the chosen residual on the nominal model: the ablation "residual without identification"."""
    nominal = Model(dynamics=recipe.dynamics, sensor=recipe.sensor)
    alone = replace(recipe, fit=replace(recipe.fit, parameters=False))
    return alone.corrected(nominal, recipe.candidates[chosen], fold.train, work / f"{slug}_alone.npz", tell)


def without_baseline(recipe: Recipe, found: Model, train: Windows, checkpoint: Path | None = None, tell: Tell | None = None) -> Model:
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
    pieces = [train.cut(s, NETWORK_HORIZON) for s in starts]
    short = joined(pieces)
    return short.take(short.recorded[:, 0].all(-1))
