"""iLQR against closed forms, quadratic programs, its own form in torch, and shooting."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from planner_problem import F64, Cart, Spin, cart, cart_cost, condensed, spin_cost
from problems import residual, system
from scipy.optimize import minimize

from residual_mbrl.costs import QuadraticCost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.function_cost import FunctionCost
from residual_mbrl.planners import ILQR, ILQROptions, Inequalities, Limits, PlanStatus, Shooting, ShootingOptions, shift
from residual_mbrl.rollouts import linearise, rollout, rollout_cost

X0 = torch.tensor([1.0, 0.3], dtype=F64)
STEPS = 20
INF = float("inf")


def programme(x0, *, lower=-INF, upper=INF, rate=None, previous=None, state=None):
    """The same problem by scipy, within limits of actions, rates and (rows, least, greatest) of states."""
    H, g, c, S, s = condensed(x0.numpy(), STEPS)
    constraints = []
    if rate is not None:
        D = np.eye(STEPS) - np.eye(STEPS, k=-1)
        first = np.zeros(STEPS)
        first[0] = previous
        constraints += [{"type": "ineq", "fun": lambda u, k=k: rate - k * (D @ u - first), "jac": lambda u, k=k: -k * D} for k in (1, -1)]
    if state is not None:
        rows, least = state
        constraints.append({"type": "ineq", "fun": lambda u: (S @ u + s)[rows] - least, "jac": lambda u: S[rows]})
    found = minimize(lambda u: 0.5 * u @ H @ u + g @ u + c, np.zeros(STEPS), jac=lambda u: H @ u + g, bounds=[(lower, upper)] * STEPS,
                     constraints=constraints, method="SLSQP", options={"ftol": 1e-14, "maxiter": 500})
    assert found.success
    return found.x, found.fun


def swing_up(dtype=F64):
    """A cart-pole with a learned force, from hanging to standing."""
    base = system("cartpole", dt=0.02, integrator="semi_implicit")
    dynamics = ResidualDynamics(base, [residual("unstructured", base)])
    cost = QuadraticCost(space=dynamics.space, state=torch.tensor([1.0, 5.0, 0.1, 0.1], dtype=dtype),
                         action=torch.tensor([0.01], dtype=dtype), terminal=torch.tensor([10.0, 50.0, 1.0, 1.0], dtype=dtype),
                         target=torch.tensor([0.0, np.pi, 0.0, 0.0], dtype=dtype))
    return dynamics, cost


BOX = Limits(action_lower=-10.0, action_upper=10.0)


def test_one_iteration_is_the_linear_quadratic_regulator():
    """On a linear model with a quadratic cost the first step is exact, gains included."""
    dynamics = cart()
    plan = ILQR(dynamics, cart_cost(dynamics), ILQROptions(iterations=1), steps=STEPS).plan(X0)
    H, g, c, _, _ = condensed(X0.numpy(), STEPS)
    exact = -np.linalg.solve(H, g)
    assert np.abs(plan.actions[:, 0].numpy() - exact).max() < 1e-12
    assert abs(float(plan.cost) - (0.5 * exact @ H @ exact + g @ exact + c)) < 1e-12
    A, B = np.array([[1, 0.1], [0, 1]]), np.array([[0.01], [0.1]])
    P = np.diag([5.0, 1.0])
    for t in reversed(range(STEPS)):
        K = -np.linalg.solve(0.05 + B.T @ P @ B, B.T @ P @ A)
        assert np.abs(plan.gains[t].numpy() - K).max() < 1e-10
        P = np.diag([1.0, 0.1]) + A.T @ P @ (A + B @ K)


@pytest.mark.parametrize("backend", ["fused", "torch"])
def test_control_limits_are_those_of_the_quadratic_program(backend):
    """Limits that hold for a part of the horizon."""
    dynamics = cart()
    plan = ILQR(dynamics, cart_cost(dynamics), ILQROptions(backend=backend, tolerance=1e-13), steps=STEPS,
                limits=Limits(action_lower=-1.2, action_upper=0.4)).plan(X0)
    actions, cost = programme(X0, lower=-1.2, upper=0.4)
    assert plan.outcome is PlanStatus.CONVERGED
    assert abs(float(plan.cost) - cost) < 1e-8
    assert np.abs(plan.actions[:, 0].numpy() - actions).max() < 1e-3
    assert float(plan.actions.min()) == -1.2


@pytest.mark.parametrize("backend", ["fused", "torch"])
def test_limits_of_rates_are_exact_and_optimal(backend):
    """Against the quadratic program, with the action before the plan counting."""
    dynamics = cart()
    plan = ILQR(dynamics, cart_cost(dynamics), ILQROptions(backend=backend, tolerance=1e-13, iterations=200), steps=STEPS,
                limits=Limits(action_lower=-2.0, action_upper=2.0, action_rate=4.0)).plan(X0, previous=torch.tensor([0.5]))
    _, cost = programme(X0, lower=-2.0, upper=2.0, rate=0.4, previous=0.5)
    changes = torch.diff(plan.actions[:, 0], prepend=torch.tensor([0.5], dtype=F64))
    assert float(changes.abs().max()) <= 0.4 + 1e-12
    assert cost - 1e-9 <= float(plan.cost) < cost * (1 + 1e-4)


@pytest.mark.parametrize("backend", ["fused", "torch"])
def test_state_limits_are_held(backend):
    """To the tolerance, at the cost of the quadratic program."""
    dynamics = cart()
    plan = ILQR(dynamics, cart_cost(dynamics), ILQROptions(backend=backend, iterations=300), steps=STEPS,
                limits=Limits(state_lower=[-INF, -0.5]), violation_tolerance=1e-4).plan(X0)
    _, cost = programme(X0, state=(np.arange(1, 2 * STEPS, 2), -0.5))
    assert plan.outcome is PlanStatus.CONVERGED
    assert float(plan.states[:, 1].min()) > -0.5 - 1e-4
    assert float(plan.violation) <= 1e-4
    assert abs(float(plan.cost) - cost) < 2e-3 * cost


def test_inequalities_are_held_in_one_launch_and_with_their_margin():
    """A limit of power in torch, and the same tightened."""
    dynamics, least = cart(), []
    for margin in (0.0, 0.1):
        power = Inequalities(running=lambda x, u: torch.stack([x[..., 1] * u[..., 0] - 0.2], -1), margin=margin)
        plan = ILQR(dynamics, cart_cost(dynamics), ILQROptions(backend="fused", iterations=300), steps=STEPS, inequalities=power).plan(X0)
        least.append(float((plan.states[:-1, 1] * plan.actions[:, 0]).max()))
        assert plan.outcome is PlanStatus.CONVERGED
    assert abs(least[0] - 0.2) < 2e-3
    assert abs(least[1] - 0.1) < 2e-3


def test_limits_that_cannot_be_held_are_a_status():
    """A cart that moves too fast to stop."""
    dynamics = cart()
    limits = Limits(action_lower=-0.1, action_upper=0.1, state_upper=[1.1, INF])
    plan = ILQR(dynamics, cart_cost(dynamics), steps=STEPS, limits=limits).plan(torch.tensor([1.0, 2.0], dtype=F64))
    assert plan.outcome is PlanStatus.INFEASIBLE
    assert float(plan.violation) > 1
    assert not bool(plan.usable)


def test_real_time_iterations_come_to_hold_state_limits():
    """Multipliers go from tick to tick with the plan."""
    dynamics, x, plan = cart(), X0, None
    planner = ILQR(dynamics, cart_cost(dynamics), ILQROptions(iterations=1), steps=STEPS, limits=Limits(state_lower=[-INF, -0.5]))
    worst = 0.0
    for tick in range(60):
        plan = planner.plan(x, None if plan is None else shift(plan, 1))
        x = plan.states[1]
        worst = min(worst, float(x[1])) if tick >= 5 else worst
    assert worst > -0.52
    assert float(x.norm()) < 0.1


@pytest.mark.parametrize("kind", ["quadratic", "functions"])
def test_kernel_and_torch_agree_on_a_body_that_turns(kind):
    """Gains of the first iteration, where quaternions bend, and the solution."""
    dynamics = ResidualDynamics(Spin())

    def off(x, r):
        return (x[..., :4] - r).square().sum(-1) + 0.1 * torch.exp(0.3 * x[..., 0])

    cost = spin_cost(dynamics) if kind == "quadratic" else FunctionCost(
        space=dynamics.space, running=lambda x, u, r: off(x, r) + 0.02 * u.square().sum(-1) + 0.05 * x[..., 4:].square().sum(-1),
        terminal=lambda x, r: 5 * off(x, r) + x[..., 4:].square().sum(-1), reference=torch.full((4,), 0.5, dtype=F64))
    x = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.3, -0.2, 0.5], [0.6, 0.0, 0.8, 0.0, 0.0, 0.1, 0.0]], dtype=F64)
    first, last = ({b: ILQR(dynamics, cost, ILQROptions(backend=b, iterations=n, tolerance=1e-11), steps=12).plan(x)
                    for b in ("fused", "torch")} for n in (1, 60))
    assert float((first["fused"].gains - first["torch"].gains).abs().max()) < 1e-8
    assert float((last["fused"].cost - last["torch"].cost).abs().max()) < 1e-7
    assert float((last["fused"].states[..., :4].norm(dim=-1) - 1).abs().max()) < 1e-9
    assert bool((last["fused"].status == PlanStatus.CONVERGED).all())


def test_curvature_at_quaternions_is_that_along_the_manifold():
    """The expansion of a general cost against difference quotients along x ⊞ δ."""
    from residual_mbrl.planners.expansion import expand_cost

    dynamics = ResidualDynamics(Spin())
    cost = FunctionCost(space=dynamics.space, terminal=lambda x, r: x[..., 0] ** 3,
                        running=lambda x, u, r: (x[..., 0] * x[..., 1] ** 2 + x[..., 2] * u[..., 0]).exp() * x[..., 4])
    states = torch.tensor([[0.1, 0.7, -0.5, 0.5, 0.3, 0.2, 0.1]] * 2, dtype=F64)
    states[:, :4] /= states[:, :4].norm(dim=-1, keepdim=True)
    u = torch.tensor([[0.3, -0.2, 0.1]], dtype=F64)
    found = expand_cost(cost, dynamics.space, states, u, cost.references.to(F64))
    step, eye = 1e-4, torch.eye(9, dtype=F64)

    def at(z):
        return cost.running(dynamics.space.integrate(states[0], z[:6]), u[0] + z[6:], cost.references[0])

    exact = torch.stack([torch.stack([(at(step * (a + b)) - at(step * (a - b)) - at(step * (b - a)) + at(-step * (a + b))) / (4 * step**2)
                                      for b in eye]) for a in eye])
    assert float((found.curvature[0] - exact).abs().max()) < 1e-6


def test_swing_up_is_as_good_as_many_starts_of_shooting():
    """Two unlike methods on a cart-pole with a learned force, horizon 50."""
    dynamics, cost = swing_up()
    x = torch.zeros(4, dtype=F64)
    plan = ILQR(dynamics, cost, steps=50, limits=BOX).plan(x)
    other = Shooting(dynamics, cost, ShootingOptions(samples=4, iterations=80), steps=50, limits=BOX).plan(x)
    assert plan.outcome is PlanStatus.CONVERGED
    assert abs(float(plan.cost) / float(other.cost) - 1) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_plan_is_what_the_model_does(dtype):
    """States, cost, precision and limits, for a batch of starts and a single one."""
    dynamics, cost = swing_up(dtype)
    planner = ILQR(dynamics, cost, ILQROptions(iterations=5), steps=30, limits=BOX)
    x = torch.linspace(-1, 1, 12, dtype=dtype).reshape(3, 4)
    plan = planner.plan(x)
    assert plan.actions.dtype == plan.states.dtype == plan.cost.dtype == dtype
    assert float(plan.actions.abs().max()) <= 10.0
    tight = 1e-4 if dtype == torch.float32 else 1e-10
    assert torch.allclose(rollout(dynamics, x, plan.actions).detach(), plan.states, rtol=tight, atol=tight)
    assert torch.allclose(rollout_cost(dynamics, x, plan.actions, cost).detach(), plan.cost, rtol=tight)
    single = planner.plan(x[1])
    assert single.actions.shape == (30, 1)
    assert single.cost.shape == ()
    assert torch.allclose(single.actions, plan.actions[1], rtol=tight, atol=tight)


def test_more_iterations_are_never_worse():
    """The cost falls from iteration to iteration."""
    dynamics, cost = swing_up()
    costs = [float(ILQR(dynamics, cost, ILQROptions(iterations=n), steps=40, limits=BOX).plan(torch.zeros(4, dtype=F64)).cost)
             for n in range(1, 15)]
    assert all(b <= a + 1e-12 * a for a, b in pairwise(costs))


def test_real_time_iterations_swing_up():
    """One step a tick with the feedback of the last plan brings the pole up and keeps it there."""
    dynamics, cost = swing_up(torch.float32)
    planner = ILQR(dynamics, cost, ILQROptions(iterations=1), steps=60, limits=BOX)
    x, plan = torch.zeros(4), None
    for _ in range(300):
        plan = planner.plan(x, None if plan is None else shift(plan, 1))
        x = plan.states[1]
    assert float((x - torch.tensor([0.0, np.pi, 0.0, 0.0])).abs().max()) < 0.1


def test_feedback_of_a_warm_plan_beats_its_actions_alone():
    """From a disturbed start, the first rollout follows the plan's gains."""
    dynamics, cost = swing_up()
    planner = ILQR(dynamics, cost, steps=80, limits=BOX)
    plan = planner.plan(torch.zeros(4, dtype=F64))
    off = torch.tensor([0.05, 0.1, 0.0, 0.3], dtype=F64)
    kept = rollout_cost(dynamics, off, plan.actions, cost).detach()
    late = planner.plan(off, plan, deadline=1e-9)
    assert late.outcome is PlanStatus.DEADLINE
    assert float(late.cost) <= float(kept)


def test_gains_are_those_of_the_expansion_in_an_ensemble_of_one_model():
    """Members that are all the same are planned as one is."""
    from residual_mbrl.planners import Mean

    dynamics = cart()
    p = {"mass": torch.full((3,), 1.3, dtype=F64)}
    one = ILQR(dynamics, cart_cost(dynamics), ILQROptions(tolerance=1e-12), steps=STEPS).plan(X0, parameters={"mass": p["mass"][0]})
    many = ILQR(dynamics, cart_cost(dynamics), ILQROptions(tolerance=1e-12), steps=STEPS, objective=Mean(members=3)).plan(X0, parameters=p)
    assert torch.allclose(one.actions, many.actions, atol=1e-7)
    assert torch.allclose(one.gains, many.gains, atol=1e-6)


def test_linearisation_of_the_planner_is_that_of_rollouts():
    """A gain against the Riccati recursion on A and B of ``linearise``, on a body that turns."""
    dynamics = ResidualDynamics(Spin())
    cost = spin_cost(dynamics)
    x = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.3, -0.2, 0.5]], dtype=F64)
    u = torch.zeros(1, 1, 3, dtype=F64)
    with torch.no_grad():
        states = rollout(dynamics, x, u)
        A, B = (m[0, 0] for m in linearise(dynamics, states, u))
    from residual_mbrl.planners.expansion import expand_cost

    C = expand_cost(cost, dynamics.space, states, u, cost.references).curvature[0]
    P = C[1, :6, :6]
    K = -torch.linalg.solve(C[0, 6:, 6:] + B.mT @ P @ B, C[0, 6:, :6] + B.mT @ P @ A)
    plan = ILQR(dynamics, cost, ILQROptions(iterations=1), steps=1).plan(x[0])
    assert torch.allclose(plan.gains[0], K, atol=1e-9)


def test_a_model_of_another_dtype_and_a_baseline_without_warp_form_are_planned():
    """A subclass with equations of its own goes through torch."""
    class Wind(Cart):
        def step(self, state, action, force=None, parameters=None):
            return super().step(state, action, force, parameters) + torch.tensor([0.0, 0.01]).to(state)

    dynamics = ResidualDynamics(Wind())
    plan = ILQR(dynamics, cart_cost(dynamics), steps=8).plan(X0)
    assert plan.outcome is PlanStatus.CONVERGED
    with pytest.raises(ValueError, match="cannot be fused"):
        ILQR(dynamics, cart_cost(dynamics), ILQROptions(backend="fused"), steps=8).plan(X0)
