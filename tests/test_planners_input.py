"""What planners refuse at construction and in a call, each with the name of what is wrong."""

from __future__ import annotations

import pytest
import torch
from planner_problem import F64, Cart, cart, cart_cost

from residual_mbrl.costs import QuadraticCost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.function_cost import FunctionCost
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
    Plan,
    PlanStatus,
    Shooting,
    ShootingOptions,
    shift,
)
from residual_mbrl.spaces import StateSpace

NAN = float("nan")


def make(**common):
    dynamics = cart()
    return ILQR(dynamics, common.pop("cost", None) or cart_cost(dynamics), **{"steps": 5, **common})


@pytest.mark.parametrize(("common", "message"), [
    ({"limits": Limits(action_lower=1.0, action_upper=-1.0)}, "action_lower must be at most action_upper, received 1 above -1 for 'u'"),
    ({"limits": Limits(action_lower=NAN)}, "action_lower holds NaN"),
    ({"limits": Limits(action_upper=[1.0, 2.0])}, r"action_upper must have shape \[1\], received \[2\]"),
    ({"limits": Limits(action_rate=0.0)}, "action_rate must be above zero"),
    ({"limits": Limits(state_lower=[0.0, 2.0], state_upper=[1.0, 1.0])}, "state_lower must be at most state_upper, received 2 above 1"),
    ({"limits": Limits(state_lower=[0.0] * 3)}, r"state_lower must have shape \[6, 2\], received \[3\]"),
    ({"dt": 0.02}, "dt is 0.02 s, but the model steps 0.1 s"),
    ({"steps": None}, "either a horizon"),
    ({"steps": 0}, "at least one step"),
    ({"steps": None, "horizon": 0.25}, "not a multiple of the model's step"),
    ({"initial_action": NAN}, "initial_action must be finite"),
    ({"initial_action": [1.0, 2.0]}, "initial_action"),
    ({"penalty": 0.0}, "penalty"),
    ({"inequalities": Inequalities(running=lambda x, u: x[..., 0])}, r"running must return shape \[\*batch, m\]"),
    ({"inequalities": Inequalities(running=lambda x, u: x @ torch.zeros(7, 1, dtype=F64))}, "running does not take states"),
    ({"inequalities": Inequalities(running=lambda x, u: x, terminal=lambda x: x[..., :1])}, "must return as many values"),
    ({"inequalities": Inequalities(running=lambda x, u: x, margin=torch.zeros(3))}, "margin must have shape"),
])
def test_bad_settings_are_refused_by_name(common, message):
    """At construction, before anything runs."""
    with pytest.raises(ValueError, match=message):
        make(**common)


def function_cost(running=None, terminal=None):
    return FunctionCost(space=cart().space, running=running or (lambda x, u, r: x.square().sum(-1)),
                        terminal=terminal or (lambda x, r: x.square().sum(-1)))


@pytest.mark.parametrize(("cost", "message"), [
    (lambda: function_cost(running=lambda x, u, r: x.square()), r"running must return shape \[\*batch\]"),
    (lambda: function_cost(terminal=lambda x, r: x.sum()), r"terminal must return shape \[\*batch\]"),
    (lambda: function_cost(running=lambda x, u, r: x[..., 0] * NAN), "running is NaN at the neutral state"),
    (lambda: function_cost(running=lambda x, u, r: x[..., 5]), "running does not take states"),
    (lambda: QuadraticCost(space=StateSpace(position=("a",), velocity=("b",), action=("c", "d")), state=torch.ones(2),
                           action=torch.ones(2)), "the cost is of 2 states and 2 actions, the model has 2 and 1"),
    (lambda: QuadraticCost(space=cart().space, state=torch.ones(2), action=torch.ones(1), target=torch.zeros(4, 2), trajectory=True),
     "references must have shape"),
])
def test_costs_that_do_not_fit_are_refused(cost, message):
    """The wrong shape, NaN, another model's, another horizon's."""
    with pytest.raises(ValueError, match=message):
        make(cost=cost())


@pytest.mark.parametrize("options", [
    lambda: ILQROptions(iterations=0), lambda: ILQROptions(tolerance=-1.0), lambda: MPPIOptions(samples=1),
    lambda: MPPIOptions(temperature=0.0), lambda: MPPIOptions(effective=0.0), lambda: ICEMOptions(elites=1), lambda: ICEMOptions(decay=0.5),
    lambda: ShootingOptions(method="newton"), lambda: CVaR(members=3, fraction=0.0), lambda: Mean(members=0),
    lambda: MPPI(cart(), cart_cost(cart()), steps=5), lambda: ICEM(cart(), cart_cost(cart()), ICEMOptions(knots=9, std=1.0), steps=5),
    lambda: Shooting(cart(), cart_cost(cart()), ShootingOptions(std=-1.0), steps=5),
    lambda: Limits().tightened(torch.tensor([-1.0, 0.0]))])
def test_bad_options_are_refused(options):
    """Each option out of range, and noise without a size where an action has no limits."""
    with pytest.raises(ValueError, match=r"\w+:"):
        options()


@pytest.mark.parametrize(("arguments", "message"), [
    ({"state": torch.zeros(3)}, r"state must have shape \[\*batch, 2\]"),
    ({"state": torch.zeros(2, dtype=torch.int64)}, "state must be float32 or float64"),
    ({"state": torch.zeros(2), "previous": torch.zeros(2)}, r"previous must have shape \[\*batch, 1\]"),
])
def test_calls_that_do_not_fit_are_refused(arguments, message):
    """An observation of the wrong size, and the like."""
    with pytest.raises(ValueError, match=message):
        make().plan(**arguments)


def test_a_warm_start_of_another_horizon_is_refused():
    """Naming both shapes."""
    plan = make(steps=7).plan(torch.zeros(2, dtype=F64))
    with pytest.raises(ValueError, match=r"warm.actions must have shape \[\*batch, 5, 1\], received \(7, 1\)"):
        make().plan(torch.zeros(2, dtype=F64), plan)
    with pytest.raises(ValueError, match="steps must be at least 0"):
        shift(plan, -1)


def test_a_warm_start_that_is_not_finite_is_left_out():
    """NaN and actions beyond the limits do no harm."""
    planner = make(limits=Limits(action_lower=-1.0, action_upper=1.0))
    x = torch.tensor([1.0, 0.0], dtype=F64)
    good = planner.plan(x)
    bad = Plan(actions=torch.tensor([[NAN], [5.0], [-5.0], [float("inf")], [0.0]]), states=None, cost=torch.tensor(NAN), status=good.status,
               iterations=0, seconds=0.0, dt=0.1)
    plan = planner.plan(x, bad)
    assert torch.allclose(plan.cost, good.cost)


def test_shift_holds_the_last_action():
    """Also beyond the plan's end."""
    plan = make().plan(torch.tensor([1.0, 0.0], dtype=F64))
    assert torch.equal(shift(plan, 2).actions[:3], plan.actions[2:])
    assert torch.equal(shift(plan, 2).actions[3:], plan.actions[-1:].expand(2, 1))
    assert torch.equal(shift(plan, 50).actions, plan.actions[-1:].expand(5, 1))
    assert shift(plan, 2).states.shape == plan.states.shape
    assert torch.equal(shift(plan, 2).gains[0], plan.gains[2])
    assert shift(plan, 0) is plan


def test_horizon_in_seconds_and_status_words():
    """0.5 s of a model of 0.1 s are five steps; a plan says how it went in one word."""
    planner = make(steps=None, horizon=0.5)
    assert planner.steps == 5
    plan = planner.plan(torch.zeros(3, 2))
    assert plan.actions.shape == (3, 5, 1)
    assert plan.outcome is PlanStatus.CONVERGED
    assert bool(plan.usable.all())
    assert plan.dt == 0.1


def test_a_model_with_memory_is_planned_from_the_plain_state():
    """A lagging drive's memory starts from the action before."""
    from problems import residual, system

    base = system("cartpole", dt=0.02, integrator="semi_implicit")
    dynamics = ResidualDynamics(base, [residual("actuator", base)])
    cost = QuadraticCost(space=dynamics.space, state=torch.ones(dynamics.space.ndx), action=torch.ones(1))
    plan = ILQR(dynamics, cost, ILQROptions(iterations=2, backend="torch"), steps=4).plan(torch.zeros(4), previous=torch.tensor([1.0]))
    assert plan.states.shape == (5, dynamics.space.nx)


def test_a_subclass_of_a_baseline_keeps_its_parameters():
    """Values given in the call change the plan."""
    dynamics = ResidualDynamics(Cart())
    planner = ILQR(dynamics, cart_cost(dynamics), steps=5)
    x = torch.tensor([1.0, 0.0], dtype=F64)
    light, heavy = (planner.plan(x, parameters={"mass": torch.tensor(m, dtype=F64)}) for m in (0.5, 5.0))
    assert float(light.cost) < float(heavy.cost)
