"""Evaluation against direct numpy computation, and what must not count."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluation_problem import DT, IDENTIFIED, SENSOR, TRUE, Offset, evaluation, model, stribeck, windows

from residual_mbrl.errors import ModelError
from residual_mbrl.evaluation import evaluate
from residual_mbrl.sensors import Sensor


def offset(value: float, diverges: tuple[int, ...] = ()) -> Offset:
    """A model that errs by a constant."""
    return Offset(dynamics=model().dynamics, sensor=SENSOR, offset=value, diverges=diverges)


def test_errors_equal_direct_numpy() -> None:
    """MAE, RMSE, per log and over horizon are what a plain loop over logs gives."""
    data, candidate = windows(), model(IDENTIFIED)
    score = evaluate({"m": candidate}, data, resamples=10).scores["m"]
    error = (candidate.predict(data).measurements - data.measurements).numpy()
    recorded = data.recorded.numpy()[..., 0]
    each = [error[b, 1:][recorded[b, 1:], 0] for b in range(len(data))]
    np.testing.assert_allclose(score.log_mae[:, 0], [np.abs(e).mean() for e in each])
    np.testing.assert_allclose(score.log_rmse[:, 0], [np.sqrt((e**2).mean()) for e in each])
    assert score.mae.value[0] == pytest.approx(np.abs(np.concatenate(each)).mean())
    assert score.rmse.value[0] == pytest.approx(np.sqrt((np.concatenate(each) ** 2).mean()))
    at_100 = np.abs(error[recorded[:, 100], 100, 0]).mean()
    found = evaluate({"m": candidate}, data, horizons=(100,), resamples=10)
    assert found.scores["m"].over_horizon.value[np.searchsorted(found.steps, 100), 0] == pytest.approx(at_100)


def test_windows_of_one_log_are_scored_together() -> None:
    """Per-log errors pool all windows of a log."""
    data = windows(horizon=20)
    found = evaluate({"m": offset(0.1)}, data, resamples=10)
    assert len(data) > len(found.logs) == 8
    np.testing.assert_allclose(found.scores["m"].log_mae, 0.1)


def test_padded_samples_do_not_count() -> None:
    """What a model predicts beyond the end of a short log changes nothing."""
    data = windows()
    padded = ~data.recorded

    class Wild(Offset):
        def predict(self, data):
            right = super().predict(data)
            return right._replace(measurements=torch.where(padded, torch.inf, right.measurements))

    assert padded.any()
    score = evaluate({"m": Wild(dynamics=model().dynamics, sensor=SENSOR, offset=0.2)}, data, resamples=10).scores["m"]
    assert score.mae.value == pytest.approx(0.2) and not score.diverged.any()
    assert np.isnan(score.error[padded.numpy()]).all()


def test_the_given_first_sample_is_scored_only_when_asked() -> None:
    """``skip=0`` scores the first sample too, as some published protocols do."""
    data, m = windows(), model(IDENTIFIED)
    with_first = evaluate({"m": m}, data, skip=0, resamples=10).scores["m"].mae.value[0]
    assert with_first < evaluate({"m": m}, data, resamples=10).scores["m"].mae.value[0]


def test_divergence_is_infinite_and_counted() -> None:
    """A prediction that is not finite is an infinite error on its log, and is reported as diverged."""
    found = evaluate({"good": offset(0.1), "bad": offset(0.1, diverges=(2,))}, windows(), resamples=500)
    bad = found.scores["bad"]
    assert bad.diverged.tolist() == [i == 2 for i in range(8)]
    assert np.isinf(bad.mae.value).all() and np.isinf(bad.log_mae[2]).all() and np.isfinite(bad.log_mae[[0, 1]]).all()
    assert np.isinf(found.pair("good", "bad").difference.value).all()
    count = {(m.model, m.metric): m.value for m in found.metrics()}
    assert count["bad", "diverged_windows"] == 1 and count["good", "diverged_windows"] == 0


def test_paired_difference_is_exact_and_narrower_than_its_parts() -> None:
    """Pairing removes what the logs have in common."""
    found = evaluate({"a": offset(0.3), "b": offset(0.1)}, windows(), resamples=500)
    pair = found.pair("a", "b")
    np.testing.assert_allclose(pair.difference.value, -0.2)
    np.testing.assert_allclose(pair.difference.upper, -0.2, rtol=1e-6)
    assert pair.better.tolist() == [1.0, 1.0]
    turned = found.pair("b", "a")
    np.testing.assert_allclose(turned.difference.value, 0.2)
    assert turned.better.tolist() == [0.0, 0.0]


def test_windows_are_drawn_where_there_is_one_log() -> None:
    """A single log is resampled by its windows, and a single window has no interval."""
    several = evaluate({"m": model(IDENTIFIED)}, windows(count=1, horizon=30), resamples=200)
    assert (several.unit_name, several.unit_count) == ("window", 3) and np.isfinite(several.scores["m"].mae.lower).all()
    single = evaluate({"m": model(IDENTIFIED)}, windows(count=1), resamples=200)
    assert all(m.ci95 is None for m in single.metrics())


def test_metrics_name_column_and_horizon() -> None:
    """Every model has its errors as metrics, with unit, horizon and interval."""
    found = evaluation()
    metrics = {(m.model, m.metric, m.horizon): m for m in found.metrics()}
    mae = metrics["identified", "mae_angle", None]
    assert mae.unit == "rad" and mae.ci95 is not None and mae.ci95[0] < mae.value < mae.ci95[1]
    assert found.horizons == (1, 10, 100, 110)
    assert metrics["nominal", "error_rate", 100].unit == "rad/s"
    assert metrics["identified+residual", "mae_angle_minus_identified", None].value < 0
    assert metrics["identified+residual", "residual_force_share", None].value > 0.01


def test_chosen_columns_only() -> None:
    """``columns`` selects and orders what is scored."""
    both = evaluate({"m": model()}, windows(), resamples=10)
    one = evaluate({"m": model()}, windows(), columns=["rate"], resamples=10)
    assert one.columns == ("rate",) and one.scores["m"].mae.value[0] == pytest.approx(both.scores["m"].mae.value[1])


def test_a_column_without_noise_level_is_not_scored_by_default() -> None:
    """A column of infinite noise only serves others."""
    sensor = Sensor(space=SENSOR.space, columns=(replace(SENSOR.columns[0], noise=np.inf), SENSOR.columns[1]))
    assert evaluate({"m": replace(model(), sensor=sensor)}, windows(), resamples=10).columns == ("rate",)


def test_the_same_seed_gives_the_same_intervals() -> None:
    """Intervals can be repeated."""
    a, b = (evaluate({"m": model()}, windows(), resamples=100, seed=5).scores["m"].mae for _ in range(2))
    assert a.lower.tolist() == b.lower.tolist()


@pytest.mark.parametrize(("options", "message"), [({"horizons": (111,)}, "horizons must lie"), ({"columns": ["torque"]}, "no columns"),
                                                  ({"skip": -1}, "skip")])
def test_wrong_options_are_named(options: dict, message: str) -> None:
    """Messages name what was received."""
    with pytest.raises(ValueError, match=message):
        evaluate({"m": model()}, windows(), **options)


def test_models_must_fit_the_windows() -> None:
    """Another rate, other columns or no model at all are refused."""
    data = windows()
    with pytest.raises(ModelError, match=r"steps 0\.02 s"):
        evaluate({"m": model()}, replace(data, dt=2 * DT))
    with pytest.raises(ModelError, match="predicts"):
        evaluate({"a": model(), "b": replace(model(), sensor=Sensor(space=SENSOR.space, columns=SENSOR.columns[::-1]))}, data)
    with pytest.raises(ValueError, match="at least one model"):
        evaluate({}, data)


def test_share_of_force_is_that_of_its_definition() -> None:
    """One degree of freedom: rms of the residual's force over rms of inertia times acceleration along the prediction."""
    data, corrected = windows(), model(TRUE, stribeck(0.5))
    examination = evaluate({"m": corrected}, data, resamples=10).scores["m"].examination
    states, actions, _ = (x.detach() for x in (corrected.predict(data).states, corrected.predict(data).actions, data.time))
    inside = np.arange(data.horizon) < data.recorded.any(-1).sum(1).numpy()[:, None] - 1
    force = corrected.dynamics.residual_force(states[:, :-1], actions).detach().numpy()[inside]
    total = TRUE["inertia"] * np.diff(states[..., 1].numpy(), axis=1)[inside] / DT
    assert examination.force_share == pytest.approx(np.sqrt((force**2).mean() / (total**2).mean()))
    assert np.isnan(examination.residual_force[~inside]).all()
    assert examination.force_units == ("N·m",)


def test_a_free_swing_loses_what_friction_takes() -> None:
    """Without a command the change of stored energy is what dissipation took, and the residual's work is its part."""
    data = windows()
    still = replace(data, actions=torch.zeros_like(data.actions))
    models = {"none": model(integrator="rk4"), "viscous": model({"viscous": 0.2}, integrator="rk4"),
              "residual": model({}, stribeck(0.5), integrator="rk4")}
    found = evaluate(models, still, resamples=10).scores
    np.testing.assert_allclose(found["none"].examination.energy.stored, 0, atol=1e-6)
    assert (found["none"].examination.energy.dissipated == 0).all()
    for m in ("viscous", "residual"):
        energy = found[m].examination.energy
        assert (energy.dissipated < 0).all()
        np.testing.assert_allclose(energy.stored, energy.dissipated, rtol=0.03)
    residual = found["residual"].examination.energy
    np.testing.assert_allclose(residual.residual_work, residual.dissipated, rtol=0.03)


def test_pieces_and_certificates_describe_each_residual() -> None:
    """Each residual is named with what it adds, and its certificate covers every step within the logs."""
    examination = evaluation().scores["identified+residual"].examination
    piece, = examination.pieces
    assert (piece.name, piece.live, piece.unit) == ("DryFriction", "frictionloss", "N·m")
    assert 0 < piece.low < piece.high < 0.5
    assert piece.share == pytest.approx(examination.force_share)
    certificate, = examination.certificates
    assert certificate.holds and certificate.samples == int(windows().recorded.any(-1)[:, 1:].sum())
