"""Planners by sampling and by gradients: noise, limits, optima in closed form, and what comes of an ensemble."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planner_problem import F64, cart, cart_cost, condensed
from test_planners_ilqr import X0, programme

from residual_mbrl.dynamics import ensemble
from residual_mbrl.planners import (
    ICEM,
    ILQR,
    MPPI,
    CVaR,
    ICEMOptions,
    ILQROptions,
    Inequalities,
    Limits,
    Mean,
    MPPIOptions,
    PlanStatus,
    Shooting,
    ShootingOptions,
    Worst,
    shift,
)
from residual_mbrl.planners.limits import project
from residual_mbrl.planners.noise import colouring, interpolation
from residual_mbrl.rollouts import rollout, rollout_cost

STEPS = 20
LIMITS = Limits(action_lower=-1.2, action_upper=0.8, action_rate=8.0)
PLANNERS = {
    "mppi": lambda d, c, **k: MPPI(d, c, MPPIOptions(samples=256, iterations=8, std=0.6, colour=1.0), **k),
    "icem": lambda d, c, **k: ICEM(d, c, ICEMOptions(samples=128, iterations=8, std=0.6), **k),
    "lbfgs": lambda d, c, **k: Shooting(d, c, ShootingOptions(samples=3, iterations=30, std=0.6), **k),
    "adam": lambda d, c, **k: Shooting(d, c, ShootingOptions(samples=3, iterations=150, std=0.6, method="adam"), **k),
}


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_noise_has_its_spectrum_and_unit_variance(exponent):
    """Power falls with frequency as asked, the same at every step of the horizon."""
    m = colouring(64, exponent)
    white = torch.randn(20000, m.shape[0], generator=torch.Generator().manual_seed(0), dtype=F64)
    x = white @ m
    assert float((x.var(0) - 1).abs().max()) < 0.06
    twice = torch.cat([x, torch.zeros_like(x)], -1)
    power = torch.fft.rfft(twice - twice.mean(-1, keepdim=True)).abs().square().mean(0)
    slope = np.polyfit(np.log(np.arange(4, 40)), power[4:40].log().numpy(), 1)[0]
    assert abs(-slope - exponent) < 0.35


def test_interpolation_goes_through_knots():
    """Straight lines between knots stay within limits that the knots keep."""
    p = interpolation(11, 3)
    assert torch.equal(p[[0, 5, 10]], torch.eye(3, dtype=F64))
    assert torch.allclose(p.sum(-1), torch.ones(11, dtype=F64))
    assert bool((p >= 0).all())


def test_projection_reaches_the_nearest_in_order():
    """Clipped to the box, then to what the action before allows."""
    u = torch.tensor([[5.0], [-5.0], [0.0]], dtype=F64)
    lower, upper, rate = (torch.tensor([x], dtype=F64) for x in (-1.0, 1.0, 0.5))
    assert project(u, lower, upper, rate, torch.tensor([0.0], dtype=F64)).flatten().tolist() == [0.5, 0.0, 0.0]
    assert project(u, lower, upper).flatten().tolist() == [1.0, -1.0, 0.0]


@pytest.mark.parametrize("name", PLANNERS)
def test_limits_are_exact(name):
    """Of actions and rates, the action before the plan included, for a batch and a warm start outside of them."""
    dynamics = cart()
    planner = PLANNERS[name](dynamics, cart_cost(dynamics), steps=STEPS, limits=LIMITS)
    x = torch.tensor([[2.0, 0.0], [-2.0, 1.0]], dtype=F64)
    first = planner.plan(x)
    wild = planner.plan(x, shift(first, 3), previous=torch.tensor([0.7], dtype=F64))
    for plan in (first, wild):
        assert float(plan.actions.max()) <= 0.8
        assert float(plan.actions.min()) >= -1.2
        assert float(plan.actions.diff(dim=-2).abs().max()) <= 0.8 + 1e-12
    assert float((wild.actions[:, 0] - 0.7).abs().max()) <= 0.8 + 1e-12


@pytest.mark.parametrize("name", PLANNERS)
def test_optimum_within_limits_is_found(name):
    """Against the quadratic program: gradients nearly to it, samples within some percent."""
    dynamics = cart()
    plan = PLANNERS[name](dynamics, cart_cost(dynamics), steps=STEPS, limits=Limits(action_lower=-1.2, action_upper=0.4)).plan(X0)
    _, cost = programme(X0, lower=-1.2, upper=0.4)
    near = {"lbfgs": 1e-4, "adam": 2e-3, "icem": 0.03, "mppi": 0.05}[name]
    assert cost * (1 - 1e-9) <= float(plan.cost) < cost * (1 + near)
    assert torch.allclose(rollout_cost(dynamics, X0, plan.actions, cart_cost(dynamics)), plan.cost, rtol=1e-9)


@pytest.mark.parametrize("name", PLANNERS)
def test_plans_are_repeatable_and_never_worse_than_their_start(name):
    """The same seed gives the same plan; a warm start that is good stays."""
    dynamics = cart()
    a, b = (PLANNERS[name](dynamics, cart_cost(dynamics), steps=STEPS, limits=LIMITS).plan(X0) for _ in range(2))
    assert torch.equal(a.actions, b.actions)
    again = PLANNERS[name](dynamics, cart_cost(dynamics), steps=STEPS, limits=LIMITS).plan(X0, a)
    assert float(again.cost) <= float(a.cost) + 1e-12


def test_elites_come_again_shifted():
    """What iCEM keeps goes with the plan."""
    dynamics = cart()
    planner = PLANNERS["icem"](dynamics, cart_cost(dynamics), steps=STEPS, limits=LIMITS)
    plan = planner.plan(X0)
    moved = shift(plan, 2)
    assert torch.equal(moved.memory["elites"][..., :-2, :], plan.memory["elites"][..., 2:, :])
    assert planner.plan(X0, moved).memory["elites"].shape == plan.memory["elites"].shape


def test_mean_of_equal_costs_and_of_one_best_sample():
    """MPPI's weights: equal costs count alike, a low temperature takes the best."""
    dynamics = cart()
    warm, cold = (MPPI(dynamics, cart_cost(dynamics), MPPIOptions(samples=16, std=1.0, temperature=t), steps=4) for t in (1e9, 1e-9))
    costs = torch.tensor([3.0, 1.0, 2.0, float("inf")], dtype=F64)
    assert torch.allclose(warm._weights(costs[:3]), torch.full((3,), 1 / 3, dtype=F64))
    assert torch.equal(cold._weights(costs), torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=F64))
    chosen = MPPI(dynamics, cart_cost(dynamics), MPPIOptions(samples=200, std=1.0, effective=0.1), steps=4)
    weights = chosen._weights(torch.rand(200, generator=torch.Generator().manual_seed(1), dtype=F64))
    assert 10 < float(1 / weights.square().sum()) < 40


@pytest.mark.parametrize("name", ["mppi", "icem", "lbfgs"])
def test_state_limits_are_a_penalty_and_are_told(name):
    """Nearly held under a great weight; the plan says by how much they are not, and its cost is without the penalty."""
    dynamics = cart()
    cost = cart_cost(dynamics)
    planner = PLANNERS[name](dynamics, cost, steps=STEPS, limits=Limits(action_lower=-3.0, action_upper=3.0, state_lower=[-10.0, -0.5]),
                             penalty=300.0, violation_tolerance=0.02)
    plan = planner.plan(X0)
    states = rollout(dynamics, X0, plan.actions)
    assert abs(float(plan.violation) - max(0.0, -0.5 - float(states[:, 1].min()))) < 1e-9
    assert float(plan.violation) < 0.05
    assert torch.allclose(plan.cost, rollout_cost(dynamics, X0, plan.actions, cost))
    assert (plan.outcome is PlanStatus.INFEASIBLE) == (float(plan.violation) > 0.02)


def test_objectives_of_known_costs():
    """Mean, worst and the mean of the worst fraction, its edge counted in part."""
    costs = torch.tensor([4.0, 1.0, 3.0, 2.0], dtype=F64)
    assert float(Mean(members=4).reduce(costs)) == 2.5
    assert float(Worst(members=4).reduce(costs)) == 4.0
    assert float(CVaR(members=4, fraction=0.5).reduce(costs)) == 3.5
    assert abs(float(CVaR(members=4, fraction=0.375).reduce(costs)) - (4 + 0.5 * 3) / 1.5) < 1e-12
    assert abs(float(CVaR(members=4, fraction=1.0).reduce(costs)) - 2.5) < 1e-12
    assert float(Worst(members=2).reduce(torch.tensor([1.0, float("nan")]))) != 1.0
    assert float(CVaR(members=2, fraction=0.5).reduce(torch.tensor([[1.0, 2.0], [5.0, 0.0]]))[1]) == 2.0


@pytest.mark.parametrize("objective", [Mean(members=3), Worst(members=3), CVaR(members=3, fraction=0.5)], ids=["mean", "worst", "cvar"])
def test_ensembles_are_planned_alike_by_unlike_planners(objective):
    """ILQR on the joined states, and L-BFGS on the weighted gradients; masses differ."""
    dynamics, p = cart(), {"mass": torch.tensor([0.6, 1.0, 1.8], dtype=F64)}
    cost, limits = cart_cost(dynamics), Limits(action_lower=-1.5, action_upper=1.5)
    a = ILQR(dynamics, cost, ILQROptions(iterations=60, tolerance=1e-8), steps=STEPS, limits=limits, objective=objective).plan(
        X0, parameters=p)
    b = Shooting(dynamics, cost, ShootingOptions(samples=2, iterations=80, std=0.5), steps=STEPS, limits=limits,
                 objective=objective).plan(X0, parameters=p)
    c = ICEM(dynamics, cost, ICEMOptions(samples=128, iterations=10, std=0.5), steps=STEPS, limits=limits, objective=objective).plan(
        X0, parameters=p)
    best = min(float(x.cost) for x in (a, b, c))
    each = rollout_cost(dynamics, X0.expand(3, 2), a.actions.expand(3, STEPS, 1), cost, p)
    assert abs(float(objective.reduce(each)) - float(a.cost)) < 1e-9
    assert float(a.cost) < best * (1 + (1e-6 if type(objective) is Mean else 1e-3))
    # a maximum has kinks, at which methods for smooth functions end early
    assert float(b.cost) < best * (1 + (1e-5 if type(objective) is Mean else 0.02))
    assert float(c.cost) < best * 1.05


def test_weights_of_an_ensemble_are_planned_under():
    """Members with learned forces of their own; the objective is that of their rollouts."""
    from test_planners_ilqr import BOX, swing_up

    members = [swing_up()[0] for _ in range(2)]
    for k, m in enumerate(members):
        torch.nn.init.normal_(m.corrections[0].network.weights[-1], std=0.5, generator=torch.Generator().manual_seed(k))
    dynamics, cost = ensemble(members), swing_up()[1]
    x = torch.tensor([[0.1, 2.8, 0.0, 0.0], [0.0, 3.3, 0.1, 0.0]], dtype=F64)
    plan = ILQR(dynamics, cost, ILQROptions(iterations=6), steps=20, limits=BOX, objective=Worst(members=2)).plan(x)
    each = torch.stack([rollout_cost(m, x, plan.actions, cost).detach() for m in members])
    assert torch.allclose(each.amax(0), plan.cost, rtol=1e-8)
    assert bool((plan.status <= PlanStatus.IMPROVED).all())


def test_tightening_keeps_its_distance():
    """Limits tightened by a spread that grows along the horizon."""
    dynamics = cart()
    spread = torch.stack([torch.zeros(STEPS + 1), 0.01 * torch.arange(STEPS + 1.0)], -1)
    limits = Limits(state_lower=[-float("inf"), -0.5]).tightened(spread)
    plan = ILQR(dynamics, cart_cost(dynamics), ILQROptions(iterations=300), steps=STEPS, limits=limits).plan(X0)
    assert plan.outcome is PlanStatus.CONVERGED
    assert float((-0.5 + spread[1:, 1] - plan.states[1:, 1]).max()) < 2e-3


def test_knots_make_fewer_numbers():
    """The best plan through knots is that of the projected quadratic program."""
    dynamics = cart()
    options = ShootingOptions(samples=1, knots=4, iterations=60, std=1.0, tolerance=1e-12)
    plan = Shooting(dynamics, cart_cost(dynamics), options, steps=STEPS).plan(X0)
    H, g, c, _, _ = condensed(X0.numpy(), STEPS)
    P = interpolation(STEPS, 4).numpy()
    v = -np.linalg.solve(P.T @ H @ P, P.T @ g)
    u = P @ v
    assert abs(float(plan.cost) - (0.5 * u @ H @ u + g @ u + c)) < 1e-6
    assert np.abs(plan.actions[:, 0].numpy() - u).max() < 1e-2


@pytest.mark.parametrize("name", PLANNERS)
def test_deadlines_are_kept_with_what_there_is(name):
    """A deadline that has passed gives the warm start's actions with their cost."""
    dynamics = cart()
    plan = PLANNERS[name](dynamics, cart_cost(dynamics), steps=STEPS, limits=LIMITS).plan(X0, deadline=-1.0)
    assert plan.outcome is PlanStatus.DEADLINE
    assert plan.iterations == 0
    assert torch.isfinite(plan.cost)


@pytest.mark.parametrize("name", [*PLANNERS, "ilqr"])
def test_what_is_not_finite_is_a_status(name):
    """NaN in one state of a batch fails that one; NaN in the model fails all; neither raises, and limits hold."""
    from test_planners_ilqr import BOX, swing_up

    dynamics, cost = swing_up()
    make = {**PLANNERS, "ilqr": ILQR}[name]
    planner = make(dynamics, cost, steps=8, limits=BOX)
    x = torch.tensor([[0.1, 2.8, 0.0, 0.0], [0.0, float("nan"), 0.1, 0.0]], dtype=F64)
    plan = planner.plan(x)
    assert plan.status[0] < PlanStatus.INFEASIBLE
    assert plan.status[1] == PlanStatus.FAILED
    assert bool(torch.isfinite(plan.actions).all())
    with torch.no_grad():
        next(iter(dynamics.parameters())).fill_(float("nan"))
    broken = planner.plan(x)
    assert bool((broken.status == PlanStatus.FAILED).all())
    assert bool(torch.isfinite(broken.actions).all())
    assert float(broken.actions.abs().max()) <= 10


def test_inequalities_reach_samples():
    """An inequality in torch is a penalty within the kernel, the same as in torch."""
    dynamics = cart()
    power = Inequalities(running=lambda x, u: x[..., 1:] * u - 0.2, terminal=lambda x: x[..., :1].abs() - 0.5)
    plan = PLANNERS["lbfgs"](dynamics, cart_cost(dynamics), steps=STEPS, limits=Limits(action_lower=-3.0, action_upper=3.0),
                             inequalities=power).plan(X0)
    states = rollout(dynamics, X0, plan.actions)
    worst = max(float((states[:-1, 1] * plan.actions[:, 0] - 0.2).max()), float(states[-1, 0].abs() - 0.5), 0.0)
    assert abs(float(plan.violation) - worst) < 1e-9
    assert worst < 5e-3


def test_state_limits_hold_for_every_member():
    """Each mass stays below the limit of speed under iLQR."""
    dynamics, p = cart(), {"mass": torch.tensor([0.7, 1.0, 1.5], dtype=F64)}
    limits = Limits(action_lower=-3.0, action_upper=3.0, state_lower=[-10.0, -0.5])
    plan = ILQR(dynamics, cart_cost(dynamics), ILQROptions(iterations=200), steps=STEPS, limits=limits,
                objective=Mean(members=3)).plan(X0, parameters=p)
    states = rollout(dynamics, X0.expand(3, 2), plan.actions.expand(3, STEPS, 1), p)
    assert float(states[..., 1].min()) > -0.5 - 1e-3
    assert float(plan.violation) <= 1e-3
