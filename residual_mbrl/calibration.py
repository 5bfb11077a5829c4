"""The main job: from a folder of logs and a known model to a calibrated model, a report and an artefact."""

from __future__ import annotations

import logging
import shutil
import time as clock
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from residual_mbrl import artifact, files
from residual_mbrl.artifact import Calibration, estimate_table
from residual_mbrl.calibration_figures import DataPoint, error_over_data
from residual_mbrl.datasets.log_set import LogSet, Part
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.environment import describe_environment
from residual_mbrl.errors import ArtifactError, LogError
from residual_mbrl.evaluation import evaluate
from residual_mbrl.friction_figure import learned_friction
from residual_mbrl.identification import Identification
from residual_mbrl.metrics import Metric
from residual_mbrl.model import Model
from residual_mbrl.presets import PRESETS, Preset
from residual_mbrl.report import ReportInput, write_report
from residual_mbrl.selection import Fold, Recipe, Selection, folds_by_group, select
from residual_mbrl.sensors import check_units
from residual_mbrl.verdict import is_residual_worth_it
from residual_mbrl.windows import Windows, cut_windows

log = logging.getLogger(__name__)
Tell = Callable[[str, float], None]

DATA_FRACTIONS = (0.25, 0.5, 1.0)
"""Parts of the training windows that the curve of error over amount of data is drawn from."""


@dataclass(frozen=True)
class _Share:
    """Maps the progress of one stage onto its share of the whole."""

    tell: Tell | None
    start: float
    end: float

    def __call__(self, phrase: str, done: float) -> None:
        if self.tell is not None:
            self.tell(phrase, self.start + (self.end - self.start) * min(done, 1.0))


def calibrate(preset: Preset, data: Path, out: Path, *, free: Sequence[str] | None = None, residual: bool = True, seed: int = 0,
              progress: Tell | None = None) -> Calibration:
    """Calibrate a plant on its logs and write the artefact with its report.

    The logs are checked; parameters are identified; the residual is chosen on held-out logs; everything is fitted again on
    all training logs; the report tells by the held-out logs whether the residual is worth it. Test data are not read. An
    interrupted call goes on where it stopped when it is repeated.

    Args:
        preset: The kind of plant.
        data: Folder of logs.
        out: Folder of the artefact; replaced once the new one is complete.
        free: Glob patterns of parameters to identify, in place of those marked free.
        residual: Fit a residual after identification.
        seed: Seed of search and weights.
        progress: Called with a phrase and the fraction done.

    Raises:
        LogError: if a log is not usable.
        ModelError: if nothing is free.
        OutputError: if the artefact cannot be written.
    """
    begun = clock.monotonic()
    with files.folder(out, replaces=artifact.ENTRIES) as temporary:
        logs = preset.read(data, ("train", "val"))
        recipe = make_recipe(preset, free=free, seed=seed)
        for trajectory in (t for trajectories in logs.logs.values() for t in trajectories):
            check_units(trajectory, recipe.sensor)
        train, everything, folds = make_folds(preset, logs, recipe.dynamics.dt)
        work = files.progress_folder(out)
        work.mkdir(parents=True, exist_ok=True)
        selection = select(recipe, folds, work, _Share(progress, 0.0, 0.7)) if residual else None
        final = everything if preset.refit else train
        found = recipe.identified(final, work / "identify.npz", _Share(progress, 0.7, 0.8))
        model, points = recipe.model(found), []
        if selection is not None:
            chosen = recipe.candidates[selection.chosen]
            model = recipe.corrected(model, chosen, final, work / "residual.npz", _Share(progress, 0.8, 0.9))
            points = data_curve(recipe, folds[0], selection, _Share(progress, 0.9, 1.0))
        calibration = Calibration(model=model, identified=recipe.model(found), estimates=estimate_table(found.estimates),
                                  unidentifiable=found.unidentifiable, data=logs.hashes(), preset=preset.name, seeds={"calibrate": seed},
                                  notes=_notes(preset, selection))
        artifact.write(temporary, calibration)
        metrics = selection.evaluation.metrics() if selection is not None else []
        artifact.write_metrics(temporary / artifact.METRICS, dataset=preset.name, split="held-out", metrics=metrics,
                               certificates=certificates(model, final), seconds=clock.monotonic() - begun)
        write_report(temporary / artifact.REPORT[1], make_report(preset, recipe, calibration, found, selection, final, points, logs))
    shutil.rmtree(work, ignore_errors=True)
    return calibration


def evaluate_artifact(artifact_folder: Path, data: Path, out: Path, split: str = "test") -> list[Metric]:
    """Score a calibration on a part of its data set: nominal, identified, identified+residual, by the set's own metric.

    Args:
        artifact_folder: Folder of the calibration.
        data: Folder of logs.
        out: Folder for metrics.json, the report and its figures.
        split: Part of the split.

    Raises:
        ArtifactError: if the calibration belongs to no preset, or cannot be read.
        LogError: if a log is not usable.
    """
    begun = clock.monotonic()
    calibration = artifact.load(artifact_folder)
    if calibration.preset not in PRESETS:
        raise ArtifactError(f"{artifact_folder}: its preset is {calibration.preset!r}; expected one of {sorted(PRESETS)}")
    preset = PRESETS[calibration.preset]
    part = _part(split)
    models = models_of(calibration)
    metrics = [m for name, model in models.items() for m in (preset.score(model, data, part, name) if preset.score else [])]
    logs = preset.read(data, (part,))
    windows = cut_windows(logs.logs[part], calibration.dt, horizon=preset.horizon, starts=logs.starts.get(part))
    evaluation = evaluate(models, windows, split=split)
    verdict = is_residual_worth_it(evaluation)
    report = ReportInput(title=f"{preset.summary}: {split} logs", evaluations=[evaluation], verdict=verdict,
                         figures=learned_friction(calibration.model, windows), environment=describe_environment(),
                         seeds=calibration.seeds, data=logs.hashes(),
                         command=f"residual-mbrl evaluate {artifact_folder.name} --data FOLDER --out OUT --split {split}")
    with files.folder(out, replaces=artifact.REPORT) as temporary:
        artifact.write_metrics(temporary / artifact.METRICS, dataset=preset.name, split=split, metrics=[*metrics, *evaluation.metrics()],
                               certificates=certificates(calibration.model, windows), seconds=clock.monotonic() - begun)
        write_report(temporary / artifact.REPORT[1], report)
    return metrics


def models_of(calibration: Calibration) -> dict[str, Model]:
    """Return the nominal, the identified and the corrected model of a calibration, by name."""
    baseline = calibration.model.dynamics.baseline
    nominal = Model(dynamics=ResidualDynamics(baseline), sensor=calibration.model.sensor,
                    sensor_values=calibration.model.sensor.parameters.nominal())
    return {"nominal": nominal, "identified": calibration.identified, "identified+residual": calibration.model}


def make_recipe(preset: Preset, *, free: Sequence[str] | None = None, seed: int = 0) -> Recipe:
    """Put together what a preset fits.

    Args:
        preset: The kind of plant.
        free: Glob patterns of parameters to identify.
        seed: Seed of search and weights.
    """
    baseline = preset.baseline()
    sensor = preset.sensor(baseline)
    commands = {n: [*sensor.commands.get(n, ()), *effects] for n, effects in preset.disturbance.items()}
    disturbed = replace(sensor, commands={**sensor.commands, **commands})
    held = {n: [*sensor.commands.get(n, ()), *(replace(e, free=False) for e in effects)] for n, effects in preset.disturbance.items()}
    return Recipe(dynamics=ResidualDynamics(baseline), sensor=replace(sensor, commands={**sensor.commands, **held}), disturbed=disturbed,
                  candidates=preset.candidates(baseline, seed), identify=replace(preset.identify, free=free, seed=seed), fit=preset.fit)


def make_folds(preset: Preset, logs: LogSet, dt: float) -> tuple[Windows, Windows, list[Fold]]:
    """Cut windows; return those of the training part, those of all parts, and the folds that choose the residual.

    Raises:
        LogError: if too little is left to hold something out.
    """
    def windows(parts: Sequence[Part]) -> Windows:
        trajectories = [t for p in parts for t in logs.logs.get(p, ())]
        starts = None if not logs.starts else [s for p in parts for s in logs.starts[p]]
        return cut_windows(trajectories, dt, horizon=preset.horizon, starts=starts)

    train = windows(["train"])
    has_validation = bool(logs.logs.get("val"))
    everything = windows(["train", "val"]) if has_validation else train
    if preset.leave_group_out and len(set(everything.groups)) > 1:
        return train, everything, folds_by_group(everything)
    if has_validation:
        return train, everything, [Fold(name="validation", train=train, held=windows(["val"]))]
    n = len(train)
    if n < 2:
        raise LogError(f"{n} window(s) of data: at least two logs (or a longer one) are needed to hold something out")
    cut = max(1, round(0.8 * n))
    rows = torch.arange(n)
    return train, everything, [Fold(name="last fifth", train=train.take(rows < cut), held=train.take(rows >= cut))]


def data_curve(recipe: Recipe, fold: Fold, selection: Selection, tell: Tell) -> list[DataPoint]:
    """Return the held-out error of identified and identified+residual over the amount of training data [s]."""
    cheap = replace(recipe, identify=replace(recipe.identify, candidates=min(64, recipe.identify.candidates), starts=1))
    column = int(np.flatnonzero(np.isfinite(recipe.sensor.noise))[0])
    points = []
    for i, fraction in enumerate(DATA_FRACTIONS):
        count = max(1, round(fraction * len(fold.train)))
        rows = torch.linspace(0, len(fold.train) - 1, count).round().long()
        part = fold.train.take(rows)
        amount = float(part.recorded[:, 1:].any(-1).sum()) * part.dt
        found = cheap.model(cheap.identified(part))
        corrected = cheap.corrected(found, recipe.candidates[selection.chosen], part)
        for name, model in (("identified", found), ("identified+residual", corrected)):
            error = (model.predict(fold.held).measurements - fold.held.measurements)[:, 1:, column].abs()
            points.append(DataPoint(amount=amount, model=name, value=float(error[fold.held.recorded[:, 1:, column]].mean())))
        tell(f"amount of data {fraction:.0%}", (i + 1) / len(DATA_FRACTIONS))
    return points


def certificates(model: Model, windows: Windows) -> list:  # type: ignore[type-arg]
    """Return what each residual did at worst along the predictions of some windows."""
    prediction = model.predict(windows)
    return model.dynamics.certificates(prediction.states[:, :-1].flatten(0, 1), prediction.actions.flatten(0, 1))


def make_report(preset: Preset, recipe: Recipe, calibration: Calibration, found: Identification, selection: Selection | None,  # noqa: PLR0917
                windows: Windows, points: Sequence[DataPoint], logs: LogSet) -> ReportInput:
    """Gather what the report shows."""
    models = models_of(calibration)
    if selection is None:
        models.pop("identified+residual")
    fitted = evaluate(models, windows, split="training")
    evaluations = [fitted] if selection is None else [selection.evaluation, fitted]
    corrected = "identified" if selection is None else "identified+residual"
    verdict = is_residual_worth_it(evaluations[0], reference="nominal" if selection is None else None, corrected=corrected)
    figures = dict(learned_friction(calibration.model, windows))
    if points:
        column = fitted.columns[0]
        figures["error_over_data"] = (error_over_data(points, amount="training data [s]", error=f"held-out error of {column} [{fitted.units[0]}]"),
                                      "Error on held-out logs over the amount of training data.")
    options = {"preset": preset.name, "identify": asdict(recipe.identify), "fit": asdict(recipe.fit),
               "candidates on held-out logs (mean error in units of noise)": dict(selection.errors) if selection else {},
               "chosen": selection.chosen if selection else "none"}
    return ReportInput(title=f"Calibration: {preset.summary}", evaluations=evaluations, verdict=verdict, identification=found, figures=figures,
                       options=options, environment=describe_environment(), seeds=calibration.seeds, data=logs.hashes(),
                       command=f"residual-mbrl calibrate {preset.name} --data FOLDER --out OUT --seed {calibration.seeds['calibrate']}")


def _notes(preset: Preset, selection: Selection | None) -> str:
    if selection is None:
        return "identified parameters only"
    errors: Mapping[str, float] = selection.errors
    told = ", ".join(f"{n} {e:.4g}" for n, e in sorted(errors.items(), key=lambda x: x[1]))
    disturbance = f" Estimated with a disturbance on {', '.join(preset.disturbance)} (exogenous, not passive)." if preset.disturbance else ""
    return f"Residual {selection.chosen!r}, chosen on held-out logs by mean error in units of noise: {told}.{disturbance}"


def _part(split: str) -> Part:
    if split not in ("train", "val", "test"):
        raise LogError(f"split must be train, val or test, received {split!r}")
    return split  # type: ignore[return-value]
