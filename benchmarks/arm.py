"""Planted truth on the demo's arm, three seeds: parameters, how well the robot then follows, and how well it could with these logs.

The simulated robot carries an unknown payload, has dry friction in its gears, late motors, noisy encoders, and a spring that no parameter
describes. 18 planted parameters are identified with the residual on; two more turn about a vertical axis and must be named as
undetermined. The robot then draws eights by inverse dynamics of the data sheet's, the calibrated and its own model. The calibrated
model's error is also set against what the encoders' noise allows: the error of the robot's own model, and the Cramér-Rao bound of
what is estimated from the same windows, carried on to the joints along the eights.
"""

from __future__ import annotations

import tempfile
import time as clock
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from common import Options, Row, compare, show, write_rows

from residual_mbrl import robust
from residual_mbrl.artifact import Calibration, estimate_table
from residual_mbrl.calibration import make_folds, make_recipe
from residual_mbrl.demo import ARM, follow, tracking_metrics
from residual_mbrl.demo_arm import DELAY, ENCODER_NOISE, ENCODER_STEP, MOTORS, TRUTH
from residual_mbrl.demo_logs import read_logs, simulate_logs
from residual_mbrl.first_states import Eliminated
from residual_mbrl.identification import free_parameters
from residual_mbrl.model import Model
from residual_mbrl.simulation_error import SimulationError
from residual_mbrl.windows import Windows

PLANTED = {**TRUTH, **{f"{n}.delay": DELAY for n in MOTORS}}
STEP, FOLLOWED = 1e-4, 0.02
"""Of the differences [scaled units] of the logs' errors, which must not cross what sticks, and of the motion that is followed."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A calibration, the windows it was made on, and how long that took [s]."""

    calibration: Calibration
    train: Windows
    seconds: float


def calibrated(folder: Path, seed: int) -> Study:
    """Identify and fit on the training logs of one seed."""
    simulate_logs(folder, seed)
    begun = clock.monotonic()
    recipe = make_recipe(ARM, seed=seed)
    train, _, _ = make_folds(ARM, read_logs(folder, ("train", "val")), recipe.dynamics.dt)
    found = recipe.identified(train)
    model = recipe.corrected(recipe.model(found), recipe.candidates["joint springs"], train)
    calibration = Calibration(model=model, identified=recipe.model(found), estimates=estimate_table(found.estimates),
                              unidentifiable=found.unidentifiable)
    return Study(calibration=calibration, train=train, seconds=clock.monotonic() - begun)


def bound(study: Study, seed: int) -> float:
    """Return the rms of joint errors [rad] on the eights that the noise in the logs leaves at least, added to those of the encoders.

    The covariance ``σ² (JᵀJ + ridge)⁻¹`` of parameters and weights, first states unknown, goes through the derivative of the robot's
    positions by them. It is that of an unbiased estimate: what pulls unneeded springs to zero can do better where there is none.
    """
    model, start_std = study.calibration.model, ARM.fit.start_std
    free = free_parameters(model.dynamics, model.sensor)
    sensor = model.sensor.with_nominal(model.sensor_values)
    problem = SimulationError(dynamics=model.dynamics, sensor=sensor, windows=study.train, free=free, weights=True, start_std=start_std,
                              step=STEP)
    n, w, _ = problem.sizes
    reduced = Eliminated(problem, problem.initial(model.sensor_values), robust.scipy_loss("linear", problem.rows()))
    z = problem.initial(model.sensor_values)
    jacobian = reduced.jacobian(z[: n + w])
    noise = float(np.hypot(ENCODER_NOISE, ENCODER_STEP / np.sqrt(12))) / model.sensor.noise[0]
    ridge = np.diag([*np.zeros(n), *np.full(w, ARM.fit.ridge**2 * problem.rows())])
    covariance = noise**2 * np.linalg.inv(jacobian.T @ jacobian + ridge)

    def positions(p: np.ndarray) -> np.ndarray:
        dynamics, values = problem.model(p)
        moved = Model(dynamics=dynamics, sensor=model.sensor, sensor_values={**model.sensor_values, **values})
        run: np.ndarray = follow(Calibration(model=moved, identified=moved), seed)["calibrated"].positions
        return run.ravel()

    here = positions(z)
    slope = np.stack([positions(z + d) - here for d in FOLLOWED * np.eye(n + w, len(z))], 1) / FOLLOWED
    return float(np.sqrt(np.einsum("ij,jk,ik->", slope, covariance, slope) / len(slope)))


def rows_of(study: Study, seed: int) -> list[Row]:
    """Return what one seed gives: parameters, errors against the data sheet's and the true model's, and against the bound."""
    calibration = study.calibration
    found = {**calibration.model.dynamics.values, **calibration.model.sensor_values}
    rows = [compare(f"seed {seed}, {n}", found[n], x, "1") for n, x in PLANTED.items()]
    errors: Mapping[tuple[str, str], float] = {(m.model, m.metric): m.value for m in tracking_metrics(follow(calibration, seed))}
    for metric, unit in (("tracking_rms", "rad"), ("tool_rms", "m")):
        for peer in ("nominal", "true"):
            ours, other = errors["calibrated", metric], errors[peer, metric]
            rows.append(compare(f"seed {seed}, {metric}, calibrated against {peer}", ours, other, unit))
    least = float(np.hypot(errors["true", "tracking_rms"], bound(study, seed)))
    rows.append(compare(f"seed {seed}, tracking_rms, calibrated against what these logs allow without bias",
                        errors["calibrated", "tracking_rms"], least, "rad"))
    rows.append(compare(f"seed {seed}, parameters named as undetermined", len(calibration.unidentifiable), 2, "1"))
    rows.append(compare(f"seed {seed}, identification and fit", study.seconds, 120, "s"))
    return rows


def main(options: Options) -> None:
    """Calibrate and follow.

    Args:
        options: JSON file; a quick run takes one seed.
    """
    rows: list[Row] = []
    for seed in (0,) if options.quick else (0, 1, 2):
        with tempfile.TemporaryDirectory() as name:
            rows += rows_of(calibrated(Path(name), seed), seed)
        write_rows(options.json, rows)
    show("arm with planted truth", ("what", "ours", "peer", "ratio"), [(r.name, r.ours, r.peer, r.ratio) for r in rows])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
