"""Simulated plants give back what was planted in them, and an exact model is told that it needs no residual."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from residual_mbrl import fold_fits
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.identification import IdentifyOptions, identify

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
WITHIN = 0.05
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study() -> Iterator[ModuleType]:
    """Import the benchmark, a script beside its common.py; here its network trains for a third of the rounds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        patch.setattr(fold_fits, "NETWORK", replace(fold_fits.NETWORK, rounds=1))
        yield importlib.import_module("planted_truth")


@pytest.fixture(scope="module")
def sprung(study):
    return _calibrated(study, study.servo_plant())


@pytest.fixture(scope="module")
def exact(study):
    return _calibrated(study, study.servo_plant(sprung=False))


def _calibrated(study, plant):
    return study.calibrate(replace(plant, fit=replace(plant.fit, rounds=2)), train=8, held=3)


def test_every_planted_parameter_is_recovered_with_the_residual_in_place(study, sprung):
    """Load, friction and delay come back within 5 % beside a free potential."""
    found = sprung.values(study.CORRECTED)
    assert found == pytest.approx({**found, **sprung.plant.planted}, rel=WITHIN)


def test_identification_alone_is_biased_by_what_the_model_lacks(study, sprung):
    """Without the residual, parameters take the blame for the spring."""
    found = sprung.values("identified")
    assert any(abs(found[n] / true - 1) > 2 * WITHIN for n, true in sprung.plant.planted.items())


def test_no_planted_parameter_is_called_unidentifiable(study, sprung):
    """The verdict agrees that these data determine every parameter, the residual's weights being free as well."""
    assert sprung.known(study.CORRECTED).unidentifiable == ()


def test_the_residual_is_the_planted_spring(study, sprung):
    """The learned force has the slope of the spring over the visited range, to a tenth."""
    dynamics, plant = sprung.models[study.CORRECTED].dynamics, sprung.plant.truth
    q = torch.linspace(-1.2, 1.2, 7, dtype=torch.float64)
    state = torch.stack([q, torch.zeros_like(q)], -1)
    learned = dynamics.residuals[0](dynamics.contexts(state, torch.zeros(7, 3, dtype=torch.float64))[0])[:, 0]
    torch.testing.assert_close(learned, -plant.stiffness * (q - plant.rest), rtol=0, atol=0.1 * plant.stiffness * 2.4)


@pytest.mark.parametrize("horizon", [10, 100, 1000])
@pytest.mark.parametrize("other", ["nominal", "identified", "network"])
def test_held_out_rollouts_are_better_at_every_horizon(study, sprung, other, horizon):
    """On unseen logs the corrected model beats the others in both columns."""
    for column in range(2):
        assert sprung.error(study.CORRECTED, horizon, column) < sprung.error(other, horizon, column)


def test_the_missing_spring_is_worth_a_residual(sprung):
    """The verdict asks for the residual."""
    assert sprung.verdict.worth


def test_an_exact_model_is_told_that_no_residual_is_needed(exact):
    """Same structure, other parameter values: the residual is judged needless and hardly acts."""
    assert not exact.verdict.worth
    assert exact.verdict.text.startswith("No residual is needed")
    assert exact.share < 0.01


def test_a_needless_residual_leaves_the_parameters_right(study, exact):
    """Parameters stay within 5 % beside a residual that has nothing to explain."""
    found = exact.values(study.CORRECTED)
    assert found == pytest.approx({**found, **exact.plant.planted}, rel=WITHIN)


def test_delays_come_back_from_windows_that_start_amid_motion(study):
    """The double pendulum's parameters do within 5 % where its model has the spring: what the windows lead in with is enough."""
    plant = study.pendulum_plant()
    model = study.SprungDoublePendulum(plant.model.parameters, dt=plant.model.dt, substeps=plant.model.substeps)
    windows = replace(plant, model=model).fold(train=3, held=1).train
    options = IdentifyOptions(free=list(plant.planted), candidates=4, starts=1, horizons=(50,), every=3)
    found = identify(ResidualDynamics(model), plant.sensor, windows, options)
    values = {**found.dynamics.values, **found.sensor_values}
    assert values == pytest.approx({**values, **plant.planted}, rel=WITHIN)


def test_rows_hold_what_every_benchmark_writes(study, exact, tmp_path):
    """The JSON is a list of rows with name, ours, peer, ratio, unit and machine."""
    rows = [*study.parameter_rows(exact), *study.rollout_rows(exact), *study.verdict_rows(exact)]
    study.write_rows(tmp_path / "rows.json", rows)
    written = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert len(written) == len(rows)
    assert all(set(r) == {"name", "ours", "peer", "ratio", "unit", "machine"} for r in written)
