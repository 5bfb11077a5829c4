"""Online adaptation against finite differences, a least-squares fit of everything, and planted changes of a craft."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import randomise
from scipy.optimize import least_squares
from uncertainty_problem import force, logs, model, windows

from residual_mbrl.adaptation import Estimate, OnlineAdaptation, fine_tune, validation_error
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.fitting import FitOptions
from residual_mbrl.residuals import Feature, Unstructured
from residual_mbrl.rollouts import rollout
from residual_mbrl.sensitivities import StepSensitivity
from residual_mbrl.simulated_flight import DT, SPREADS, fly, measured, quadrotor

PLANTED = {"mass": 0.045 * 1.2, "command_gain": 0.85}
SECONDS = 5.0


def corrected(hidden: tuple[int, ...] = (6,)) -> ResidualDynamics:
    """A craft with a learned force."""
    learned = Unstructured(nv=6, features=[Feature(source=n) for n in ("velocity", "action")], sizes=[6, 4], bound=0.01, hidden=hidden)
    return ResidualDynamics(quadrotor(), [randomise(learned, scale=0.5)])


def test_sensitivity_is_that_of_differences():
    """By the state on its tangent, an attitude among it, by parameters and by the last layer."""
    dynamics, space = corrected(), quadrotor().space
    names = ["mass", "command_gain", "drag_x"]
    step = StepSensitivity(dynamics, names, weights=True, rows=range(space.ndx))
    states, commands = fly(0.3, {}, seed=1)
    x, u = states[0, 20], commands[0, 20]
    x[3:7] *= -1
    found = step(x, u)
    z = step.unknowns

    def after(unknowns, dx):
        moved = space.integrate(torch.from_numpy(x), torch.from_numpy(dx))
        with torch.no_grad():
            out = step.model(unknowns, dynamics).step(moved, torch.from_numpy(u))
        return space.difference(out, torch.from_numpy(found.after)).numpy()

    zero = np.zeros(space.ndx)
    assert np.abs(after(z, zero)).max() < 1e-12
    by_state = np.stack([(after(z, 1e-6 * e) - after(z, -1e-6 * e)) / 2e-6 for e in np.eye(space.ndx)], 1)
    by_unknowns = np.stack([(after(z + 1e-6 * e, zero) - after(z - 1e-6 * e, zero)) / 2e-6 for e in np.eye(len(z))], 1)
    assert np.abs(found.by_state - by_state).max() < 1e-6 * np.abs(by_state).max()
    assert np.abs(found.by_unknowns - by_unknowns).max() < 1e-6 * np.abs(by_unknowns).max()


def test_last_layer_of_a_linear_plant_is_recursive_least_squares():
    """Without forgetting and with a tanh that is nearly straight, the estimate is that of all rows in one ridge regression."""
    dynamics = model().dynamics.with_residuals([force(hidden=())])
    log = logs(count=1, steps=60, noise=(0.0, 0.0))[0]
    adaptation = OnlineAdaptation(dynamics, [], noise=[10.0, 0.01], weights=True, weight_std=1e-3, forgetting=1.0)
    x, u = log.measurements, log.commands
    estimate = adaptation.begin(x[0], u[0])
    step = StepSensitivity(dynamics, [], weights=True, rows=[0, 1])
    rows, targets = [], []
    for t in range(60):
        estimate = adaptation.update(estimate, u[t], x[t + 1])
        said = step(x[t], u[t])
        rows.append(said.by_unknowns / [[10.0], [0.01]])
        targets.append((x[t + 1] - said.after) / [10.0, 0.01])
    a, b = np.concatenate(rows), np.concatenate(targets)
    expected = np.linalg.solve(a.T @ a + 1e6 * np.eye(a.shape[1]), a.T @ b)
    assert np.allclose(estimate.unknowns, expected, rtol=0.02, atol=1e-3 * np.abs(expected).max())


def adapted(seed: int = 0) -> tuple[OnlineAdaptation, Estimate]:
    """A craft that is heavier and weaker than its model, followed for five seconds from noisy states without rotor speeds."""
    states, commands = fly(SECONDS, PLANTED, seed=seed)
    shown = measured(states, seed)[0]
    dynamics = ResidualDynamics(quadrotor())
    noise = [*np.maximum(math.sqrt(2) * SPREADS, 0.002), *[math.inf] * 4]
    free = [dynamics.baseline.parameters[n] for n in PLANTED]
    adaptation = OnlineAdaptation(dynamics, free, noise=noise)
    start = shown[0].copy()
    start[13:] = commands[0, 0]
    estimate = adaptation.begin(start, commands[0, 0])
    for t in range(commands.shape[1]):
        lost = np.full(17, np.nan) if t % 50 == 7 else shown[t + 1]
        estimate = adaptation.update(estimate, commands[0, t], lost)
    return adaptation, estimate


def errors(values, states, shown, commands, horizon=50):
    """Open-loop errors of velocities over windows of half a second, rotors started by the commands before."""
    p = {n: torch.tensor(x, dtype=torch.float64) for n, x in zip(PLANTED, values, strict=True)}
    starts = range(50, commands.shape[0] - horizon, horizon)
    x = np.stack([shown[s] for s in starts])
    lag = np.exp(-DT / 0.03) ** np.arange(30)
    past = np.stack([(lag[:, None] * commands[s - 30 : s][::-1]).sum(0) / lag.sum() for s in starts])
    x[:, 13:] = values[1] * past
    u = np.stack([commands[s : s + horizon] for s in starts])
    with torch.no_grad():
        found = rollout(ResidualDynamics(quadrotor()), torch.from_numpy(x), torch.from_numpy(u), p).numpy()
    truth = np.stack([states[s : s + horizon + 1] for s in starts])
    return (found - truth)[:, 1:, 7:10]


def test_heavier_and_weaker_craft_is_found_within_five_seconds():
    """Open-loop error on another flight comes within a tenth of that of a fit of everything to the same five seconds."""
    states, commands = fly(SECONDS, PLANTED)
    shown = measured(states)[0]
    fitted = least_squares(lambda v: errors(v, shown, shown, commands[0]).ravel() / 0.02, [0.045, 1.0], x_scale=[0.01, 0.1], diff_step=1e-4)
    adaptation, estimate = adapted()
    other, others = fly(8.0, PLANTED, seed=5)
    score = {n: np.abs(errors(v, other[0], measured(other, 5)[0], others[0])).mean()
             for n, v in (("nominal", [0.045, 1.0]), ("refit", fitted.x), ("adapted", estimate.unknowns))}
    assert score["adapted"] <= 1.1 * score["refit"]
    assert score["adapted"] < 0.1 * score["nominal"]
    assert adaptation.model(estimate).values["mass"] == pytest.approx(PLANTED["mass"], rel=0.05)


def test_lost_packets_carry_the_state_on():
    """Nothing is learned from a row that is not finite, and the model's state goes on."""
    dynamics = model().dynamics.with_residuals([])
    free = dynamics.baseline.parameters.free(["viscous"])
    adaptation = OnlineAdaptation(dynamics, free, noise=[0.01, 0.01])
    estimate = adaptation.begin(np.array([1.0, 0.0]), np.zeros(dynamics.space.nu))
    after = adaptation.update(estimate, np.zeros(dynamics.space.nu), np.array([np.nan, 1.0]))
    assert (after.unknowns == estimate.unknowns).all()
    expected = dynamics.step(torch.tensor([1.0, 0.0]).double(), torch.zeros(dynamics.space.nu).double())
    assert np.allclose(after.state, expected.detach().numpy())


def test_one_bad_row_does_not_move_the_model():
    """A spike counts as four standard deviations, and what follows takes it back."""
    adaptation, estimate = adapted()
    spike = estimate.state.copy()
    spike[7:10] += 50.0
    after = adaptation.update(estimate, np.full(4, 1.9), spike)
    assert np.abs(after.unknowns / estimate.unknowns - 1).max() < 0.1


def test_tuning_is_kept_only_where_validation_is_better():
    """Logs of the same plant are learned from; validation logs of a plant without friction refuse what was learned."""
    start, train = model(), windows(count=6)
    options = FitOptions(rounds=1, iterations=5, ridge=0.05, parameters=False)
    good = fine_tune(start, train, windows(count=3, seed=9), options)
    assert good.accepted
    assert good.after < 0.5 * good.before
    assert validation_error(good.model, windows(count=3, seed=9)) == good.after
    plain = start.dynamics.with_residuals([])
    data = windows(count=3, seed=9)
    with torch.no_grad():
        states = rollout(plain, data.measurements[:, 0], data.actions)
    bad = fine_tune(start, train, replace(data, measurements=states), replace(options, patience=1))
    assert not bad.accepted
    assert bad.model is start


def test_tuning_keeps_normalisers():
    """Those of the other vehicle's model: its weights mean nothing under others."""
    start = model()
    start.dynamics.normalise(torch.ones(5, 2).double(), torch.ones(5, start.dynamics.space.nu).double())
    tuned = fine_tune(start, windows(), windows(seed=3), FitOptions(rounds=1, iterations=2, parameters=False)).model
    assert torch.equal(tuned.dynamics.residuals[0].features.spread, start.dynamics.residuals[0].features.spread)


@pytest.mark.parametrize(("call", "message"), [
    (lambda d: OnlineAdaptation(d, [], noise=[1.0]), "2 positive noises"),
    (lambda d: OnlineAdaptation(d, [], noise=[math.inf] * 2), "not all infinite"),
    (lambda d: OnlineAdaptation(d, d.baseline.parameters.free(), noise=[1.0, 1.0], forgetting=0.0), "forgetting"),
    (lambda d: OnlineAdaptation(d.with_residuals([]), [], noise=[1.0, 1.0], weights=True), "no network"),
    (lambda d: StepSensitivity(d, ["colour"], weights=False, rows=[0]), "colour"),
    (lambda d: StepSensitivity(d, ["viscous"], weights=False, rows=[7]), "rows must lie below"),
])
def test_bad_input_is_named(call, message):
    """Before anything is computed."""
    with pytest.raises(ValueError, match=message):
        call(model().dynamics)


def test_infinite_noise_of_an_attitude_is_refused():
    """A rotation is not carried as hidden."""
    with pytest.raises(ValueError, match="attitudes must be shown"):
        OnlineAdaptation(ResidualDynamics(quadrotor()), quadrotor().parameters.free(["mass"]), noise=[1.0] * 3 + [math.inf] * 13)
