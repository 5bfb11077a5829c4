"""Planted truth on the demo's arm with more data than the demo takes time for: parameters, and how well the robot then follows.

The simulated robot carries an unknown payload, has dry friction in its gears, late motors, noisy encoders, and a spring that no parameter
describes. 18 planted parameters are identified with the residual on; two more turn about a vertical axis and must be named as
undetermined. The robot then draws eights by inverse dynamics of the data sheet's, the calibrated and its own model.
"""

from __future__ import annotations

import tempfile
import time as clock
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import tyro
from common import Options, Row, compare, show, write_rows

from residual_mbrl import demo_logs
from residual_mbrl.artifact import Calibration, estimate_table
from residual_mbrl.calibration import make_folds, make_recipe
from residual_mbrl.demo import ARM, follow, tracking_metrics
from residual_mbrl.demo_arm import DELAY, MOTORS, TRUTH

HORIZON, STRIDE = 100, 80
"""Steps of a window, and from one start to the next."""
PLANTED = {**TRUTH, **{f"{n}.delay": DELAY for n in MOTORS}}


def calibrated(folder: Path, seed: int, horizon: int) -> Calibration:
    """Identify and fit on the training logs of one seed."""
    demo_logs.simulate_logs(folder, seed)
    recipe = make_recipe(replace(ARM, horizon=horizon), seed=seed)
    train, _, _ = make_folds(replace(ARM, horizon=horizon), demo_logs.read_logs(folder, ("train", "val")), recipe.dynamics.dt)
    found = recipe.identified(train)
    model = recipe.corrected(recipe.model(found), recipe.candidates["joint springs"], train)
    return Calibration(model=model, identified=recipe.model(found), estimates=estimate_table(found.estimates),
                       unidentifiable=found.unidentifiable)


def main(options: Options) -> None:
    """Calibrate and follow.

    Args:
        options: JSON file; a quick run takes the demo's windows and one seed.
    """
    rows: list[Row] = []
    horizon, stride = (demo_logs.HORIZON, demo_logs.STRIDE) if options.quick else (HORIZON, STRIDE)
    for seed in (0,) if options.quick else (0, 1, 2):
        begun = clock.monotonic()
        with patch.object(demo_logs, "HORIZON", horizon), patch.object(demo_logs, "STRIDE", stride), tempfile.TemporaryDirectory() as name:
            calibration = calibrated(Path(name), seed, horizon)
        seconds = clock.monotonic() - begun
        found = {**calibration.model.dynamics.values, **calibration.model.sensor_values}
        rows += [compare(f"seed {seed}, {n}", found[n], x, "1") for n, x in PLANTED.items()]
        errors = {(m.model, m.metric): m for m in tracking_metrics(follow(calibration, seed))}
        for metric in ("tracking_rms", "tool_rms"):
            for peer in ("nominal", "true"):
                ours, other = errors["calibrated", metric], errors[peer, metric]
                rows.append(compare(f"seed {seed}, {metric}, calibrated against {peer}", ours.value, other.value, ours.unit))
        rows.append(compare(f"seed {seed}, parameters named as undetermined", len(calibration.unidentifiable), 2, "1"))
        rows.append(compare(f"seed {seed}, identification and fit", seconds, 120, "s"))
        write_rows(options.json, rows)
    show("arm with planted truth", ("what", "ours", "peer", "ratio"), [(r.name, r.ours, r.peer, r.ratio) for r in rows])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
