"""Identify contact on real tosses of a cube, learn what is left, and score rollouts of full length from the first logged frame.

Run: python benchmarks/cube.py --json benchmarks/results/cube.json --figure docs/figures/cube.png
(data: the folder named by RESIDUAL_MBRL_DATA, ../shared/data by default).

Fits on 4, 32, 256 and all tosses of train, from starts denoised by the free flight, and scores on val. ``--final`` adds val to what all
of train is fitted with, and reads the test split: it is for the very end. Every search starts from the published model.
``--resume`` takes the fits that are stored in the artefact and makes those that are missing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from common import Options, say, show
from cube_fits import Fit, learn, load_fits, save_fits, tune_friction
from cube_fits import identify as identify_cube
from cube_model import FRICTION, build
from cube_scores import Scores, tell, tell_gain, write
from learned_contact import dynamics, law_of, load_networks, save_networks
from numpy.typing import NDArray
from tosses import Starts, Tosses

from residual_mbrl.contact_phases import chaos_floor
from residual_mbrl.contact_violations import contact_violations
from residual_mbrl.datasets import cube
from residual_mbrl.free_flight import rotation_between
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.residuals import ContactParameters
from residual_mbrl.trajectories import Trajectory

Array = NDArray[np.float64]

ARTIFACT = Path(__file__).parent / "artifacts" / "cube"
SIZES = (4, 32, 256)

EVERY = 5
"""Of the logged rows, which are looked at for violations."""

NOISE = (2e-5, 3e-4, 7e-3, 8.5e-2)
"""Noise of one frame [m, rad, m/s, rad/s], for the chaos floor."""


@dataclass(frozen=True, kw_only=True)
class Cube(Options):
    """Options of this benchmark.

    Args:
        minutes: After which a search ends in any case.
        final: Fit all on train + val and score on test, instead of train and val.
        resume: Take the fits that the artefact holds.
        residual: Whether to learn a residual.
        sizes: Whether to fit 4, 32 and 256 tosses as well.
        seed: Of the networks' first weights and the noise of the floor.
        figure: Where to draw errors over the horizon and by phase.
    """

    minutes: float = 10.0
    final: bool = False
    resume: bool = False
    residual: bool = True
    sizes: bool = True
    seed: int = 0
    figure: Path | None = None


def main(options: Cube) -> None:
    """Examine, identify, learn, score, print, write."""
    torch.set_num_threads(1)
    begin = time.monotonic()
    folder = Path(os.environ.get("RESIDUAL_MBRL_DATA", Path(__file__).parents[2] / "shared" / "data")) / "cube"
    logs = cube.read(folder, ["train", "val"]).logs
    train, known = list(logs["train"]), [*logs["train"], *logs["val"]]
    simulator = build()
    everything = known if options.final else train
    whole = "final" if options.final else "all"
    sets = {whole: everything, **({str(n): train[:n] for n in SIZES} if options.sizes else {})}
    if options.quick:
        sets = {whole: train[:8]}
    fits = load_fits(ARTIFACT) if options.resume else {}
    for name, tosses in sets.items():
        if name not in fits:
            fits[name] = identify_cube(simulator, tosses, minutes=options.minutes, quick=options.quick)
            save_fits(ARTIFACT, simulator, fits)
    fit, place = fits[whole], ARTIFACT / "final" if options.final else ARTIFACT
    networks = load_networks(place) if options.resume and options.residual else None
    if networks is None and options.residual:
        networks = learn(simulator, sets[whole], fit, minutes=options.minutes, seed=options.seed, quick=options.quick)
        save_networks(place, simulator, fit.values, networks)
    friction = tune_friction(simulator, known)
    part = cube.read(folder, ["test"]).logs["test"] if options.final else logs["val"]
    logged = Tosses(part, np.array([log.measurements[0] for log in part]))
    predictions = {"nominal": logged.simulate(simulator, {}), "friction": logged.simulate(simulator, {FRICTION: friction})}
    for name, found in ((n, fits[n]) for n in sets):
        label = "identified" if name == whole else f"identified_{name}"
        predictions[label] = start(simulator, part, found).simulate(simulator, found.values)
    if networks is not None:
        law = law_of(networks, simulator.dt)
        predictions["identified+residual"] = start(simulator, part, fit).simulate(simulator, fit.values, law)
    floors = {"one frame's noise": noise_floor(simulator, start(simulator, part, fit), fit, options.seed),
              "the first frame": first_frame_floor(simulator, start(simulator, part, fit), everything, fit, options.seed)}
    scores = Scores("test" if options.final else "val", part, predictions, floors)
    tell(scores)
    tell_unseen(simulator, known, {n: f for n, f in fits.items() if n.isdigit()}, friction)
    report_violations(simulator, part, fit, networks or [])
    write(scores, options.json, ARTIFACT / "metrics.json", options.figure, seconds=time.monotonic() - begin)


def start(simulator: MujocoSimulator, logs: Sequence[Trajectory], fit: Fit) -> Tosses:
    """Return tosses from their first logged frame, its velocity set right by what free flight says of the fitted tosses."""
    starts = Starts.of(fit.report, simulator)
    return Tosses(logs, np.array([starts.raw(log) for log in logs]))


def tell_unseen(simulator: MujocoSimulator, known: Sequence[Trajectory], fits: Mapping[str, Fit], friction: float) -> None:
    """Print what fits to the first tosses of train gain on the others of train + val, which are more than val has."""
    for fit in fits.values():
        others = known[fit.tosses :]
        tuned = Tosses(others, np.array([log.measurements[0] for log in others])).errors(simulator, {FRICTION: friction})
        tell_gain(f"identified from {fit.tosses} minus friction", start(simulator, others, fit).errors(simulator, fit.values) - tuned)


def report_violations(simulator: MujocoSimulator, logs: Sequence[Trajectory], fit: Fit, networks: Sequence[ContactParameters]) -> None:
    """Print the worst violations of the laws of contact over logged rows, and what the networks promise."""
    rows = torch.from_numpy(np.concatenate([log.measurements[::EVERY] for log in logs]))
    model, action = dynamics(simulator, fit.values, networks), rows.new_zeros(len(rows), 0)
    show(f"worst of {len(rows)} logged rows", ["violation", "value", "unit"], contact_violations(model, rows, action).rows())
    for c in model.certificates(rows, action):
        say(f"{c.residual}, {c.quantity}: {c.worst:.2g} {c.unit}, {'kept' if c.holds else 'BROKEN'}")


def noise_floor(simulator: MujocoSimulator, tosses: Tosses, fit: Fit, seed: int) -> Array:
    """Return how far the model's rollouts part from its own, the starts of which one frame's noise has moved, mean of a toss [m, rad]."""
    noise = np.random.default_rng(seed).standard_normal((len(tosses.logs), 12)) * np.repeat(NOISE, 3)
    return _floor(simulator, tosses, fit, noise)


def first_frame_floor(simulator: MujocoSimulator, tosses: Tosses, known: Sequence[Trajectory], fit: Fit, seed: int) -> Array:
    """Return the same with moves drawn from what first frames of the fitted tosses differ by from their own later flights."""
    starts = Starts.of(fit.report, simulator)
    pairs = [(starts.raw(log), starts.denoised(log)) for log in known]
    raw, flown = (torch.from_numpy(np.array(x)) for x in zip(*pairs, strict=True))
    moves = simulator.space.difference(flown, raw).numpy()
    moves = moves[np.abs(moves).sum(1) > 0]
    return _floor(simulator, tosses, fit, moves[np.random.default_rng(seed).integers(len(moves), size=len(tosses.logs))])


def _floor(simulator: MujocoSimulator, tosses: Tosses, fit: Fit, moves: Array) -> Array:
    def simulate(starts: Array) -> Array:
        return Tosses(tosses.logs, starts).poses(simulator, fit.values)

    def distance(a: Array, b: Array) -> Array:
        apart = np.linalg.norm(a[..., :3] - b[..., :3], axis=-1)
        turned = np.linalg.norm(rotation_between(a[..., 3:], b[..., 3:]), axis=-1)
        return np.array([[apart[k, :n].mean(), turned[k, :n].mean()] for k, n in enumerate(tosses.rows)])

    def integrate(starts: Array, moves: Array) -> Array:
        return np.asarray(simulator.space.integrate(torch.from_numpy(starts), torch.from_numpy(moves)).numpy())

    return chaos_floor(simulate, tosses.starts, moves, integrate, distance)


if __name__ == "__main__":
    main(tyro.cli(Cube))
