"""The main job: from a folder of logs and a known model to a calibrated model, a report and an artefact."""

from __future__ import annotations

import logging
import shutil
import time as clock
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from residual_mbrl import artifact, files
from residual_mbrl.artifact import Calibration, estimate_table
from residual_mbrl.calibration_report import Gathered, data_curve, make_report, models_of, notes
from residual_mbrl.column_map import parse_map, read_map
from residual_mbrl.datasets.log_set import LogSet, Part
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.environment import describe_environment
from residual_mbrl.errors import ArtifactError, LogError
from residual_mbrl.evaluation import evaluate
from residual_mbrl.fold_fits import Fold, Recipe
from residual_mbrl.friction_figure import learned_friction
from residual_mbrl.log_checks import check_units
from residual_mbrl.metrics import Metric
from residual_mbrl.model import Model
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.presets import PRESETS, Preset
from residual_mbrl.presets.simulator import HORIZON, read_logs, window_steps
from residual_mbrl.report import ReportInput, write_report
from residual_mbrl.selection import folds_by_group, select
from residual_mbrl.self_check import recover
from residual_mbrl.verdict import is_residual_worth_it
from residual_mbrl.windows import Windows, cut_windows

log = logging.getLogger(__name__)
Tell = Callable[[str, float], None]

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
              workers: int = 1, mapping: str = "", progress: Tell | None = None) -> Calibration:
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
        workers: Processes that fit folds side by side; a script that asks for more than one needs its
            ``if __name__ == "__main__"``.
        mapping: Text of the ``mapping.toml`` by which the logs were read, to be kept.
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
        selection = select(recipe, folds, work, _Share(progress, 0.0, 0.7), workers) if residual else None
        final = everything if preset.refit else train
        # where the only fold has the same windows, its checkpoints hold the same fits: they are not made twice
        once = "fold0_" if len(folds) == 1 and final is folds[0].train else ""
        found = recipe.identified(final, work / f"{once}identify.npz", _Share(progress, 0.7, 0.8))
        model, points = recipe.model(found), []
        if selection is not None:
            chosen = recipe.candidates[selection.chosen]
            place = f"candidate{list(recipe.candidates).index(selection.chosen)}" if once else "residual"
            model = recipe.corrected(model, chosen, final, work / f"{once}{place}.npz", _Share(progress, 0.8, 0.9))
            points = data_curve(recipe, folds[0], selection, work, _Share(progress, 0.9, 1.0))
        check = recover(found, recipe.sensor, final, recipe.identify, seed)
        calibration = Calibration(model=model, identified=recipe.model(found), estimates=estimate_table(found.estimates),
                                  unidentifiable=found.unidentifiable, data=logs.hashes(), preset=preset.name, seeds={"calibrate": seed},
                                  notes=notes(preset, selection), mapping=mapping)
        artifact.write(temporary, calibration)
        metrics = selection.evaluation.metrics() if selection is not None else []
        artifact.write_metrics(temporary / artifact.METRICS, dataset=preset.name, split="held-out", metrics=metrics,
                               certificates=certificates(model, final), seconds=clock.monotonic() - begun)
        gathered = Gathered(preset=preset, recipe=recipe, calibration=calibration, found=found, selection=selection, windows=final,
                            points=points, check=check)
        write_report(temporary / artifact.REPORT[1], make_report(gathered))
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
    metrics = [m for name, model in models_of(calibration).items() for m in (preset.score(model, data, part, name) if preset.score else [])]
    logs = preset.read(data, (part,))
    windows = cut_windows(logs.logs[part], calibration.dt, horizon=preset.horizon, starts=logs.starts.get(part))
    command = f"residual-mbrl evaluate {artifact_folder.name} --data FOLDER --out OUT --split {split}"
    _write_evaluation(calibration, windows, out, title=f"{preset.summary}: {split} logs", split=split, protocol=metrics,
                      data=logs.hashes(), command=command, begun=begun)
    return metrics


def evaluate_logs(artifact_folder: Path, logs: Sequence[Path], out: Path, *, mapping: Path | None = None, horizon: float = HORIZON,
                  resample: bool = False) -> list[Metric]:
    """Score a calibrated MuJoCo model on logs: nominal, identified, identified+residual.

    Args:
        artifact_folder: Folder of the calibration.
        logs: Log files or data set folders.
        out: Folder for metrics.json, the report and its figures.
        mapping: ``mapping.toml`` of these logs; that of the calibration where None.
        horizon: Length of the windows [s].
        resample: Interpolate logs that were recorded at another rate.

    Raises:
        ArtifactError: if the calibration is not of a MuJoCo model, or cannot be read.
        LogError: if a log is not usable.
    """
    begun = clock.monotonic()
    calibration = artifact.load(artifact_folder)
    simulator = calibration.model.dynamics.baseline
    if not isinstance(simulator, MujocoSimulator):
        raise ArtifactError(f"{artifact_folder}: is a calibration of {type(simulator).__name__}; expected one of a MuJoCo model: "
                            "give --data and no logs")
    columns = read_map(mapping, simulator.space) if mapping is not None else parse_map(
        tomllib.loads(calibration.mapping), simulator.space, f"mapping of {artifact_folder}")
    prepared = read_logs(simulator, logs, columns, resample=resample)
    windows = cut_windows(prepared.trajectories, calibration.dt, horizon=window_steps(prepared, simulator.dt, horizon))
    return _write_evaluation(calibration, windows, out, title=f"{calibration.preset}: {len(logs)} log(s)", split="given", protocol=(),
                             data={f.name: files.sha256(f) for f in logs if f.is_file()}, begun=begun,
                             command=f"residual-mbrl evaluate {artifact_folder.name} LOGS --out OUT")


def _write_evaluation(calibration: Calibration, windows: Windows, out: Path, *, title: str, split: str, protocol: Sequence[Metric],
                      data: Mapping[str, str], command: str, begun: float) -> list[Metric]:
    """Score windows, write metrics.json and the report, and return the metrics, those of the set's own protocol first."""
    evaluation = evaluate(models_of(calibration), windows, split=split)
    metrics = [*protocol, *evaluation.metrics()]
    report = ReportInput(title=title, evaluations=[evaluation], verdict=is_residual_worth_it(evaluation), command=command, data=data,
                         figures=learned_friction(calibration.model, windows), environment=describe_environment(), seeds=calibration.seeds)
    with files.folder(out, replaces=artifact.REPORT) as temporary:
        artifact.write_metrics(temporary / artifact.METRICS, dataset=calibration.preset, split=split, metrics=metrics,
                               certificates=certificates(calibration.model, windows), seconds=clock.monotonic() - begun)
        write_report(temporary / artifact.REPORT[1], report)
    return metrics


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
        folds = folds_by_group(everything)
        if logs.whole:  # blocks lose the windows that cross their edges; the final fit need not
            everything = cut_windows(logs.whole, dt, horizon=preset.horizon, starts=logs.whole_starts)
        return train, everything, folds
    if has_validation:
        return train, everything, [Fold(name="validation", train=train, held=windows(["val"]))]
    n = len(train)
    if n < 2:
        raise LogError(f"{n} window(s) of data: at least two logs (or a longer one) are needed to hold something out")
    cut = max(1, round(0.8 * n))
    rows = torch.arange(n)
    return train, everything, [Fold(name="last fifth", train=train.take(rows < cut), held=train.take(rows >= cut))]


CERTIFIED = 10_000
"""States along the predictions, at least, at which certificates are measured where there are as many."""


def certificates(model: Model, windows: Windows) -> list:  # type: ignore[type-arg]
    """Return what each residual did at worst along the predictions of some windows."""
    prediction = model.predict(windows)
    states, actions = prediction.states[:, :-1].flatten(0, 1), prediction.actions.flatten(0, 1)
    every = max(1, len(states) // CERTIFIED)
    return model.dynamics.certificates(states[::every], actions[::every])


def _part(split: str) -> Part:
    if split not in ("train", "val", "test"):
        raise LogError(f"split must be train, val or test, received {split!r}")
    return split  # type: ignore[return-value]
