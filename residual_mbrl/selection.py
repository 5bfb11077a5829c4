"""Choosing a residual on data that neither identification nor fitting has seen, with every ablation beside it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.evaluation import Evaluation, evaluate
from residual_mbrl.fold_fits import Fold, Recipe, Tell, fit_alone, fit_fold
from residual_mbrl.model import Model
from residual_mbrl.observation import Prediction
from residual_mbrl.windows import Windows, joined

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class HeldOut(Model):
    """Predicts every window by the model of the fold that held it out; ``dynamics`` are those of the last fold.

    The windows asked about must be those that the folds held out, in the order of the folds; their horizon may be shorter.
    """

    members: tuple[tuple[Windows, Model], ...]

    def parts(self, windows: Windows) -> list[tuple[ResidualDynamics, slice]]:
        """Return each fold's dynamics with the rows that it held out."""
        ends = np.cumsum([len(held) for held, _ in self.members]).tolist()
        if ends[-1] != len(windows):
            raise ValueError(f"HeldOut: the folds held out {ends[-1]} windows, received {len(windows)}")
        return [(model.dynamics, slice(end - len(held), end)) for (held, model), end in zip(self.members, ends, strict=True)]

    def predict(self, windows: Windows) -> Prediction:
        """Predict the held-out windows of all folds, each by the model that has not seen them."""
        parts = [model.predict(windows.take(torch.arange(r.start, r.stop, device=windows.actions.device)))
                 for (_, model), (_, r) in zip(self.members, self.parts(windows), strict=True)]
        return Prediction(*(torch.cat(x) for x in zip(*parts, strict=True)))


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Outcome of the choice.

    Args:
        chosen: Name of the best candidate.
        evaluation: Every model on the held-out windows.
        errors: Held-out mean absolute error of every candidate, of "identified" and, where there are disturbances, of
            "identified+disturbance", in the unit of the first column.
    """

    chosen: str
    evaluation: Evaluation
    errors: Mapping[str, float]


def folds_by_group(windows: Windows) -> list[Fold]:
    """Leave out the windows of one group of logs at a time."""
    names = list(dict.fromkeys(windows.groups[i] for i in windows.log.tolist()))
    return [Fold(name=n, train=windows.of_groups([m for m in names if m != n]), held=windows.of_groups([n])) for n in names]


def select(recipe: Recipe, folds: Sequence[Fold], work: Path, tell: Tell, workers: int = 1) -> Selection:
    """Fit every candidate and every ablation in each fold, and choose the candidate that predicts held-out data best.

    Args:
        recipe: What to fit.
        folds: At least one.
        work: Folder for checkpoints; work that is in it already is not repeated.
        tell: Called with a phrase and the fraction done.
        workers: Processes that fit folds side by side; with more than one, the calling script must be importable.
    """
    fitted = _each_fold(fit_fold, recipe, folds, work, lambda phrase, done: tell(phrase, 0.85 * done), workers)
    held = joined([f.held for f in folds])

    def held_out(name: str) -> HeldOut:
        members = tuple((f.held, models[name]) for f, models in zip(folds, fitted, strict=True))
        last = members[-1][1]
        return HeldOut(dynamics=last.dynamics, sensor=recipe.sensor, sensor_values=last.sensor_values, members=members)

    judged = [*recipe.candidates, "identified", *(["identified+disturbance"] if recipe.disturbance else [])]
    errors = {n: _mean_error(held_out(n), held) for n in judged}
    chosen = min(recipe.candidates, key=lambda n: errors[n])
    log.info("held-out errors %s; chosen: %s", errors, chosen)
    alone = _each_fold(partial(fit_alone, chosen=chosen), recipe, folds, work, lambda phrase, done: tell(phrase, 0.85 + 0.15 * done),
                       workers)
    fitted = [{**models, "residual": m, "identified+residual": models[chosen]} for models, m in zip(fitted, alone, strict=True)]
    shown = ["nominal", "identified", "identified+disturbance", "residual", "identified+residual", "network"]
    models = {n: held_out(n) for n in shown if n in fitted[0]}
    return Selection(chosen=chosen, evaluation=evaluate(models, held, split="held-out"), errors=errors)


def _each_fold(fit: Callable[..., T], recipe: Recipe, folds: Sequence[Fold], work: Path, tell: Tell, workers: int) -> list[T]:
    """Call ``fit(recipe, fold, work, slug)`` for every fold, side by side where there are workers."""
    jobs = [(recipe, f, work, f"fold{i}") for i, f in enumerate(folds)]
    if min(workers, len(jobs)) < 2:
        results = []
        for i, job in enumerate(jobs):
            results.append(fit(*job, tell=lambda phrase, done, i=i: tell(phrase, (i + done) / len(jobs))))
        return results
    workers = min(workers, len(jobs))
    others = set(active_children())
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker) as pool:
        futures = [pool.submit(fit, *job) for job in jobs]
        try:
            tell(f"{len(jobs)} folds in {workers} processes", 0.0)
            for done, _ in enumerate(as_completed(futures), 1):
                tell(f"{done} of {len(jobs)} folds", done / len(jobs))
            return [f.result() for f in futures]
        except BaseException:  # a fold takes minutes: end the workers, whose checkpoints are whole, instead of waiting for them
            for worker in set(active_children()) - others:
                worker.terminate()
            # the pool's own thread reaps them: joining here too, one of the two would find nothing and take a dead child for a live one
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, which ends its workers, and one core to each worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _mean_error(model: Model, windows: Windows) -> float:
    """Mean absolute error of the fitted columns, each in its noise, averaged over logs as they come."""
    noise = torch.tensor(model.sensor.noise)
    counted = windows.recorded & torch.isfinite(noise)
    error = ((model.predict(windows).measurements - windows.measurements) / noise).abs()
    per_log = [float(error[rows][counted[rows]].mean()) for rows in (windows.log == i for i in windows.log.unique())]
    return float(np.mean(np.nan_to_num(per_log, nan=np.inf)))
