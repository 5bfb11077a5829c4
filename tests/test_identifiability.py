"""What data say about parameters: standard errors against linear theory, and the combinations that they cannot tell apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from estimation_problem import SERVO_TRUTH, TRUTH, logs, pendulum, pendulum_logs, renewed, sensor, servo, servo_logs

from residual_mbrl.baselines import Parameter
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.effects import Bias
from residual_mbrl.identifiability import Estimate, assess
from residual_mbrl.identification import IdentifyOptions, identify
from residual_mbrl.physics.double_pendulum import PARAMETERS as DOUBLE
from residual_mbrl.physics.double_pendulum import DoublePendulum
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.simulation_error import SimulationError

ONE = IdentifyOptions(candidates=1, starts=1, iterations=8, loss="linear")


def problem(baseline=None, seen=None, windows=None, free=None, values=TRUTH, **options):
    baseline, seen = baseline or pendulum(), seen or sensor()
    free = [p for p in (*baseline.parameters, *seen.parameters) if (p.free if free is None else p.name in free)]
    return SimulationError(dynamics=ResidualDynamics(baseline, values=values), sensor=seen, windows=windows or pendulum_logs(),
                           free=free, **options)


def known(error):
    return assess(error, error.initial())


def test_standard_errors_are_those_of_linear_theory():
    """With white noise of known size the covariance is that of least squares, σ² (JᵀJ)⁻¹, from autograd's Jacobian."""
    seen = sensor(noise=(0.01, np.inf))
    windows = pendulum_logs(noise=0.0, steps=60, seen=sensor())
    noise = 0.01 * torch.randn(windows.measurements.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise[:, 0] = 0
    error = problem(seen=seen, windows=renewed(windows, windows.measurements + noise))
    z = error.initial()
    jacobian = torch.func.jacrev(lambda x: error.residuals(x.unsqueeze(0))[0])(torch.tensor(z)).detach().numpy()[: error.rows()]
    expected = np.sqrt(np.diag(np.linalg.inv(jacobian.T @ jacobian))) * [p.scale for p in error.free]
    found = known(error)
    # σ is estimated from 240 errors, and their chance correlation in time can only widen the intervals
    ratio = np.array([e.std for e in found.estimates]) / expected
    assert (ratio > 0.9).all()
    assert (ratio < 1.35).all()
    inverse = np.linalg.inv(jacobian.T @ jacobian)
    np.testing.assert_allclose(found.correlation, inverse / np.sqrt(np.outer(np.diag(inverse), np.diag(inverse))), atol=1e-3)
    assert found.condition == pytest.approx(np.linalg.cond(jacobian), rel=1e-3)


def test_errors_that_last_widen_intervals():
    """Errors that move slowly hold less information than their number: eight samples a piece, about √8 wider intervals."""
    windows = pendulum_logs(noise=0.0, steps=160)
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(4, 161, 2, dtype=torch.float64, generator=generator)
    held = torch.randn(4, 21, 2, dtype=torch.float64, generator=generator).repeat_interleave(8, 1)[:, :161]
    std = []
    for noise in (white, held):
        noise[:, 0] = 0
        error = problem(windows=renewed(windows, windows.measurements + noise * torch.tensor([0.01, 0.03])))
        std.append(np.array([e.std for e in known(error).estimates]))
    ratio = std[1] / std[0]
    assert (ratio > 0.7 * np.sqrt(8)).all()
    assert (ratio < 1.4 * np.sqrt(8)).all()


def test_four_times_the_data_halve_the_errors():
    """Standard errors fall with the square root of the number of logs."""
    few, many = (np.array([e.std for e in known(problem(windows=pendulum_logs(count=n))).estimates]) for n in (8, 32))
    assert np.median(few / many) == pytest.approx(2.0, rel=0.25)


def test_correlation_is_a_correlation():
    """Ones on the diagonal, symmetric, within [-1, 1]; inertia and gravity moment go together."""
    found = known(problem())
    assert np.allclose(np.diag(found.correlation), 1.0)
    assert np.allclose(found.correlation, found.correlation.T)
    assert np.abs(found.correlation).max() <= 1.0
    assert found.correlation[0, 1] > 0.5


def test_a_servos_torque_scale_is_a_gauge():
    """With its load's mass free, a servo's logs cannot tell all torques from all inertias, and the report names the mass."""
    baseline = servo(*SERVO_TRUTH, "load_mass")
    seen, windows = servo_logs(baseline)
    found = known(problem(baseline, seen, windows, values=SERVO_TRUTH))
    assert len(found.unidentifiable) == 1
    assert found.unidentifiable[0].startswith("only together: ")
    assert "kg of load_mass" in found.unidentifiable[0]
    assert "Ω of resistance" in found.unidentifiable[0]
    assert found.condition > 1e6
    std = {e.parameter.name: e.std for e in found.estimates}
    assert std["load_mass"] > 100 * baseline.parameters["load_mass"].nominal
    fixed = known(problem(servo(*SERVO_TRUTH), seen, windows, values=SERVO_TRUTH))
    assert fixed.unidentifiable == ()


def test_a_double_pendulum_without_torque_shows_only_ratios():
    """In free motion inertias, coupling, moments and damping scale together; with the first inertia fixed all are known."""
    def found(*, free):
        baseline = DoublePendulum(DOUBLE.replaced(inertia1={"free": free}), dt=0.02, integrator="semi_implicit")
        seen = Sensor(space=baseline.space, columns=tuple(Column(name=n, source=n, noise=0.003) for n in baseline.space.state_names))
        truth = {"viscous1": 0.05, "viscous2": 0.02}
        windows = logs(ResidualDynamics(baseline, values=truth), seen, np.zeros((4, 60, 2)))
        return known(problem(baseline, seen, windows, values=truth))

    gauge = found(free=True)
    assert len(gauge.unidentifiable) == 1
    assert gauge.unidentifiable[0].startswith("only together: ")
    assert sum(n in gauge.unidentifiable[0] for n in ("inertia1", "gravity_moment1", "gravity_moment2", "coupling", "inertia2")) >= 3
    assert found(free=False).unidentifiable == ()


def test_the_named_combination_changes_no_prediction():
    """Moving along the named combination leaves the simulation as it was; moving one of its parameters does not."""
    baseline = servo("load_mass", "resistance", "armature", "viscous", "coulomb")
    seen, windows = servo_logs(baseline, count=2)
    error = problem(baseline, seen, windows, values=SERVO_TRUTH)
    s, vt = np.linalg.svd(error.jacobian(error.initial())[: error.rows()], full_matrices=False)[1:]
    z, step = error.initial(), 0.02 * vt[-1]
    assert s[-1] < 0.01 * s[-2]
    moved, alone = error(z + step) - error(z), error(z + np.where(np.arange(5) == 0, step, 0)) - error(z)
    assert np.abs(moved).max() < 0.02 * np.abs(alone).max()


def test_a_parameter_without_effect_is_named_alone():
    """Dry friction while switched off says nothing in logs that are never switched off; its error is infinite."""
    baseline = servo("resistance", "load_friction_off", "viscous")
    seen, windows = servo_logs(baseline, count=2, steps=60)
    found = known(problem(baseline, seen, windows, values=SERVO_TRUTH))
    assert found.unidentifiable == ("load_friction_off: the data do not determine it",)
    std = {e.parameter.name: e.std for e in found.estimates}
    assert std["load_friction_off"] == np.inf
    assert 0 < std["resistance"] < 1.0
    assert found.condition == np.inf
    assert np.isfinite(found.correlation).all()


def test_a_known_torque_fixes_the_gauge():
    """A pendulum that coasts shows only ratios of inertia, moment and damping; a measured torque gives each."""
    coasting = logs(ResidualDynamics(pendulum(), values=TRUTH), sensor(), np.zeros((4, 40, 1)))
    found = known(problem(windows=coasting))
    assert len(found.unidentifiable) == 1
    assert all(n in found.unidentifiable[0] for n in ("inertia", "gravity_moment"))
    assert known(problem()).unidentifiable == ()


def test_a_log_at_rest_determines_nothing():
    """A pendulum that hangs still under no torque names every parameter, with infinite errors and no warning."""
    windows = logs(ResidualDynamics(pendulum(), values=TRUTH), sensor(), np.zeros((1, 10, 1)), noise=0.0, reach=0.0)
    found = known(problem(windows=windows))
    assert len(found.unidentifiable) == len(found.estimates)
    assert all(e.std == np.inf for e in found.estimates)
    assert found.condition == np.inf


def test_fewer_samples_than_parameters_determine_not_all():
    """Two numbers cannot fix four unknowns: what they leave open is named."""
    windows = pendulum_logs(count=1, steps=2)
    seen = sensor(angle=[Bias()], noise=(0.01, np.inf))
    found = known(problem(seen=seen, windows=windows))
    assert len(found.unidentifiable) >= 1
    assert any(not np.isfinite(e.std) for e in found.estimates)


def test_first_states_cost_information():
    """Parameters are less certain when the first states have to be found as well."""
    sure, unsure = (known(problem(start_std=std)) for std in (None, [0.01, 0.03]))
    assert all(b.std > a.std for a, b in zip(sure.estimates, unsure.estimates, strict=True))
    assert len(unsure.estimates) == 3
    assert unsure.correlation.shape == (3, 3)


def test_interval_is_two_standard_errors():
    """The 95 % interval of an estimate."""
    p = Parameter(name="a", nominal=1.0, lower=0.0, upper=2.0)
    assert Estimate(parameter=p, value=1.0, std=0.5, at_bound=False).interval == (1 - 0.98, 1 + 0.98)
    assert Estimate(parameter=p, value=1.0, std=np.inf, at_bound=False).interval == (-np.inf, np.inf)


def test_identify_reports_the_verdict():
    """The combination that the data cannot tell apart stands in the result of the search."""
    baseline = servo(*SERVO_TRUTH, "load_mass")
    seen, windows = servo_logs(baseline, count=2, steps=60)
    result = identify(ResidualDynamics(baseline), seen, windows, ONE)
    assert len(result.unidentifiable) >= 1
    assert "load_mass" in " ".join(result.unidentifiable)
