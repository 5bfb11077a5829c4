"""What the report of a calibration shows, gathered from its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from residual_mbrl.artifact import Calibration
from residual_mbrl.calibration_figures import DataPoint, error_over_data
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.environment import describe_environment
from residual_mbrl.evaluation import evaluate
from residual_mbrl.fold_fits import Fold, Recipe, Tell
from residual_mbrl.friction_figure import learned_friction
from residual_mbrl.identification import Identification
from residual_mbrl.model import Model
from residual_mbrl.presets.preset import Preset
from residual_mbrl.report import ReportInput
from residual_mbrl.selection import Selection
from residual_mbrl.self_check import Recovery
from residual_mbrl.verdict import is_residual_worth_it
from residual_mbrl.windows import Windows

DATA_FRACTIONS = (0.25, 0.5, 1.0)
"""Parts of the training windows that the curve of error over amount of data is drawn from."""


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """All that a calibration found out.

    Args:
        preset: The kind of plant.
        recipe: What was fitted.
        calibration: The artefact.
        found: The identification behind it.
        selection: The choice of the residual; None where none was asked for.
        windows: Windows of the final fit.
        points: Curve of error over amount of data.
        check: Synthetic-truth check of the identification.
    """

    preset: Preset
    recipe: Recipe
    calibration: Calibration
    found: Identification
    selection: Selection | None
    windows: Windows
    points: Sequence[DataPoint]
    check: Sequence[Recovery]


def make_report(g: Gathered) -> ReportInput:
    """Return what the report shows: held-out logs first, then those that the final models were fitted on."""
    models = models_of(g.calibration)
    if g.selection is None:
        models.pop("identified+residual")
    fitted = evaluate(models, g.windows, split="training")
    evaluations = [fitted] if g.selection is None else [g.selection.evaluation, fitted]
    verdict = is_residual_worth_it(evaluations[0], reference="nominal" if g.selection is None else None,
                                   corrected="identified" if g.selection is None else "identified+residual")
    figures = dict(learned_friction(g.calibration.model, g.windows))
    if g.preset.figures is not None:
        figures |= g.preset.figures(g.calibration)
    if g.points:
        axis = f"held-out error of {fitted.columns[0]} [{fitted.units[0]}]"
        figures["error_over_data"] = (error_over_data(g.points, amount="training data [s]", error=axis),
                                      "Error on held-out logs over the amount of training data.")
    options = {"preset": g.preset.name, "identify": asdict(g.recipe.identify), "fit": asdict(g.recipe.fit),
               "held-out error of each candidate, in units of noise": dict(g.selection.errors) if g.selection else {},
               "chosen": g.selection.chosen if g.selection else "none",
               "self-check on simulated logs, error in scaled units": {r.name: r.error for r in g.check}}
    seed = g.calibration.seeds["calibrate"]
    plant = g.preset.usage or f"{g.preset.name} --data FOLDER"
    return ReportInput(title=f"Calibration: {g.preset.summary}", evaluations=evaluations, verdict=verdict, identification=g.found,
                       figures=figures, options=options, environment=describe_environment(), seeds=g.calibration.seeds,
                       data=g.calibration.data, command=f"residual-mbrl calibrate {plant} --out OUT --seed {seed}")


def models_of(calibration: Calibration) -> dict[str, Model]:
    """Return the nominal, the identified and the corrected model of a calibration, by name."""
    sensor = calibration.model.sensor
    baseline = ResidualDynamics(calibration.model.dynamics.baseline)
    nominal = Model(dynamics=baseline, sensor=sensor, sensor_values=sensor.parameters.nominal())
    return {"nominal": nominal, "identified": calibration.identified, "identified+residual": calibration.model}


def data_curve(recipe: Recipe, fold: Fold, selection: Selection, work: Path, tell: Tell) -> list[DataPoint]:
    """Return the held-out error of identified and identified+residual over the amount of training data [s].

    Args:
        recipe: What is fitted.
        fold: The first fold.
        selection: The choice of the residual.
        work: Folder of its checkpoints: with all the data the first fold's fits are these, where as many starts were searched.
        tell: Called with a phrase and the fraction done.
    """
    cheap = replace(recipe, identify=replace(recipe.identify, candidates=min(64, recipe.identify.candidates), starts=1))
    place = list(recipe.candidates).index(selection.chosen)
    column = int(np.flatnonzero(np.isfinite(recipe.sensor.noise))[0])
    points = []
    for i, fraction in enumerate(DATA_FRACTIONS):
        count = max(1, round(fraction * len(fold.train)))
        rows = torch.linspace(0, len(fold.train) - 1, count).round().long()
        part = fold.train.take(rows)
        amount = round(float(part.recorded[:, 1:].any(-1).sum()) * part.dt, 1)
        whole = fraction == 1.0 and cheap.identify == recipe.identify
        found = cheap.model(cheap.identified(part, work / "fold0_identify.npz" if whole else None))
        kept = work / f"fold0_candidate{place}.npz" if whole else None
        corrected = cheap.corrected(found, recipe.candidates[selection.chosen], part, kept)
        for name, model in (("identified", found), ("identified+residual", corrected)):
            error = (model.predict(fold.held).measurements - fold.held.measurements)[:, 1:, column].abs()
            points.append(DataPoint(amount=amount, model=name, value=float(error[fold.held.recorded[:, 1:, column]].mean())))
        tell(f"amount of data {fraction:.0%}", (i + 1) / len(DATA_FRACTIONS))
    return points


def notes(preset: Preset, selection: Selection | None) -> str:
    """Say in words how the residual of a calibration was chosen."""
    if selection is None:
        return "identified parameters only"
    told = ", ".join(f"{n} {e:.4g}" for n, e in sorted(selection.errors.items(), key=lambda x: x[1]))
    exogenous = f" Estimated with a disturbance on {', '.join(preset.disturbance)}: exogenous, not passive." if preset.disturbance else ""
    return f"Residual {selection.chosen!r}, chosen on held-out logs by mean error in units of noise: {told}.{exogenous}"
