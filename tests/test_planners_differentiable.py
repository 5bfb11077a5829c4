"""Derivatives of plans against difference quotients of plans."""

from __future__ import annotations

import pytest
import torch
from planner_problem import F64, cart, cart_cost
from problems import randomise
from test_planners_ilqr import swing_up

from residual_mbrl.costs import QuadraticCost
from residual_mbrl.planners import ILQR, ILQROptions, Limits, differentiable_actions

STEPS = 20


@pytest.mark.parametrize("limits", [Limits(), Limits(action_lower=-5.0, action_upper=5.0),
                                    Limits(action_lower=-5.0, action_upper=5.0, action_rate=100.0)], ids=["free", "box", "rates"])
def test_derivative_is_that_of_difference_quotients(limits):
    """By the first state, all weights, the target, a mass and a weight of the network."""
    dynamics, _ = swing_up()
    randomise(dynamics.corrections[0], scale=0.5)
    layer = dynamics.corrections[0].network.weights[0]
    names = ("x", "q", "r", "goal", "mass", "layer")
    start = (torch.tensor([0.1, 2.6, 0.0, 0.0], dtype=F64), torch.tensor([1.0, 5.0, 0.1, 0.1], dtype=F64), torch.tensor([0.01], dtype=F64),
             torch.tensor([0.0, 3.14, 0.0, 0.0], dtype=F64), torch.tensor(0.12, dtype=F64), layer.detach().clone())
    generator = torch.Generator().manual_seed(4)
    by = torch.randn(STEPS, 1, generator=generator, dtype=F64)
    space = dynamics.space

    def cost(q, r, goal):
        return QuadraticCost(space=space, state=q, action=r, terminal=10 * q, target=goal)

    planner = ILQR(dynamics, cost(*start[1:4]), ILQROptions(iterations=100, tolerance=1e-12), steps=STEPS, limits=limits)

    def loss(x, q, r, goal, mass):
        actions, plan = differentiable_actions(planner, x, cost(q, r, goal), parameters={"pole_mass": mass})
        return (actions * by).sum(), plan

    inputs = [v.clone().requires_grad_() for v in start[:5]]
    total, plan = loss(*inputs)
    found = dict(zip(names, torch.autograd.grad(total, [*inputs, layer]), strict=True))
    if limits.action_upper is not None:
        held = (plan.actions.abs() >= 5.0).sum() + (plan.actions.diff(dim=0).abs() >= 2.0 - 1e-9).sum() * (limits.action_rate is not None)
        assert 0 < int(held) < STEPS
    for i, name in enumerate(names):
        direction = torch.randn(start[i].shape, generator=generator, dtype=F64)
        values = []
        for sign in (1.0, -1.0):
            moved = [v.clone() for v in start]
            moved[i] += sign * 2e-5 * direction
            with torch.no_grad():
                layer.copy_(moved[5])
            values.append(float(loss(*moved[:5])[0].detach()))
        with torch.no_grad():
            layer.copy_(start[5])
        quotient = (values[0] - values[1]) / 4e-5
        assert abs(float((found[name] * direction).sum()) - quotient) < 1e-4 * max(1.0, abs(quotient)), name


def test_weights_are_tuned_by_gradient():
    """From a cost that brakes too late, a few steps of descent find one whose plans do as they are told."""
    dynamics = cart()
    x = torch.tensor([[1.0, 0.0], [-0.5, 0.4]], dtype=F64)
    planner = ILQR(dynamics, cart_cost(dynamics), ILQROptions(tolerance=1e-12), steps=STEPS)
    wanted = planner.plan(x).actions
    log = torch.tensor([-1.0, -1.0, -1.5], dtype=F64).requires_grad_()

    def mismatch():
        w = log.exp()
        cost = QuadraticCost(space=dynamics.space, state=w[:2], action=w[2:], terminal=torch.tensor([5.0, 1.0], dtype=F64))
        return (differentiable_actions(planner, x, cost)[0] - wanted).square().mean()

    optimiser = torch.optim.LBFGS([log], max_iter=25, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        value = mismatch()
        value.backward()
        return value

    first = float(mismatch().detach())
    optimiser.step(closure)
    assert float(mismatch().detach()) < 1e-6 * first
    assert torch.allclose(log.detach().exp(), torch.tensor([1.0, 0.1, 0.05], dtype=F64), rtol=0.02)


def test_constraints_are_refused():
    """Multipliers would move too."""
    dynamics = cart()
    planner = ILQR(dynamics, cart_cost(dynamics), steps=STEPS, limits=Limits(state_upper=[1.0, 1.0]))
    with pytest.raises(ValueError, match="without state limits"):
        differentiable_actions(planner, torch.zeros(2, dtype=F64))
