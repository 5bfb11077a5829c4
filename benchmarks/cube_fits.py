"""Fits of the cube: identified numbers, learned contact on top, and the one number that a user would tune by hand."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from common import say
from cube_figure import phases
from cube_model import FRICTION, build, expand, searched
from learned_contact import WEIGHT, law_of, make, set_weights, weights
from numpy.typing import NDArray
from toss_search import IMPACTS, SCORED, WHOLE, Horizon, search
from tosses import Starts, Tosses

from residual_mbrl.baselines import Parameter
from residual_mbrl.contact_phases import PHASES
from residual_mbrl.datasets import cube
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.files import write_json
from residual_mbrl.free_flight import FlightReport, examine
from residual_mbrl.mjcf_export import export_mjcf
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.residuals import ContactParameters
from residual_mbrl.trajectories import Trajectory

Array = NDArray[np.float64]

REQUIRED = (0.0142, 0.292)
"""Position [m] and rotation [rad] on the test split; they also weigh the two errors in the search."""

PARAMETERS = "parameters.json"
WIDE, NEAR = 2e-4, 2e-3
"""Weight of the square of a move, in spreads, beside the mean error of a toss: of a search, and of its last steps."""
SLIDES = 0.1
"""Speed [m/s] above which a cube on its face slides without doubt."""
SHORTEST_SLIDE = 6
"""Rows of a slide of which the deceleration is taken."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What is identified on some tosses.

    Args:
        tosses: How many.
        report: What their free flights say of the log.
        values: Of ``cube_model.searched``, with drag and swirl of the flight.
        seconds: Wall time of the search.
    """

    tosses: int
    report: FlightReport
    values: Mapping[str, float]
    seconds: float


def identify(simulator: MujocoSimulator, logs: Sequence[Trajectory], *, minutes: float, quick: bool = False) -> Fit:
    """Search from the published model, on these tosses alone."""
    begin = time.monotonic()
    report = examine([cube.flight(log) for log in logs])
    for warning in report.warnings:
        say(f"log: {warning}")
    free = searched(simulator)
    values = {p.name: p.nominal for p in free} | {"gravity.z": -report.gravity, "drag": report.drag, "swirl": report.swirl}
    slides = sliding_friction(logs, report.gravity)
    if np.isfinite(slides):
        values[FRICTION] = slides
    _say(begin, f"{len(logs)} tosses slide with a friction of {slides:.3f}")
    tosses = denoised(simulator, logs, report)
    by_impacts = [p for p in free if p.name != FRICTION]  # which sliding has told already, and impacts hardly do
    values = _search(simulator, tosses, by_impacts, values, (Horizon(10, 1, 220),) if quick else IMPACTS, minutes, begin)
    if not quick:
        values = _search(simulator, tosses, free, values, WHOLE, minutes, begin)
        values = finish(simulator, logs, report, values, minutes, begin)
    found = values
    position, rotation = tosses.errors(simulator, found).mean(0)
    _say(begin, f"{len(logs)} tosses: {position:.4f} m, {rotation:.4f} rad from denoised starts")
    return Fit(tosses=len(logs), report=report, values=found, seconds=time.monotonic() - begin)


def finish(simulator: MujocoSimulator, logs: Sequence[Trajectory], report: FlightReport, values: Mapping[str, float], minutes: float,
           begin: float) -> dict[str, float]:
    """Return the values after some steps from first frames, as the score has them: the best guess from a start that is not quite right."""
    starts = Starts.of(report, simulator)
    raw = Tosses(logs, np.array([starts.raw(log) for log in logs]))
    return _search(simulator, raw, searched(simulator), values, SCORED, minutes, begin, prior=NEAR)


def sliding_friction(logs: Sequence[Trajectory], gravity: float) -> float:
    """Return the median over slides on a face of deceleration over gravity; NaN where there are none."""
    found = []
    for log in logs:
        x, place = log.measurements, phases(log)
        speed = np.hypot(x[:, 7], x[:, 8])
        rows = np.flatnonzero((place == PHASES.index("sliding")) & (speed > SLIDES))
        for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
            if len(run) >= SHORTEST_SLIDE:
                found.append(-np.polyfit(log.measurement_time[run], speed[run], 1)[0] / gravity)
    return float(np.median(found)) if found else float("nan")


def learn(simulator: MujocoSimulator, logs: Sequence[Trajectory], fit: Fit, *, minutes: float, seed: int,
          quick: bool = False) -> list[ContactParameters]:
    """Return networks for friction, time constant and damping, trained on these tosses with the identified values held."""
    begin = time.monotonic()
    tosses, networks = denoised(simulator, logs, fit.report), make(fit.values, seed=seed)
    first = weights(networks)

    def simulate(z: Array, drawn: Tosses, rows: NDArray[np.int64]) -> Array:
        set_weights(networks, first + WEIGHT * z)
        return drawn.poses(simulator, fit.values, law_of(networks, simulator.dt), rows)

    horizons = (Horizon(10, 1, 220),) if quick else (Horizon(10, 5, 220), Horizon(30, 2, 220))
    z = search(tosses, simulate, len(first), scale=REQUIRED, minutes=minutes, horizons=horizons, tell=lambda s: _say(begin, s))
    set_weights(networks, first + WEIGHT * z)
    position, rotation = tosses.errors(simulator, fit.values, law_of(networks, simulator.dt)).mean(0)
    _say(begin, f"{len(logs)} tosses with the residual: {position:.4f} m, {rotation:.4f} rad from denoised starts")
    return networks


def denoised(simulator: MujocoSimulator, logs: Sequence[Trajectory], report: FlightReport) -> Tosses:
    """Return tosses that start from a fit to their whole flight."""
    starts = Starts.of(report, simulator)
    return Tosses(logs, np.array([starts.denoised(log) for log in logs]))


def tune_friction(simulator: MujocoSimulator, logs: Sequence[Trajectory]) -> float:
    """Return the friction of a grid that gives the least position error, everything else nominal."""
    tosses = Tosses(logs, np.array([log.measurements[0] for log in logs]))
    return min((0.15, 0.17, 0.18, 0.19, 0.20, 0.22), key=lambda mu: float(tosses.errors(simulator, {FRICTION: mu})[:, 0].mean()))


def save_fits(folder: Path, simulator: MujocoSimulator, fits: Mapping[str, Fit]) -> None:
    """Write the values and, of the fit to all tosses, the MJCF with them in it."""
    units = {p.name: p.unit for p in searched(simulator)} | {"drag": "1/s", "swirl": "1/s"}
    write_json(folder / PARAMETERS, {n: {"tosses": f.tosses, "seconds": f.seconds, "flight": asdict(f.report), "values": {
        k: {"value": x, "unit": units[k]} for k, x in f.values.items()}} for n, f in fits.items()})
    whole = fits.get("final", fits.get("all"))
    if whole is not None:
        export_mjcf(ResidualDynamics(build(), values=expand(simulator, whole.values)), folder / "cube.xml")


def load_fits(folder: Path) -> dict[str, Fit]:
    """Read the stored fits: to "4", "32" and "256" tosses, to "all" of train, and the "final" one to train + val."""
    path = folder / PARAMETERS
    if not path.exists():
        return {}
    found = {}
    for name, f in json.loads(path.read_text(encoding="utf-8")).items():
        report = FlightReport(**{**f["flight"], "warnings": tuple(f["flight"]["warnings"])})
        values = {k: x["value"] for k, x in f["values"].items()}
        found[name] = Fit(tosses=f["tosses"], report=report, seconds=f["seconds"], values=values)
    return found


def _search(simulator: MujocoSimulator, tosses: Tosses, free: Sequence[Parameter], values: Mapping[str, float], horizons: Sequence[Horizon],
            minutes: float, begin: float, prior: float = WIDE) -> dict[str, float]:
    def simulate(z: Array, drawn: Tosses, rows: NDArray[np.int64]) -> Array:
        return drawn.poses(simulator, _moved(free, z, values), None, rows)

    z = search(tosses, simulate, len(free), scale=REQUIRED, minutes=minutes, horizons=horizons, prior=prior,
               tell=lambda s: _say(begin, s))
    return _moved(free, z, values)


def _moved(free: Sequence[Parameter], z: Array, values: Mapping[str, float]) -> dict[str, float]:
    """Return the values at a point of the search, which counts in spreads from where it started."""
    found = {p.name: float(np.clip(values[p.name] + (p.prior_std or p.scale) * x, p.lower, p.upper)) for p, x in zip(free, z, strict=True)}
    return {**values, **found}


def _say(begin: float, text: str) -> None:
    say(f"{time.monotonic() - begin:.0f} s: {text}")
