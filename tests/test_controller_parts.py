"""The parts of a controller against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from loop_problem import PERIOD, UP, baseline, cost
from planner_problem import Cart
from scipy.linalg import expm

from residual_mbrl.controller.chain import Chain, Doubt
from residual_mbrl.controller.delay import CommandLine, advance
from residual_mbrl.controller.interval import Interval, calibrate_interval, one_step_errors
from residual_mbrl.controller.log import SwitchLog
from residual_mbrl.controller.lqr import LQR, regulator
from residual_mbrl.controller.trust import BEYOND, WORSE, Trust, TrustOptions
from residual_mbrl.costs import QuadraticCost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import ModelError
from residual_mbrl.planners import ILQR, ILQROptions
from residual_mbrl.rollouts import rollout


def test_mean_command_is_that_of_what_was_in_effect() -> None:
    """Commands take effect after the latency and hold until the next."""
    line = CommandLine(np.array([0.0]), latency=0.03)
    line.send(0.0, np.array([1.0]))
    line.send(0.01, np.array([3.0]))
    assert line.mean(0.0, 0.03) == 0.0
    assert line.mean(0.03, 0.04) == 1.0
    assert line.mean(0.035, 0.045) == pytest.approx(2.0)
    assert line.mean(0.02, 0.05) == pytest.approx((0 + 1 + 3) / 3)
    assert line.mean(0.05, 0.07, [(0.06, np.array([5.0]))]) == pytest.approx(4.0)
    assert line.last == 3.0


def test_state_ahead_is_that_of_the_model_under_the_commands_in_flight() -> None:
    """Whole steps exactly, the part of a step by its share."""
    model, line = baseline(), CommandLine(np.array([0.0]), latency=0.02)
    line.send(0.0, np.array([4.0]))
    x = torch.from_numpy(UP + [0.1, 0.2, 0.3, 0.4])
    exact = rollout(model, x, torch.tensor([[0.0], [0.0], [4.0], [4.0]], dtype=torch.float64))
    assert torch.allclose(advance(model, x, line, 0.0, 0.04), exact[-1])
    half = advance(model, x, line, 0.0, 0.035)
    assert torch.allclose(half, 0.5 * (exact[3] + exact[4]))
    assert advance(model, x, line, 0.0, 0.0) is x


def test_regulator_solves_the_double_integrator() -> None:
    """K of a continuous double integrator with unit weights tends to [1, sqrt 3] as the step goes to zero."""
    dt = 1e-4
    a, b = expm(np.array([[0.0, 1.0], [0.0, 0.0]]) * dt), np.array([[dt**2 / 2], [dt]])
    gain, _ = regulator(a, b, dt * np.eye(2), dt * np.eye(1))
    assert gain == pytest.approx(np.array([[1.0, np.sqrt(3.0)]]), rel=1e-3)
    with pytest.raises(ModelError, match="cannot be stabilised"):
        regulator(np.diag([1.1, 0.9]), np.array([[0.0], [1.0]]), np.eye(2), np.eye(1))


def test_regulator_brings_the_pole_up_and_follows_a_moved_target() -> None:
    """The linear law holds the nonlinear model near its target."""
    model = baseline()
    law, x = LQR(model, cost(model)), torch.from_numpy(UP + [0.2, 0.1, 0.0, 0.0])
    with torch.no_grad():
        for _ in range(1000):
            x = model.step(x, law.command(x, cost(model)))
    assert np.abs(x.numpy() - UP).max() < 1e-3


def test_regulator_sees_a_moving_target_coming() -> None:
    """Its first command is that of the linear quadratic problem over a horizon by whose end nothing is left to see."""
    model = ResidualDynamics(Cart())
    weights = {"state": torch.tensor([1.0, 0.1], dtype=torch.float64), "action": torch.tensor([0.05], dtype=torch.float64)}
    still = QuadraticCost(space=model.space, **weights, target=torch.zeros(2, dtype=torch.float64))
    time = 0.1 * torch.arange(121, dtype=torch.float64)
    goals = torch.stack([torch.sin(time), torch.cos(time)], -1)
    moving = QuadraticCost(space=model.space, **weights, target=goals, trajectory=True)
    x = torch.tensor([0.3, -0.2], dtype=torch.float64)
    exact = ILQR(model, moving, ILQROptions(tolerance=1e-13), steps=120).plan(x).actions[0]
    assert LQR(model, still).command(x, moving).numpy() == pytest.approx(exact.numpy(), abs=1e-6)


@pytest.mark.parametrize("coverage", [0.9, 0.99])
def test_learned_interval_covers_as_often_as_it_says(coverage) -> None:
    """On normal errors of two sizes the learned half widths come near the quantiles."""
    rng, sizes = np.random.default_rng(0), np.array([1.0, 30.0])
    interval = Interval(coverage=coverage, rate=0.02)
    for _ in range(20_000):
        interval.learn(sizes * rng.standard_normal(2))
    errors = np.abs(sizes * rng.standard_normal((20_000, 2)))
    assert (errors <= interval.widths).mean(0) == pytest.approx([coverage] * 2, abs=0.02)


def test_calibrated_interval_covers_new_errors() -> None:
    """Split conformal widths from one log hold for another of the same plant."""
    model, rng = baseline(), np.random.default_rng(1)
    actions = rng.standard_normal((2, 2000, 1))
    with torch.no_grad():
        states = rollout(model, torch.zeros(2, 4, dtype=torch.float64), torch.from_numpy(actions)).numpy()
    states = states + np.array([1e-3, 2e-3, 1e-2, 2e-2]) * rng.standard_normal(states.shape)
    widths = calibrate_interval(model, states[0], actions[0], 0.9).widths
    assert (np.abs(one_step_errors(model, states[1], actions[1])) <= widths).mean(0) == pytest.approx([0.9] * 4, abs=0.03)


def test_trust_waits_for_evidence_and_not_for_one_outlier() -> None:
    """One error of any size condemns nothing; a model that is consistently worse than the next is found in a few ticks."""
    trust = Trust([Interval(np.ones(2)), Interval(np.ones(2))], TrustOptions())
    assert trust.judge([np.array([1e6, 0.0]), np.array([1e6, 0.0])]) == [None, None]
    fresh = Trust([Interval(np.ones(2)), Interval(np.ones(2))], TrustOptions())
    found = [fresh.judge([np.array([1.5, 1.5]), np.array([0.5, 0.5])])[0] for _ in range(4)]
    assert found[:2] == [None, None]
    assert found[3].reason == WORSE
    both = Trust([Interval(np.ones(2)), Interval(np.ones(2))], TrustOptions())
    assert [both.judge([np.array([9.0, 0.0])] * 2)[1] for _ in range(3)][-1].reason == BEYOND


def test_noise_alone_takes_no_trust_away() -> None:
    """Models that differ less than noise keep the order of the chain over a hundred thousand ticks."""
    rng = np.random.default_rng(2)
    trust = Trust([Interval(2.576 * np.ones(4)), Interval(2.576 * np.ones(4))], TrustOptions())
    for _ in range(100_000):
        noise = rng.standard_normal(4)
        assert trust.judge([noise, noise + 0.05 * rng.standard_normal(4)]) == [None, None]


def test_chain_goes_down_at_once_and_up_after_the_dwell_time() -> None:
    """Doubts move the choice; their end moves it back, later; every move is one entry."""
    log = SwitchLog()
    chain = Chain(["a", "b", "c"], 0.5, log)
    assert chain.choose(0.0) == 0
    chain.doubt(0, 1.0, Doubt("broken", {"value": 3.0}))
    chain.doubt(1, 1.0, Doubt("too", {}))
    assert chain.choose(1.0) == 2
    assert chain.choose(1.5) == 2
    assert chain.choose(1.51) == 0
    assert [(e.source, e.target, e.reason) for e in log] == [("a", "c", "broken"), ("c", "a", "trusted again")]
    assert next(iter(log)).evidence == {"value": 3.0, "b": "too"}
    chain.doubt(2, 2.0, Doubt("last"))
    assert chain.trusts(2, 2.0)


def test_log_keeps_the_latest_entries() -> None:
    """A loop that runs for months does not fill the memory."""
    log = SwitchLog(most=2)
    chain = Chain(["a", "b"], 0.1, log)
    for k in range(4):
        chain.doubt(0, float(k), Doubt("broken"))
        chain.choose(float(k))
        chain.choose(k + 0.5)
    assert (len(log), log.dropped) == (2, 6)
    assert PERIOD > 0
