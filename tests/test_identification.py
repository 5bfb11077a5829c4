"""Identification recovers what simulated plants really are, with intervals that hold, and says when it cannot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from estimation_problem import (
    DT,
    NOISE,
    SERVO_TRUTH,
    TRUTH,
    pendulum,
    pendulum_logs,
    renewed,
    sensor,
    servo,
    servo_logs,
)
from scipy.stats import binom

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.effects import Bias, Delay, Drift, Scale
from residual_mbrl.errors import ModelError
from residual_mbrl.identification import IdentifyOptions, identify
from residual_mbrl.status import Status

QUICK = IdentifyOptions(candidates=8, starts=1, iterations=15)
ONE = IdentifyOptions(candidates=1, starts=1, iterations=15, loss="linear")


def found(result):
    return {e.parameter.name: e.value for e in result.estimates}


def within(result, truth, errors=4.0, relative=0.05):
    """Every estimate lies within some standard errors and within five per cent of the truth."""
    for e in result.estimates:
        assert abs(e.value - truth[e.parameter.name]) < errors * e.std, e
        assert e.value == pytest.approx(truth[e.parameter.name], rel=relative), e
    return result


def test_pendulum_is_recovered():
    """Inertia, gravity moment and viscous friction come back from four noisy logs of two seconds."""
    result = within(identify(ResidualDynamics(pendulum()), sensor(), pendulum_logs(), QUICK), TRUTH)
    assert result.status is Status.CONVERGED
    assert result.unidentifiable == ()
    assert found(result) == pytest.approx({n: result.dynamics.values[n] for n in TRUTH})
    assert result.evaluations >= QUICK.candidates
    assert not any(e.at_bound for e in result.estimates)


def test_without_noise_the_truth_comes_back_exactly():
    """With exact logs nothing but rounding and the search's tolerance remains."""
    windows = pendulum_logs(noise=0.0)
    result = identify(ResidualDynamics(pendulum()), sensor(), windows, replace(ONE, iterations=40))
    assert found(result) == pytest.approx(TRUTH, rel=1e-4)


def test_servo_in_closed_loop_is_recovered():
    """Resistance, inertia and three kinds of friction come back from logs made under the servo's own position loop."""
    baseline = servo(*SERVO_TRUTH)
    seen, windows = servo_logs(baseline)
    result = identify(ResidualDynamics(baseline), seen, windows, replace(QUICK, iterations=20, start_std=[0.002, 0.05]))
    assert result.unidentifiable == ()
    for e in result.estimates:
        assert abs(e.value - SERVO_TRUTH[e.parameter.name]) < 4 * e.std, e
    assert found(result)["resistance"] == pytest.approx(3.0, rel=0.05)
    assert found(result)["armature"] == pytest.approx(0.002, rel=0.2)


def test_intervals_cover_at_their_nominal_rate():
    """Of 120 intervals from 40 draws of the noise about 95 % hold the truth."""
    dynamics, seen = ResidualDynamics(pendulum(), values=TRUTH), sensor()
    exact, rng = pendulum_logs(noise=0.0, count=3, steps=24), np.random.default_rng(7)
    options = replace(ONE, start_std=NOISE, iterations=6)
    hits = []
    for _ in range(40):
        noise = torch.tensor(rng.standard_normal(exact.measurements.shape) * NOISE)
        result = identify(dynamics, seen, renewed(exact, exact.measurements + noise), options)
        hits += [e.interval[0] <= TRUTH[e.parameter.name] <= e.interval[1] for e in result.estimates]
    # three intervals of one draw are correlated: the limits are those of 40 independent ones
    low, high = binom.ppf([0.005, 0.995], 40, 0.95) / 40
    assert low <= np.mean(hits) <= high


def test_estimated_first_states_take_the_noise_out_of_the_start():
    """A start read off one noisy sample makes a whole window wrong; estimated within its noise, the parameters are closer."""
    seen = sensor(noise=(0.05, 0.3))
    truth = np.array(list(TRUTH.values()))
    errors = {None: [], (0.05, 0.3): []}
    for seed in range(4):
        windows = pendulum_logs(seed=seed, seen=seen, steps=30)
        for start_std, into in errors.items():
            result = identify(ResidualDynamics(pendulum()), seen, windows, replace(ONE, start_std=start_std))
            into.append((np.array(list(found(result).values())) - truth) / truth)
    as_measured, estimated = (np.sqrt(np.mean(np.square(e))) for e in errors.values())
    assert estimated < 0.6 * as_measured


def test_sensor_effects_are_recovered_with_the_plant():
    """Bias, scale, drift and a delayed command come back together with the physical parameters."""
    seen = sensor(angle=[Bias(lower=-0.2, upper=0.2)], rate=[Scale(), Drift(lower=-0.5, upper=0.5)], torque=[Delay(upper=0.2)])
    values = {"q.bias": 0.07, "dq.scale": 1.15, "dq.drift": -0.06, "torque.delay": 0.08}
    windows = pendulum_logs(seen=seen, values=values, count=6, steps=60)
    result = identify(ResidualDynamics(pendulum()), seen, windows, replace(QUICK, horizons=(20,), start_std=NOISE))
    for e in result.estimates:
        assert abs(e.value - {**TRUTH, **values}[e.parameter.name]) < 4 * e.std, e
    assert found(result)["torque.delay"] == pytest.approx(0.08, rel=0.1)
    assert found(result)["q.bias"] == pytest.approx(0.07, abs=0.01)
    assert result.sensor_values == pytest.approx({n: found(result)[n] for n in values})
    ignored = identify(ResidualDynamics(pendulum()), sensor(), windows, replace(QUICK, horizons=(20,), start_std=NOISE))
    assert result.cost < 0.5 * ignored.cost
    assert abs(found(ignored)["inertia"] - 1.2) > 2 * abs(found(result)["inertia"] - 1.2)


def test_robust_loss_ignores_outliers():
    """Some wild samples spoil a least-squares fit and hardly touch a robust one."""
    windows = pendulum_logs()
    rng = np.random.default_rng(3)
    wild = torch.tensor(rng.random(windows.measurements.shape) < 0.04)
    wild[:, 0] = False
    dirty = renewed(windows, torch.where(wild, windows.measurements + 1.5, windows.measurements))
    error = {loss: max(abs(found(identify(ResidualDynamics(pendulum()), sensor(), dirty, replace(QUICK, loss=loss)))[n] / x - 1)
                       for n, x in TRUTH.items()) for loss in ("linear", "soft_l1", "cauchy")}
    assert error["linear"] > 0.1
    assert error["soft_l1"] < 0.08
    assert error["cauchy"] < 0.05


def far_off():
    """A start from which the simulation of five seconds loses phase."""
    return ResidualDynamics(pendulum(gravity_moment={"nominal": 14.0, "upper": 40.0}, inertia={"nominal": 0.5, "upper": 2.0}))


@pytest.mark.parametrize("help_", [{"horizons": (10, 30), "iterations": 25}, {"candidates": 64, "starts": 2, "spread": 1.0}],
                         ids=["growing horizons", "many starts"])
def test_search_gets_past_a_wrong_valley(help_):
    """From far off one search over whole windows stops in a wrong valley; short horizons first, or many starts, get past it."""
    windows = pendulum_logs(steps=100, count=2, noise=0.3)
    direct = identify(far_off(), sensor(), windows, ONE)
    helped = identify(far_off(), sensor(), windows, replace(ONE, **help_))
    assert helped.cost < 0.01 * direct.cost
    assert found(helped) == pytest.approx(TRUTH, rel=0.02)


def test_an_estimate_at_its_bound_says_so():
    """A truth outside the bounds stops the estimate at the bound, which is marked."""
    narrow = pendulum(inertia={"lower": 0.8, "upper": 1.1})
    result = identify(ResidualDynamics(narrow), sensor(), pendulum_logs(), ONE)
    assert {e.parameter.name: e.at_bound for e in result.estimates} == {"inertia": True, "gravity_moment": False, "viscous": False}
    assert found(result)["inertia"] == pytest.approx(1.1, rel=1e-3)


def test_a_prior_holds_what_the_data_do_not_say():
    """Without motion the parameters stay where their priors are."""
    prior = pendulum(gravity_moment={"prior_std": 0.5}, inertia={"prior_std": 0.1}, viscous={"prior_std": 0.1})
    windows = pendulum_logs(count=1, steps=10)
    still = replace(renewed(windows, NOISE[0] * torch.zeros_like(windows.measurements)), actions=0 * windows.actions)
    result = identify(ResidualDynamics(prior), sensor(), still, ONE)
    assert found(result) == pytest.approx({"inertia": 1.0, "gravity_moment": 9.0, "viscous": 0.2}, abs=1e-6)


def test_every_other_sample_gives_the_same_answer():
    """Thinning the error changes estimates by less than their intervals."""
    whole, thinned = (identify(ResidualDynamics(pendulum()), sensor(), pendulum_logs(), replace(ONE, every=k)) for k in (1, 2))
    for a, b in zip(whole.estimates, thinned.estimates, strict=True):
        assert abs(a.value - b.value) < 3 * b.std


def test_a_seed_gives_one_answer():
    """The same seed gives the same numbers to the last bit; another seed screens other starts."""
    windows, calls = pendulum_logs(count=2), []
    for seed in (4, 4, 5):
        result = identify(ResidualDynamics(pendulum()), sensor(), windows, replace(QUICK, starts=2, seed=seed, iterations=3))
        calls.append((result.z.tolist(), result.cost, [e.std for e in result.estimates]))
    assert calls[0] == calls[1]
    assert calls[0] != calls[2]


@pytest.mark.parametrize("moment", range(1, 8))
def test_resumed_search_equals_an_uninterrupted_one(tmp_path, moment):
    """Stopped by Ctrl-C at any moment, the search goes on to the same result to the last bit."""
    options = replace(QUICK, starts=3, horizons=(10,), iterations=4)
    arguments = (ResidualDynamics(pendulum()), sensor(), pendulum_logs(count=2), options)
    whole, calls = identify(*arguments), []

    def interrupt(phrase, done):
        calls.append((phrase, done))
        if len(calls) == moment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        identify(*arguments, checkpoint=tmp_path / "search.npz", progress=interrupt)
    begun = sum("refining" in phrase for phrase, _ in calls[:-1])
    assert (tmp_path / "search.npz").exists() == (begun >= 2)
    resumed = identify(*arguments, checkpoint=tmp_path / "search.npz")
    assert np.array_equal(resumed.z, whole.z)
    assert (resumed.cost, resumed.status, resumed.unidentifiable) == (whole.cost, whole.status, whole.unidentifiable)
    assert [(e.value, e.std) for e in resumed.estimates] == [(e.value, e.std) for e in whole.estimates]
    assert [f for _, f in calls] == sorted(f for _, f in calls)


@pytest.mark.parametrize("change", ["data", "options", "parameters", "weights", "residual", "rate of substeps"])
def test_a_checkpoint_of_another_problem_is_refused(tmp_path, change):
    """Other data, options or model than the checkpoint's are noticed."""
    from residual_mbrl.residuals import Dissipative, Feature

    def problem(other=None):
        residual = Dissipative(nv=1, features=[Feature(source="rate")], bound=0.3 if other == "residual" else 0.2, seed=0)
        if other == "weights":
            with torch.no_grad():
                next(residual.parameters()).add_(0.1)
        baseline = pendulum(inertia={"upper": 5.0}) if other == "parameters" else pendulum()
        if other == "rate of substeps":
            baseline = type(baseline)(baseline.parameters, dt=DT, substeps=2, integrator="semi_implicit")
        options = replace(ONE, iterations=2, f_scale=2.0 if other == "options" else 1.0)
        return ResidualDynamics(baseline, [residual]), sensor(), pendulum_logs(count=1, steps=12, seed=1 if other == "data" else 0), options

    identify(*problem(), checkpoint=tmp_path / "search.npz")
    identify(*problem(), checkpoint=tmp_path / "search.npz")
    with pytest.raises(ModelError, match=r"search\.npz: checkpoint of another model, data or options"):
        identify(*problem(change), checkpoint=tmp_path / "search.npz")


def test_nothing_free_is_refused():
    """A model without free parameters says what to do."""
    fixed = pendulum(**{n: {"free": False} for n in TRUTH})
    with pytest.raises(ModelError, match=r"nothing to identify: .* name some with free="):
        identify(ResidualDynamics(fixed), sensor(), pendulum_logs(count=1, steps=4), ONE)


def test_a_pattern_that_matches_nothing_is_refused():
    """A mistyped name is named, with those that exist, sensor effects among them."""
    with pytest.raises(ModelError, match=r"'inertai' matches no parameter; there are .*'inertia'.*'q\.bias'"):
        identify(ResidualDynamics(pendulum()), sensor(angle=[Bias()]), pendulum_logs(count=1, steps=4), replace(ONE, free=["inertai"]))


def test_patterns_choose_what_is_free():
    """Names and globs free exactly what they match, marked free or not, of plant and sensor."""
    seen = sensor(angle=[Bias(free=False)], rate=[Bias()])
    windows = pendulum_logs(count=1)
    result = identify(ResidualDynamics(pendulum()), seen, windows, replace(ONE, free=["coul*", "q.*", "inertia"], iterations=2))
    assert list(found(result)) == ["inertia", "coulomb", "q.bias"]


def test_another_rate_is_refused():
    """A model that steps at another rate than the data is refused with both rates."""
    with pytest.raises(ModelError, match=r"the model steps 0\.02 s, the windows 0\.05 s"):
        identify(ResidualDynamics(pendulum(dt=0.02)), sensor(), pendulum_logs(count=1, steps=4), ONE)


def test_another_number_of_columns_is_refused():
    """A sensor with fewer columns than the logs is refused with both numbers."""
    seen = sensor()
    with pytest.raises(ValueError, match="the sensor has 1 columns, the logs have 2"):
        identify(ResidualDynamics(pendulum()), replace(seen, columns=seen.columns[:1]), pendulum_logs(count=1, steps=4), ONE)


def test_a_plant_that_cannot_be_simulated_is_a_status():
    """A simulation that is not finite anywhere ends with a status, not an exception."""
    windows = pendulum_logs(count=1, steps=8)
    broken = renewed(windows, torch.where(torch.arange(9)[:, None] == 0, 1e300, windows.measurements))
    result = identify(ResidualDynamics(pendulum()), sensor(), broken, replace(ONE, iterations=2))
    assert result.status is Status.DIVERGED


FRICTION = {"cart_mass": 1.4, "pole_mass": 0.12, "length": 0.33, "cart_viscous": 0.3, "pole_viscous": 0.0085}


def swung(seconds):
    """A cart-pole that swings at about its own frequency, with friction of which its data sheet says nothing, and its noise."""
    from residual_mbrl.physics.cartpole import CartPole
    from residual_mbrl.rollouts import rollout
    from residual_mbrl.sensors import state_sensor
    from residual_mbrl.trajectories import Trajectory
    from residual_mbrl.windows import cut_windows

    dt, noise = 0.02, (1e-3, 2e-3, 1e-2, 2e-2)
    time = dt * np.arange(round(seconds / dt) + 1)
    actions = sum(1.5 * np.sin(2 * np.pi * f * time[:-1] + f) for f in (0.7, 0.85, 1.0))[:, None]
    plant = ResidualDynamics(CartPole(dt=dt), values=FRICTION)
    states = rollout(plant, torch.zeros(4).double(), torch.tensor(actions)).numpy()
    assert 0.3 < np.abs(states[:, 1]).max() < 1.5
    measured = states + np.random.default_rng(0).standard_normal(states.shape) * noise
    names, space = plant.space.state_names, plant.space
    log = Trajectory(name="swing", command_time=time[:-1], commands=actions, command_names=space.action, measurement_time=time,
                     measurements=measured, measurement_names=names, units=dict(space.units))
    return ResidualDynamics(CartPole(dt=dt)), state_sensor(space, noise), cut_windows([log], dt), noise


@pytest.mark.parametrize("seconds", [2.0, 6.0, 12.0])
def test_small_friction_is_found_in_a_long_record(seconds):
    """Though its scale comes from bounds that are thousands of times as wide: a difference step of that size would spoil the record."""
    model, seen, windows, noise = swung(seconds)
    result = identify(model, seen, windows, IdentifyOptions(free=list(FRICTION), candidates=1, starts=1, loss="linear", start_std=noise,
                                                            horizons=[25, 50]))
    assert result.status is Status.CONVERGED
    assert result.cost < 0.6 * 4 * windows.horizon  # half a unit a sample is noise alone
    assert [e.value for e in result.estimates] == pytest.approx(list(FRICTION.values()), rel=0.1)
    for e in result.estimates:
        assert abs(e.value - FRICTION[e.parameter.name]) < 5 * e.std
