"""A model on windows of any dtype, and what it tells about itself."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from evaluation_problem import IDENTIFIED, TRUE, model, stribeck, windows

from residual_mbrl.effects import Bias, Delay, Differentiated
from residual_mbrl.evaluation import evaluate
from residual_mbrl.model import Model
from residual_mbrl.rollouts import rollout
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.simulation_error import SimulationError
from residual_mbrl.windows import Windows

PLAIN = model(IDENTIFIED, stribeck(0.3))
FILTERED = Sensor(space=PLAIN.sensor.space, columns=(
    Column(name="angle", source="angle", noise=0.01, effects=(Bias(0.02),)),
    Column(name="rate", source="angle", noise=0.01, effects=(Differentiated(order=1, window=5, polynomial=2), Delay(0.004)))))
SENSORS = pytest.mark.parametrize("seen", [PLAIN, replace(PLAIN, sensor=FILTERED)], ids=["plain", "filtered"])


def cast(data: Windows, dtype: torch.dtype) -> Windows:
    """The same windows in another dtype."""
    values = {f.name: getattr(data, f.name) for f in fields(data)}
    return Windows(**{n: x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for n, x in values.items()})


def test_prediction_is_a_rollout_from_the_first_sample() -> None:
    """With a sensor that shows the state, nothing else happens."""
    data = windows()
    found = PLAIN.predict(data)
    with torch.no_grad():
        expected = rollout(PLAIN.dynamics, data.measurements[:, 0], data.actions)
    assert torch.equal(found.measurements, expected) and torch.equal(found.states, expected)
    assert torch.equal(found.actions, data.actions)


def test_sensor_values_replace_nominal_ones() -> None:
    """A bias that was identified shows in the column and is undone in the first state."""
    biased = replace(PLAIN, sensor=replace(FILTERED, columns=(FILTERED.columns[0], PLAIN.sensor.columns[1])))
    data = windows()
    found = replace(biased, sensor_values={"angle.bias": 0.1}).predict(data)
    assert torch.allclose(found.measurements[..., 0], found.states[..., 0] + 0.1)
    assert torch.allclose(found.measurements[:, 0], data.measurements[:, 0])


def test_a_plain_model_is_one_part() -> None:
    """Its own dynamics predict every row."""
    (dynamics, rows), = PLAIN.parts(windows())
    assert dynamics is PLAIN.dynamics and rows == slice(0, 8)


@SENSORS
def test_float32_windows_give_float32_predictions(seen: Model) -> None:
    """They are near those of float64, first states solved through filters included."""
    data = windows(horizon=25)
    exact, found = seen.predict(data), seen.predict(cast(data, torch.float32))
    assert {x.dtype for x in found} == {torch.float32}
    assert torch.allclose(found.measurements.double(), exact.measurements, rtol=2e-3, atol=2e-3)


@SENSORS
def test_float32_windows_are_evaluated(seen: Model) -> None:
    """Errors, energies and certificates come out as in float64, to its rounding."""
    data = windows(horizon=25)
    exact, found = (evaluate({"m": seen}, d, resamples=10).scores["m"] for d in (data, cast(data, torch.float32)))
    assert found.mae.value == pytest.approx(exact.mae.value, rel=0.02)
    assert found.examination.force_share == pytest.approx(exact.examination.force_share, rel=0.02)


@SENSORS
def test_float32_windows_are_simulated_in_float32(seen: Model) -> None:
    """The simulation error follows the windows' dtype; solvers still get float64 vectors."""
    data = windows(horizon=25)
    free = [*seen.dynamics.baseline.parameters.free(["inertia", "viscous"]), *seen.sensor.parameters]
    exact, found = (SimulationError(dynamics=seen.dynamics, sensor=seen.sensor, windows=d, free=free, weights=True,
                                    start_std=[0.01, 0.01]) for d in (data, cast(data, torch.float32)))
    z = exact.initial()
    assert {x.dtype for x in found.simulate(torch.tensor(z[None]))} == {torch.float32}
    assert found(z).dtype == found.jacobian(z).dtype == "float64"
    assert abs(found(z) - exact(z)).max() < 0.2
    assert abs(found.jacobian(z) - exact.jacobian(z)).max() < 0.02 * abs(exact.jacobian(z)).max()


@SENSORS
def test_everything_is_made_where_the_windows_are(seen: Model) -> None:
    """Another default device changes nothing: no tensor is made without the data's."""
    data = windows(horizon=25)
    free = [*seen.dynamics.baseline.parameters.free(["inertia"]), *seen.sensor.parameters]
    problem = SimulationError(dynamics=seen.dynamics, sensor=seen.sensor, windows=data, free=free, weights=True, start_std=[0.01, 0.01])
    z = problem.initial()
    expected = seen.predict(data), problem(z), evaluate({"m": seen}, data, resamples=10).scores["m"]
    with torch.device("meta"):
        found = seen.predict(data), problem(z), evaluate({"m": seen}, data, resamples=10).scores["m"]
    assert torch.equal(found[0].measurements, expected[0].measurements)
    assert (found[1] == expected[1]).all()
    assert found[2].examination.force_share == expected[2].examination.force_share


def test_windows_may_live_on_any_device(device: torch.device) -> None:
    """Prediction, error and evaluation come from where the data is."""
    data, seen = windows(horizon=25), replace(PLAIN, sensor=FILTERED)
    exact = evaluate({"m": seen}, data, resamples=10).scores["m"]
    moved = Windows(**{f.name: x.to(device) if isinstance(x := getattr(data, f.name), torch.Tensor) else x for f in fields(data)})
    there = replace(seen, dynamics=model(TRUE, stribeck(0.3)).dynamics.with_values(seen.dynamics.values).to(device))
    assert there.predict(moved).measurements.device.type == device.type
    assert evaluate({"m": there}, moved, resamples=10).scores["m"].mae.value == pytest.approx(exact.mae.value)
