"""The multi-step error and its Jacobian against autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import log, random_states, randomise, residual, system

from residual_mbrl.baselines import Parameters
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.effects import Bias, Delay
from residual_mbrl.errors import ModelError
from residual_mbrl.physics.pendulum import PARAMETERS, Pendulum
from residual_mbrl.rollouts import rollout
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.simulation_error import SimulationError
from residual_mbrl.windows import Windows, cut_windows

DT, STEPS, LOGS = 0.02, 12, 3
PRIORED = Parameters(*PARAMETERS).replaced(inertia={"prior_std": 0.2}, gravity_moment={"prior_std": 1.0})
BASELINE = Pendulum(PRIORED.replaced(viscous={"nominal": 0.3}), dt=DT)
SENSOR = Sensor(space=BASELINE.space, columns=(Column(name="q", source="angle", noise=0.01, effects=(Bias(0.05), Delay(0.013))),
                                               Column(name="dq", source="rate", noise=0.1)))


def _windows(missing: bool = True) -> Windows:
    """Three logs of the pendulum seen through its sensor, with a sample missing."""
    dynamics = ResidualDynamics(BASELINE, values={"inertia": 1.2, "viscous": 0.4})
    x = random_states(BASELINE, LOGS, seed=2) / 3
    u = torch.randn(LOGS, STEPS, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    time = DT * torch.arange(STEPS + 1, dtype=torch.float64).expand(LOGS, -1)
    y = SENSOR.measure(rollout(dynamics, x, u), time, DT)
    y[1, 5, 0] = torch.nan if missing else 0.0
    return cut_windows([log({"q": m[:, 0].numpy(), "dq": m[:, 1].numpy()}, {"torque": np.append(a[:, 0].numpy(), 0)}, dt=DT, missing=True)
                        for m, a in zip(y, u, strict=True)], DT)


def _error(*, weights: bool = False, starts: bool = False, chunk: int = 4096) -> SimulationError:
    free = [BASELINE.parameters[n] for n in ("inertia", "gravity_moment", "viscous")] + list(SENSOR.parameters)
    residuals = [randomise(residual("unstructured", BASELINE), scale=0.3)] if weights else []
    return SimulationError(dynamics=ResidualDynamics(BASELINE, residuals), sensor=SENSOR, windows=_windows(), free=free, weights=weights,  # type: ignore[arg-type]
                           start_std=[0.02, 0.2] if starts else None, step=1e-4, chunk=chunk)


def _away(error: SimulationError) -> np.ndarray:
    return error.initial() + np.random.default_rng(0).uniform(0.02, 0.1, error.length)


@pytest.mark.parametrize(("weights", "starts"), [(False, False), (True, False), (False, True), (True, True)])
def test_jacobian_is_autograds(weights, starts):
    """Parameters, sensor effects, weights and first states: central differences agree with reverse mode through the simulation."""
    error = _error(weights=weights, starts=starts)
    z = _away(error)
    exact = torch.func.jacrev(lambda z: error.residuals(z.unsqueeze(0))[0])(torch.tensor(z)).detach().numpy()
    found = error.jacobian(z)
    assert found.shape == exact.shape == (len(error(z)), error.length)
    assert np.abs(found - exact).max() < 1e-5 * np.abs(exact).max()


def test_perfect_model_has_no_error():
    """At the truth nothing but the priors remains."""
    error = _error()
    z = error.initial()
    for i, p in enumerate(error.free):
        z[i] = ({"inertia": 1.2, "viscous": 0.4}.get(p.name, p.nominal) - p.nominal) / p.scale
    start = error.windows.measurements[:, 0]
    assert bool(torch.isfinite(start).all())
    exact = SimulationError(dynamics=error.dynamics, sensor=Sensor(space=BASELINE.space, columns=SENSOR.columns), windows=error.windows,
                            free=error.free, start_std=[0.02, 0.2], step=1e-4)
    from scipy.optimize import least_squares

    solved = least_squares(exact, exact.initial(), jac=exact.jacobian, bounds=exact.bounds())
    assert np.sqrt(np.mean(solved.fun[: exact.rows()] ** 2)) < 0.2


def test_missing_samples_are_no_rows():
    """There is one row for every recorded sample, then priors, then first states."""
    error = _error(starts=True)
    assert error.rows() == LOGS * (STEPS + 1) * 2 - 1
    assert len(error(error.initial())) == error.rows() + 2 + 2 * LOGS


def test_prior_rows_are_deviations_in_standard_deviations():
    """A parameter at one standard deviation from its nominal value has error one, and its slope is its own alone."""
    error = _error()
    z = error.initial()
    z[0] = 0.2 / error.free[0].scale
    assert error(z)[error.rows() :] == pytest.approx([1.0, 0.0])
    prior = error.jacobian(z)[error.rows() :]
    assert prior == pytest.approx(np.eye(2, error.length) * [[error.free[0].scale / 0.2], [error.free[1].scale / 1.0]])


def test_first_states_act_on_their_own_window():
    """A column of a window's first state is zero in the rows of others, and one in its own prior row."""
    error = _error(starts=True)
    n, _, s = error.sizes
    jacobian = error.jacobian(_away(error))
    owner = torch.arange(LOGS)[:, None, None].expand(error.windows.recorded.shape)[error.windows.recorded].numpy()
    for b in range(LOGS):
        columns = jacobian[: error.rows(), n + s * b : n + s * (b + 1)]
        assert np.abs(columns[owner != b]).max() == 0.0
        assert (np.abs(columns[owner == b]).max(0) > 0.1).all()
    assert np.array_equal(jacobian[-s * LOGS :, n:], np.eye(s * LOGS))


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_chunks_change_nothing(chunk):
    """Any bound on memory gives the same Jacobian."""
    whole, chunked = _error(weights=True, starts=True), _error(weights=True, starts=True, chunk=chunk)
    z = _away(whole)
    assert np.allclose(chunked.jacobian(z), whole.jacobian(z), rtol=1e-9, atol=1e-9)


def test_z_goes_into_a_model_and_back():
    """Values and weights written into a copy give the same z, and the model itself stays as it was."""
    error = _error(weights=True)
    z = _away(error)
    before = {n: w.clone() for n, w in error.dynamics.state_dict().items()}
    model, sensor_values = error.model(z)
    assert sensor_values.keys() == {"q.bias", "q.delay"}
    again = SimulationError(dynamics=model, sensor=SENSOR, windows=error.windows, free=error.free, weights=True)
    n = error.sizes[0]
    assert again.initial()[[0, 1, 2, *range(n, error.length)]] == pytest.approx(z[[0, 1, 2, *range(n, error.length)]])
    assert all(torch.equal(w, before[k]) for k, w in error.dynamics.state_dict().items())


def test_slopes_at_a_bound_are_one_sided():
    """A parameter at its bound is not moved beyond it."""
    error = _error()
    z = error.initial()
    z[2] = error.bounds()[0][2]
    exact = torch.func.jacrev(lambda z: error.residuals(z.unsqueeze(0))[0])(torch.tensor(z)).numpy()
    assert np.abs(error.jacobian(z) - exact).max() < 1e-2 * np.abs(exact).max()


def test_diverged_simulation_has_a_finite_error():
    """What is not finite counts as a large error."""
    error = _error()
    z = torch.tensor(error.initial())[None].repeat(2, 1)
    z[0, 1] = 1e300
    values = error.residuals(z)
    assert bool(torch.isfinite(values[:, : error.rows()]).all())


def test_nothing_to_estimate_is_refused():
    """Without unknowns there is no problem to solve."""
    with pytest.raises(ModelError, match="no free parameters, no residual weights and no first states"):
        SimulationError(dynamics=ResidualDynamics(BASELINE), sensor=SENSOR, windows=_windows(), free=[])


def test_mismatches_are_refused():
    """Another rate, or another number of columns, is named."""
    with pytest.raises(ModelError, match=r"the model steps 0.01 s, the windows 0.02 s"):
        SimulationError(dynamics=ResidualDynamics(system("pendulum")), sensor=SENSOR, windows=_windows(), free=list(PARAMETERS))
    with pytest.raises(ValueError, match="the sensor has 1 columns, the logs have 2"):
        one = Sensor(space=BASELINE.space, columns=SENSOR.columns[:1])
        SimulationError(dynamics=ResidualDynamics(BASELINE), sensor=one, windows=_windows(), free=list(PARAMETERS))


def test_steps_that_spoil_the_simulation_are_taken_again():
    """A step of half a scale ends as exact as a small one where the noise is small; where it is large the step stays as it is."""
    from dataclasses import replace

    def seen(factor):
        return replace(SENSOR, columns=tuple(replace(c, noise=factor * c.noise) for c in SENSOR.columns))

    exact = replace(_error(starts=True), sensor=seen(1e-3))
    z, rows = _away(exact), exact.rows()
    small, coarse = exact.jacobian(z), replace(exact, step=0.5)
    found = coarse.derivatives(z, np.zeros(len(small)))  # as where the errors are nothing but noise
    shared = found.shared.shape[1]
    assert np.linalg.norm(found.shared[:rows] - small[:rows, :shared]) < 1e-3 * np.linalg.norm(small[:rows, :shared])
    assert found.steps.max() < 0.1
    again = coarse.derivatives(z, np.zeros(len(small)), steps=found.steps)
    moved = again.steps * np.sqrt(np.square(np.concatenate([again.shared[:rows], again.own], 1)).mean(0))
    assert moved == pytest.approx(1.0, rel=0.01)
    noisy = replace(coarse, sensor=seen(1e6))
    assert (noisy.derivatives(z, noisy(z)).steps == 0.5).all()
