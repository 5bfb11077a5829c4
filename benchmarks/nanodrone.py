"""Identify a 45 g quadrotor from real flights, learn what its equations lack, and score rollouts of half a second.

Run: python benchmarks/nanodrone.py --score-only --final --json benchmarks/results/nanodrone.json --figure docs/figures/nanodrone.png
(data: the folder named by RESIDUAL_MBRL_DATA, ../shared/data by default).

Without options it leaves out one type of trajectory at a time, square, random and chirp, and scores on it what the others taught.
``--final`` fits on all of train and val, writes benchmarks/artifacts/nanodrone and reads the test flights, so it is for the very end;
with ``--score-only`` it takes the artefact that is there. ``--raw`` scores on the unfiltered signals, whose rows know nothing of the
future.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from common import Options, compare, say, show, write_rows
from nanodrone_figure import draw
from nanodrone_model import GROUPS, SCALES, Design, build, correct, identify, predictions, rows_of, windows_of
from numpy.typing import NDArray

from residual_mbrl import artifact
from residual_mbrl.datasets import nanodrone
from residual_mbrl.datasets.nanodrone import Prediction, Signals
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.files import load_json, write_bytes, write_json
from residual_mbrl.horizon_fitting import mean_errors
from residual_mbrl.metrics import Metric
from residual_mbrl.model import Model
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.trajectories import Trajectory

Array = NDArray[np.float64]
ARTIFACT = Path(__file__).parent / "artifacts" / "nanodrone"
CONTEXT = "context.json"
"""Beside the artefact: the design, and the parameters whose innovations are the context."""

REQUIRED = {"p": 1.70, "v": 8.20, "R": 4.40, "omega": 25.5}
PUBLISHED = {"p": 2.231, "v": 10.41, "R": 5.065, "omega": 28.98}
"""Sums of the published physics, by the metric of this benchmark."""

HYBRID = {"p": 2.363, "v": 10.40, "R": 6.153, "omega": 28.99}
"""Of the published hybrid, by its own metric, which crosses from one flight to the next."""


@dataclass(frozen=True, kw_only=True)
class Nanodrone(Options):
    """Options of this benchmark.

    Args:
        final: Fit on all of train and val, and score on test.
        score_only: Score the artefact that is there instead of fitting.
        folds: Types that are left out in turn when not final.
        raw: Score on the unfiltered signals.
        figure: Where to draw errors over the horizon.
        seed: Of the fits.
        design: What was chosen by leaving one type out.
    """

    final: bool = False
    score_only: bool = False
    folds: tuple[str, ...] = nanodrone.TYPES
    raw: bool = False
    figure: Path | None = None
    seed: int = 0
    design: Design = field(default_factory=Design)


def main(options: Nanodrone) -> None:
    """Fit, score, print, write."""
    torch.set_num_threads(1)
    folder = Path(os.environ.get("RESIDUAL_MBRL_DATA", Path(__file__).parents[2] / "shared" / "data")) / "nanodrone"
    if options.quick:
        short = replace(options.design.training, steps=40, stages=((10, 0.5), (50, 0.5)), batch=128)
        options = replace(options, final=False, design=replace(options.design, training=short), folds=options.folds[:1])
    logs = read(folder, ("train", "val"), "filtered")
    if not options.final:
        leave_out(logs, options)
        return
    if not options.score_only:
        fit(logs, folder, options)
    score(read(folder, ("test",), "raw" if options.raw else "filtered"), options)


def read(folder: Path, parts: Sequence[str], signals: Signals) -> list[Trajectory]:
    """Return the flights of some parts, and say what is wrong with them."""
    found = nanodrone.read(folder, parts, signals)  # type: ignore[arg-type]
    logs = [log for part in parts for log in found.logs[part]]  # type: ignore[index]
    for log in logs:
        for warning in log.metadata["warnings"]:  # type: ignore[attr-defined]
            say(f"{log.name}: {warning}")
    return logs


def leave_out(logs: Sequence[Trajectory], options: Nanodrone) -> None:
    """Fit without one type of trajectory at a time and print the sums of errors on it."""
    lines, rows = [], []
    for kind in options.folds:
        train, held = [x for x in logs if x.group != kind], [x for x in logs if x.group == kind]
        balanced, identified = identify(train, options.design, steps=30 if options.quick else 300)
        corrected = correct(train, balanced, options.design, seed=options.seed)
        windows = windows_of(held, balanced, options.design, stride=11, skip=0)
        naive = np.mean([nanodrone.errors(x, nanodrone.naive(x)).mean(0).sum(0) for x in held], 0)
        published = np.mean([nanodrone.errors(x, nanodrone.published(x)).mean(0).sum(0) for x in held], 0)
        models = {"identified": identified, "identified+residual": corrected}
        own = {n: mean_errors(m, windows, GROUPS).sum(0).numpy() for n, m in models.items()}
        for name, sums in {"naive": naive, "published physics": published, **own}.items():
            lines.append([f"{kind}: {name}", *(float(x) for x in sums)])
            rows += [compare(f"nanodrone.without_{kind}.sum_{q}.{name}", float(x), float(y), u)
                     for (q, u), x, y in zip(nanodrone.QUANTITIES.items(), sums, naive, strict=True)]
        show(f"trained without {kind} flights, sums over 50 steps", ["flights: model", *nanodrone.QUANTITIES], lines[-4:])
    write_rows(options.json, rows)


def fit(logs: Sequence[Trajectory], folder: Path, options: Nanodrone) -> None:
    """Fit on all flights and write the artefact."""
    balanced, identified = identify(logs, options.design, steps=30 if options.quick else 400)
    corrected = correct(logs, balanced, options.design, seed=options.seed)
    sensor = Sensor(space=corrected.baseline.space, columns=tuple(Column(name=n, source=n, noise=0.01) for n in nanodrone.COLUMNS))
    hashes = nanodrone.read(folder, ("train", "val")).hashes()
    (ARTIFACT / CONTEXT).unlink(missing_ok=True)
    artifact.save(ARTIFACT, artifact.Calibration(
        model=Model(dynamics=corrected, sensor=sensor), identified=Model(dynamics=identified, sensor=sensor), data=hashes,
        seeds={"fit": options.seed}, notes="Rollouts start from a context of past samples: see context.json and docs/nanodrone.md."))
    write_json(ARTIFACT / CONTEXT, {"balanced": {n: balanced.values[n] for n in SCALES}, "design": asdict(options.design)})


def stored() -> tuple[ResidualDynamics, ResidualDynamics, ResidualDynamics, Design]:
    """Return the balanced, identified and corrected model of the artefact, and their design."""
    calibration, known = artifact.load(ARTIFACT), load_json((ARTIFACT / CONTEXT).read_bytes())
    design = known["design"]
    kept = Design(**{n: x for n, x in design.items() if n != "training"})
    return ResidualDynamics(build(), (), known["balanced"]), calibration.identified.dynamics, calibration.model.dynamics, kept


def score(logs: Sequence[Trajectory], options: Nanodrone) -> None:
    """Score all models on flights, print, write."""
    begun = time.monotonic()
    balanced, identified, corrected, design = stored()
    models: dict[str, dict[str, Prediction]] = {
        "naive": {x.name: nanodrone.naive(x) for x in logs}, "nominal": {x.name: nanodrone.published(x) for x in logs},
        "identified": {x.name: predictions(identified, balanced, x, design) for x in logs},
        "identified+residual": {x.name: predictions(corrected, balanced, x, design) for x in logs}}
    metrics = {n: nanodrone.score(logs, p, n) for n, p in models.items()}
    signals = "raw" if options.raw else "filtered"
    tell(metrics, f"{', '.join(x.name for x in logs)}, {signals} signals")
    peer = {(m.metric, m.horizon): m.value for m in metrics["nominal"]}
    write_rows(options.json, [compare(f"nanodrone.{signals}.{m.metric}.{n}", m.value, peer[m.metric, m.horizon], m.unit)
                              for n, found in metrics.items() for m in found])
    if options.figure is not None:
        errors = {n: np.concatenate([nanodrone.errors(x, p[x.name]) for x in logs]).mean(0) for n, p in models.items()}
        write_bytes(options.figure, draw(errors))
    if not options.raw:
        x, u = rows_of(logs[0])
        artifact.write_metrics(ARTIFACT / artifact.METRICS, dataset="nanodrone", split="test", seconds=time.monotonic() - begun,
                               metrics=[m for f in metrics.values() for m in f],
                               certificates=corrected.certificates(corrected.initial_state(x, u), u))


def tell(metrics: Mapping[str, Sequence[Metric]], title: str) -> None:
    """Print sums with what is required of them, and the errors at single horizons."""
    sums = {n: {m.metric: m for m in found} for n, found in metrics.items()}
    lines: list[list[object]] = []
    for name in metrics:
        cells = []
        for q in nanodrone.QUANTITIES:
            value = sums[name][f"sum_{q}"].value
            mark = "" if name != "identified+residual" else f" (required {REQUIRED[q]:g}{'' if value <= REQUIRED[q] else ', missed'})"
            cells.append(f"{value:.3f}{mark}")
        lines.append([name, *cells])
    lines.append(["published hybrid, own metric", *(f"{x:.3f}" for x in HYBRID.values())])
    show(f"{title}: sum over 50 steps", ["model", *(f"{q} [{u}]" for q, u in nanodrone.QUANTITIES.items())], lines)
    header = [f"{q} {h}" for q in nanodrone.QUANTITIES for h in (1, 10, 50)]
    show("at single steps", ["model", *header], [[n, *(sums[n][f"{q}_h{h}"].value for q in nanodrone.QUANTITIES for h in (1, 10, 50))]
                                                 for n in metrics])
    worse = [f"{q} at {h}" for q in nanodrone.QUANTITIES for h in (1, 10, 50)
             if sums["identified+residual"][f"{q}_h{h}"].value > sums["nominal"][f"{q}_h{h}"].value]
    say(f"worse than the published physics: {', '.join(worse) or 'nothing'}")


if __name__ == "__main__":
    main(tyro.cli(Nanodrone))
