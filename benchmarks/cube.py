"""Identify contact on real tosses of a cube and score rollouts of full length from the first logged frame.

Run: python benchmarks/cube.py --json benchmarks/results/cube.json --figure docs/figures/cube.png
(data: the folder named by RESIDUAL_MBRL_DATA, ../shared/data by default).

Fits on train, from starts denoised by the free flight, and scores on val. ``--final`` fits on train + val and reads the test
split, so it is for the very end. ``--resume`` starts the search from benchmarks/artifacts/cube/parameters.json; ``--score-only``
makes no search. Without ``--resume`` the search starts from the published model.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from common import Options, compare, say, show, write_rows
from cube_figure import draw
from cube_model import FRICTION, build, expand, searched
from numpy.typing import NDArray
from tosses import Starts, Tosses

from residual_mbrl.baselines import Parameter
from residual_mbrl.bootstrap import interval
from residual_mbrl.datasets import cube
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.evolution import Evolution
from residual_mbrl.files import write_bytes, write_json
from residual_mbrl.free_flight import examine
from residual_mbrl.metrics import Metric
from residual_mbrl.mjcf_export import export_mjcf
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.trajectories import Trajectory

Array = NDArray[np.float64]

ARTIFACT = Path(__file__).parent / "artifacts" / "cube"
REQUIRED = (0.0142, 0.292)
"""Position [m] and rotation [rad] on the test split; they also weigh the two errors in the search."""

NOISE = (2e-5, 3e-4, 7e-3, 8.5e-2)
"""Noise of one frame [m, rad, m/s, rad/s], for the chaos floor."""


@dataclass(frozen=True, kw_only=True)
class Cube(Options):
    """Options of this benchmark.

    Args:
        generations: Of the search.
        minutes: After which it ends in any case.
        final: Fit on train + val and score on test, instead of train and val.
        resume: Start the search from the parameters in the artefact.
        score_only: Score the parameters in the artefact.
        law: Whether friction depends on the load, see ``load_friction``, or is one number.
        seed: Of the search.
        figure: Where to draw errors over the horizon and by phase.
    """

    generations: int = 80
    minutes: float = 20.0
    final: bool = False
    resume: bool = False
    score_only: bool = False
    law: bool = True
    seed: int = 0
    figure: Path | None = None


def main(options: Cube) -> None:
    """Examine, identify, score, print, write."""
    folder = Path(os.environ.get("RESIDUAL_MBRL_DATA", Path(__file__).parents[2] / "shared" / "data")) / "cube"
    logs = cube.read(folder, ["train", "val"]).logs
    known = [*logs["train"], *logs["val"]]
    report = examine([cube.flight(log) for log in known])
    for warning in report.warnings:
        say(f"log: {warning}")
    simulator = build()
    starts = Starts.of(report, simulator)
    if options.resume or options.score_only:
        values = stored()
    else:
        values = {p.name: p.nominal for p in searched(simulator, law=options.law)} | {"gravity.z": -report.gravity}
    if not options.score_only:
        fitted = known if options.final else list(logs["train"])
        fitted = fitted[:32] if options.quick else fitted
        values = search(simulator, Tosses(fitted, np.array([starts.denoised(log) for log in fitted])), values, options)
        chosen = searched(simulator, law=options.law)
        write_json(ARTIFACT / "parameters.json", {p.name: {"value": values[p.name], "unit": p.unit} for p in chosen})
        export_mjcf(ResidualDynamics(simulator, values=expand(simulator, values)), ARTIFACT / "cube.xml")
    friction = tune_friction(simulator, known)
    part = cube.read(folder, ["test"]).logs["test"] if options.final else logs["val"]
    logged = Tosses(part, np.array([log.measurements[0] for log in part]))
    corrected = Tosses(part, np.array([starts.raw(log) for log in part]))
    models = {"nominal": (logged, {}), "friction": (logged, {FRICTION: friction}), "identified": (corrected, values)}
    predictions = {n: tosses.simulate(simulator, v) for n, (tosses, v) in models.items()}
    floor = chaos_floor(simulator, corrected, values, options.seed)
    tell(options, part, predictions, (floor[:, 0], floor[:, 1]))


def search(simulator: MujocoSimulator, tosses: Tosses, values: Mapping[str, float], options: Cube) -> dict[str, float]:
    """Return the values that CMA-ES finds for the mean error over tosses of position and rotation, each over its requirement."""
    free = searched(simulator, law=options.law)
    evolution = Evolution(np.zeros(len(free)), step=0.4, candidates=14, seed=options.seed)
    begin = time.monotonic()
    for generation in range(2 if options.quick else options.generations):
        candidates = [_values(free, z, values) for z in evolution.ask()]
        evolution.tell(np.array([(tosses.errors(simulator, c).mean(0) / REQUIRED).sum() for c in candidates]))
        if generation % 5 == 0:
            position, rotation = tosses.errors(simulator, _values(free, evolution.mean, values)).mean(0)
            say(f"generation {generation}, {time.monotonic() - begin:.0f} s: {position:.4f} m, {rotation:.4f} rad on the fitted tosses, "
                f"step {evolution.step:.2f}")
        if time.monotonic() - begin > 60 * options.minutes:
            break
    return _values(free, evolution.mean, values)


def tune_friction(simulator: MujocoSimulator, logs: Sequence[Trajectory]) -> float:
    """Return the friction of a grid that gives the least position error, everything else nominal."""
    tosses = Tosses(logs, np.array([log.measurements[0] for log in logs]))
    return min((0.15, 0.17, 0.18, 0.19, 0.20, 0.22), key=lambda mu: float(tosses.errors(simulator, {FRICTION: mu})[:, 0].mean()))


def chaos_floor(simulator: MujocoSimulator, tosses: Tosses, values: Mapping[str, float], seed: int) -> Array:
    """Return how far the model's rollouts part from its own, on average [m, rad], whose starts one frame's noise has moved."""
    found = tosses.simulate(simulator, values)
    made = [replace(log, measurements=np.concatenate([*found[log.name], log.measurements[:, 7:]], 1)) for log in tosses.logs]
    noise = np.random.default_rng(seed).standard_normal((len(made), 12)) * np.repeat(NOISE, 3)
    return Tosses(made, simulator.space.integrate(tosses.starts, torch.from_numpy(noise)).numpy()).errors(simulator, values)


def stored() -> dict[str, float]:
    """Return the parameters in the artefact."""
    return {n: float(x["value"]) for n, x in json.loads((ARTIFACT / "parameters.json").read_text()).items()}


def tell(options: Cube, logs: Sequence[Trajectory], predictions: Mapping[str, Mapping[str, tuple[Array, Array]]],
         floor: tuple[Array, Array]) -> None:
    """Print the table, write rows, metrics and the figure.

    Args:
        options: Where to.
        logs: The tosses of the scored part.
        predictions: By model and toss.
        floor: Chaos floor, per toss [m] and [rad].
    """
    part = "test" if options.final else "val"
    metrics = {n: cube.score(logs, p, n) for n, p in predictions.items()}
    lines = [[n, *(_show(m) for m in found)] for n, found in metrics.items()]
    header = ["model", *(f"{m.metric}{'' if m.horizon is None else f' @{m.horizon}'} [{m.unit}]" for m in metrics["nominal"])]
    show(f"{len(logs)} tosses, {part}", [header[0], "position [m]", "rotation [rad]"],
         [[n, *(_show(m) for m in found if m.metric in ("position_m", "rotation_rad"))] for n, found in metrics.items()])
    show("medians over tosses: full length and at row 10, 20, 40", header[:1] + [h for h in header[1:] if h.startswith("median")],
         [[line[0], *(x for h, x in zip(header[1:], line[1:], strict=True) if h.startswith("median"))] for line in lines])
    say(f"chaos floor of the identified model: {floor[0].mean():.4f} m, {floor[1].mean():.3f} rad")
    means = {n: np.array([[e.mean() for e in cube.errors(log, *p[log.name])] for log in logs]) for n, p in predictions.items()}
    gain = means["identified"] - means["friction"]
    for k, unit in enumerate(("m", "rad")):
        low, high = interval(gain[:, k])
        say(f"identified minus friction, paired over tosses: {gain[:, k].mean():+.4f} {unit} [{low:+.4f}, {high:+.4f}]")
    peer = {(m.metric, m.horizon): m.value for m in metrics["friction"]}
    suffix = lambda m: "" if m.horizon is None else f"_h{m.horizon}"  # noqa: E731
    rows = [compare(f"cube.{part}.{m.metric}{suffix(m)}.{n}", m.value, peer[m.metric, m.horizon], m.unit)
            for n, found in metrics.items() for m in found]
    rows += [compare(f"cube.{part}.chaos_floor_{n}", float(x.mean()), peer[n, None], u)
             for n, x, u in zip(("position_m", "rotation_rad"), floor, ("m", "rad"), strict=True)]
    write_rows(options.json, rows)
    write_json(ARTIFACT / "metrics.json", {"dataset": "cube", "split": part, "metrics": [asdict(m) for f in metrics.values() for m in f]})
    if options.figure is not None:
        write_bytes(options.figure, draw(logs, predictions))


def _values(free: Sequence[Parameter], z: Array, values: Mapping[str, float]) -> dict[str, float]:
    """Return the values at a point of the search, which counts in spreads from where it started."""
    found = {p.name: float(np.clip(values[p.name] + (p.prior_std or p.scale) * x, p.lower, p.upper)) for p, x in zip(free, z, strict=True)}
    return {**values, **found}


def _show(m: Metric) -> str:
    return f"{m.value:.4f}" + ("" if m.ci95 is None else f" [{m.ci95[0]:.4f}, {m.ci95[1]:.4f}]")


if __name__ == "__main__":
    main(tyro.cli(Cube))
