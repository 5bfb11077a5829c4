"""The whole protocol: plan, run, sum up, write."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from residual_mbrl import files
from residual_mbrl.calibration import make_folds, make_recipe
from residual_mbrl.descriptions import baseline_as_json
from residual_mbrl.environment import describe_environment
from residual_mbrl.fold_fits import Fold, Recipe
from residual_mbrl.log_checks import check_units
from residual_mbrl.presets.preset import Preset
from residual_mbrl.protocol.cells import IDENTIFIED, Cell, ProtocolOptions, plan
from residual_mbrl.protocol.recovery import disturbance_recovery
from residual_mbrl.protocol.report import regimes, render, summarise
from residual_mbrl.protocol.scoring import score_cell
from residual_mbrl.protocol.variants import Training
from residual_mbrl.protocol.workers import Tell, run_cells
from residual_mbrl.windows import Windows

DOCUMENT, PAGE, CELLS, WORK = "protocol.json", "protocol.html", "cells", "work"


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a cell needs; sent to the process that runs it."""

    recipes: dict[int, Recipe]
    folds: dict[str, Fold]
    work: Path
    horizons: tuple[int, ...]
    threads: int

    def __call__(self, cell: Cell) -> dict[str, object]:
        """Train and score one cell."""
        if self.threads:
            torch.set_num_threads(self.threads)
        training = Training(recipes=self.recipes.__getitem__, folds=self.folds, work=self.work)
        model, _ = training.train(cell)
        return score_cell(model, self.folds[cell.fold].held, self.horizons)


def run_protocol(preset: Preset, data: Path, out: Path, options: ProtocolOptions | None = None, *, command: str = "",
                 progress: Tell | None = None, run: Callable[[Cell], dict[str, object]] | None = None) -> dict[str, Any]:
    """Run every cell of the protocol on train and validation logs, write ``protocol.json`` and ``protocol.html``, return the document.

    Results of single cells lie in ``cells/``. The same command goes on where it was stopped, and runs failed cells again.

    Args:
        preset: The kind of plant.
        data: Folder of logs.
        out: Folder of the results.
        options: What to run.
        command: How this was called, for the page.
        progress: Called with a phrase and the fraction done.
        run: What runs a cell, in place of training it.

    Raises:
        LogError: if a log is not usable.
        ValueError: if an option fits nothing of the preset.
    """
    options = options or ProtocolOptions()
    logs = preset.read(data, ("train", "val"))
    recipes = {s: make_recipe(preset, seed=s) for s in options.seeds}
    recipe = recipes[options.seeds[0]]
    for trajectory in (t for trajectories in logs.logs.values() for t in trajectories):
        check_units(trajectory, recipe.sensor)
    folds = make_folds(preset, logs, recipe.dynamics.dt)[2][: options.folds]
    cells = plan(options, list(recipe.candidates), [f.name for f in folds])
    told = {"preset": preset.name, "protocol": {**asdict(options), "options": [list(o) for o in options.options]},
            "identify": asdict(recipe.identify), "fit": asdict(recipe.fit), "baseline": baseline_as_json(recipe.dynamics.baseline),
            "sensor": recipe.sensor.describe(), "residuals": {n: [r.describe() for r in rs] for n, rs in recipe.candidates.items()},
            "folds": {f.name: {"training windows": len(f.train), "held-out windows": len(f.held), "steps": f.held.horizon} for f in folds},
            "data": logs.hashes()}
    science = {k: v for k, v in told.items() if k != "protocol"} | {"horizons": list(options.horizons)}
    fingerprint = hashlib.sha256(files.dump_json(science).encode()).hexdigest()
    out.mkdir(parents=True, exist_ok=True)
    job = Job(recipes=recipes, folds={f.name: f for f in folds}, work=out / WORK / fingerprint[:12], horizons=tuple(options.horizons),
              threads=1 if options.workers > 1 else 0)
    results = run_cells(run or job, cells, out / CELLS, fingerprint=fingerprint, workers=options.workers, retries=options.retries,
                        timeout=options.timeout, tell=progress)
    failed = {c.name: c for c in cells if results[c.name]["status"] == "failed"}
    document = {
        "dataset": preset.name, "cells": len({c.name for c in cells}), "done": sum(r["status"] == "done" for r in results.values()),
        "tables": summarise(cells, results), "regimes": regimes(cells, results),
        "recovery": {} if options.disturbance is None else _recovery(recipe, folds[0], job, options),
        "failed": [{"label": c.label, "attempts": results[n]["attempts"], "error": results[n]["error"]} for n, c in failed.items()],
        "options": told, "environment": describe_environment()}
    files.write_json(out / DOCUMENT, document)
    files.write_text(out / PAGE, render(document, command or f"residual-mbrl protocol {preset.name} --data FOLDER --out OUT"))
    return document


def _recovery(recipe: Recipe, fold: Fold, job: Job, options: ProtocolOptions) -> dict[str, object]:
    """Plant the change in a flight of the identified model along the longest held-out log's commands."""
    if options.disturbance is None:
        return {}
    cell = Cell(variant=IDENTIFIED, fold=fold.name, seed=options.seeds[0])
    model, _ = Training(recipes=lambda _: recipe, folds=job.folds, work=job.work).train(cell)
    held: Windows = fold.held.take(fold.held.recorded.any(-1).sum(1).argmax().unsqueeze(0))
    said = model.predict(held)
    parameter, factor = options.disturbance
    steps = int(held.recorded.any(-1).sum()) - 1
    found = disturbance_recovery(model.dynamics, said.states[0, 0, : recipe.dynamics.space.nx], said.actions[0, :steps],
                                 parameter=parameter, factor=factor)
    return {"parameter": parameter, "factor": factor, "log": held.names[int(held.log[0])], **asdict(found)}


def quick(options: ProtocolOptions) -> ProtocolOptions:
    """Return the smallest protocol that shows every table."""
    return replace(options, fractions=(0.5,), seeds=tuple(options.seeds[:2]), options=tuple(options.options[:1]), folds=1)


