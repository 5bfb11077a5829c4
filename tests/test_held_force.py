"""What no model holds: the force that is kept in the state, and the observer that finds it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fused_problem import EVERY_SCHEDULE, F64, assert_agrees
from loop_problem import LIMITS, PERIOD, WIDTHS, Loop, baseline, corrected, cost
from quadrotor_problem import quadrotor

from residual_mbrl.controller import LQR, Hold, Interval, Level
from residual_mbrl.controller.belief import Belief
from residual_mbrl.controller.delay import CommandLine
from residual_mbrl.controller.observer import Observer
from residual_mbrl.costs import QuadraticCost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import ModelError
from residual_mbrl.planners import ILQR, ILQROptions, Plan
from residual_mbrl.residuals import HeldForce


def held(dynamics: ResidualDynamics, bound: float = 5.0, **options: float) -> ResidualDynamics:
    """Return a model with a force that is held."""
    added = HeldForce(bound=[bound] * dynamics.baseline.space.nv, dt=dynamics.dt, **options)
    return dynamics.with_residuals([*dynamics.corrections, added])


def pulled(force: float) -> ResidualDynamics:
    """Return a cart-pole whose cart is pulled by a constant force."""
    dynamics = corrected(0.0)
    with torch.no_grad():
        dynamics.corrections[0].network.biases[-1][0] = math.atanh(force / 8.0)
    return dynamics


class Patient(ILQR):
    """Plans without a look at the wall clock, which tests do not know."""

    def plan(self, *args: object, deadline: float | None = None, **options: object) -> Plan:
        """Return the plan."""
        return super().plan(*args, **options)


def standing(model: ResidualDynamics, force: float, **options: float) -> Loop:
    """Return a loop in which a plant that is pulled is to stand upright in the middle of its rail."""
    known = cost(model).references[0].split([model.space.nx, model.space.ndx, 1])
    firm = QuadraticCost(space=model.space, state=known[1], action=1e-4 * known[2], terminal=100 * known[1], target=known[0])
    planner = Patient(model, firm, ILQROptions(iterations=2), steps=80, limits=LIMITS)
    return Loop([Level(planner=planner, name="model", interval=Interval(10 * WIDTHS))], pulled(force),
                [LQR(baseline(), cost(baseline())), Hold([0.0])], **options)


@pytest.mark.parametrize(("dynamics", "schedule"), [(held(baseline()), 0), (held(corrected(), fading=0.3), 2),
                                                    (held(ResidualDynamics(quadrotor()), 1e-5), 1), (held(baseline(), fading=0.1), 3)])
def test_the_fused_rollout_is_that_of_torch(dynamics, schedule):
    """Held and fading, alone and beside a network, with and without quaternions."""
    batch, dtype = EVERY_SCHEDULE[schedule]
    assert_agrees(dynamics, batch, horizon=20, dtype=dtype)


@pytest.mark.parametrize("memory", [0.0, 3.0, 1e6])
def test_it_acts_as_a_force_on_the_plant_and_never_beyond_its_bound(memory):
    """On the cart it is a command; positions and velocities follow as the baseline's own integrator has it."""
    x = torch.tensor([0.3, 0.2, 0.4, -0.1], dtype=F64)
    after = held(baseline()).step(torch.cat([x, torch.tensor([memory, 0.0], dtype=F64)]), torch.ones(1, dtype=F64))
    same = baseline().step(x, torch.tensor([1 + 5 * math.tanh(memory / 5)], dtype=F64))
    assert after[:4].tolist() == pytest.approx(same.tolist(), abs=1e-12)
    assert after[4:].tolist() == [memory, 0.0]


def test_a_constant_pull_leaves_no_offset():
    """Without the estimate the cart stands off its reference, with it it does not."""
    apart = {}
    for name, model in (("without", baseline()), ("with", held(baseline()))):
        loop = standing(model, 1.0)
        loop.run(600)
        apart[name] = abs(np.mean(loop.states[-100:], 0)[0])
    assert apart["without"] > 0.005
    assert apart["with"] < 0.1 * apart["without"]


def test_what_is_found_is_the_force_that_is_missing():
    """On the cart, and none on the pole."""
    loop = standing(held(baseline()), 1.0)
    loop.run(600)
    found = 5 * np.tanh(loop.controller._perception.beliefs[0].state[4:].numpy() / 5)
    assert found == pytest.approx([1.0, 0.0], abs=0.05)


def test_the_regulator_holds_against_it():
    """On a plant that is pulled the linear law stands upright in the middle, given the force; off it without."""
    model = held(baseline())
    law, plant, apart = LQR(model, cost(model)), pulled(1.0), {}
    for known in (0.0, 5 * math.atanh(0.2)):
        x = torch.tensor([0.1, math.pi, 0.0, 0.0], dtype=F64)
        with torch.no_grad():
            for _ in range(1500):
                x = plant.step(x, law.command(torch.cat([x, torch.tensor([known, 0.0], dtype=F64)])))
        apart[known] = abs(float(x[0]))
    assert apart.pop(0.0) > 0.05
    assert min(apart.values()) < 3e-3


def test_a_blow_is_not_taken_for_a_pull():
    """One error, however large, moves the estimate by the bound's share of one tick; none where nothing was predicted."""
    observer, state = Observer(held(baseline()), 0.2), torch.zeros(6, dtype=F64)
    response = PERIOD * np.eye(4)[:, 2:]
    after = observer.update(state, np.array([0.0, 0.0, 100.0, -100.0]), response, PERIOD)
    assert after[4:].tolist() == pytest.approx([5.0 * -math.expm1(-0.05), 5.0 * math.expm1(-0.05)])
    assert torch.equal(observer.update(state, np.ones(4), response, 0.0), state)


def test_errors_without_the_estimate_are_those_of_the_plain_model():
    """To first order, for a model whose estimate fades as for one that holds it."""
    x, u = torch.tensor([0.1, 3.0, 0.2, -0.1], dtype=F64), np.array([2.0])
    seen = np.array([0.11, 3.01, 0.25, -0.2])
    plain = seen - baseline().step(x, torch.from_numpy(u)).numpy()
    for model in (held(baseline()), held(baseline(), fading=0.1)):
        belief = Belief(model, 4, np.zeros(0))
        belief.state = torch.cat([x, torch.tensor([0.08, -0.04], dtype=F64)])
        expected = belief.look_ahead(CommandLine(u), 0.0, PERIOD)
        found = belief.observer.without(belief.error(seen, expected.state), *expected)
        assert found == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize("change", [{"bound": [1.0, 0.0]}, {"dt": 0.0}, {"fading": -1.0}])
def test_arguments_out_of_range_are_named(change):
    """Each of them."""
    with pytest.raises(ValueError, match="must be positive"):
        HeldForce(**{"bound": [1.0, 1.0], "dt": PERIOD, **change})


@pytest.mark.parametrize("change", [{"bound": [1.0]}, {"dt": 0.02}])
def test_another_model_is_named(change):
    """Of other degrees of freedom, or another step."""
    with pytest.raises(ModelError, match="CartPole"):
        ResidualDynamics(baseline().baseline, [HeldForce(**{"bound": [1.0, 1.0], "dt": PERIOD, **change})])
