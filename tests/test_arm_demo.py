"""The demo finds what was planted in the simulated arm, says what no log can show, and makes the robot follow."""

from __future__ import annotations

import pytest

from residual_mbrl import demo
from residual_mbrl.artifact import Calibration, estimate_table
from residual_mbrl.calibration import make_folds, make_recipe
from residual_mbrl.demo import ARM, follow, run_demo, tracking_metrics
from residual_mbrl.demo_arm import DELAY, MOTORS, TRUTH
from residual_mbrl.demo_logs import read_logs, simulate_logs

PLANTED = {**TRUTH, **{f"{n}.delay": DELAY for n in MOTORS}}
HIDDEN = ("mass:link1", "com:link1.z")


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    """What ``calibrate`` ends up with, without held-out fits, self-check and report."""
    folder = tmp_path_factory.mktemp("logs")
    simulate_logs(folder)
    recipe = make_recipe(ARM)
    train, _, _ = make_folds(ARM, read_logs(folder, ("train", "val")), recipe.dynamics.dt)
    found = recipe.identified(train)
    model = recipe.corrected(recipe.model(found), recipe.candidates["joint springs"], train)
    return Calibration(model=model, identified=recipe.model(found), estimates=estimate_table(found.estimates),
                       unidentifiable=found.unidentifiable)


@pytest.fixture(scope="module")
def errors(calibration):
    return {(m.model, m.metric): m.value for m in tracking_metrics(follow(calibration))}


@pytest.mark.slow
def test_every_planted_parameter_is_found(calibration):
    """With the residual on, friction, payload and delays lie within 5 % of the truth."""
    found = {**calibration.model.dynamics.values, **calibration.model.sensor_values}
    assert len(PLANTED) >= 14
    assert {n: found[n] / x for n, x in PLANTED.items()} == pytest.approx(dict.fromkeys(PLANTED, 1.0), rel=0.05)


@pytest.mark.slow
def test_what_no_log_shows_is_named(calibration):
    """The verdict names the first link's mass and height, each alone, and none of the planted parameters."""
    assert calibration.unidentifiable == tuple(f"{n}: the data do not determine it" for n in HIDDEN)


@pytest.mark.slow
def test_the_calibrated_model_makes_the_robot_follow(errors):
    """The error of joints and tool is below a fiftieth of the data sheet's and within a fifth of the true model's."""
    for metric in ("tracking_rms", "tool_rms"):
        assert errors["calibrated", metric] < 0.02 * errors["nominal", metric]
        assert errors["calibrated", metric] < 1.2 * errors["true", metric]


def test_the_report_gets_the_pictures(monkeypatch, tmp_path):
    """The demo hands the calibration figures of the arm and of its springs, and returns the errors of both models."""
    drawn = {}

    def calibrate(preset, data, out, *, seed, progress):
        assert sorted(p.name for p in data.iterdir()) == [f"run{i}.npz" for i in range(1, 7)]
        recipe = make_recipe(preset, seed=seed)
        model = recipe.model(recipe.identified(make_folds(preset, preset.read(data, ("train", "val")), recipe.dynamics.dt)[0].first(2)))
        drawn.update(preset.figures(Calibration(model=model, identified=model)))

    monkeypatch.setattr(demo, "calibrate", calibrate)
    metrics = run_demo(tmp_path)
    assert set(drawn) == {"tracking", "springs"} and all(caption for _, caption in drawn.values())
    assert {m.model for m in metrics} == {"nominal", "calibrated", "true"}
    assert {m.unit for m in metrics} == {"rad", "m"}
