"""Costs, their gradients and linearisations of fused models against the torch form in float64."""

from __future__ import annotations

import pytest
import torch
from problems import random_actions, random_states, randomise, residual, system

from residual_mbrl.costs import QuadraticCost
from residual_mbrl.dynamics import ResidualDynamics, ensemble
from residual_mbrl.physics.quadrotor import Quadrotor
from residual_mbrl.residuals import Feature, Unstructured
from residual_mbrl.rollouts import cost_gradient, linearise, rollout, rollout_cost


def model(name, kinds=("unstructured",), *, integrator="semi_implicit", substeps=1, seed=0):
    baseline = system(name, integrator=integrator, substeps=substeps)
    return ResidualDynamics(baseline, [randomise(residual(k, baseline), scale=0.5, seed=i + seed) for i, k in enumerate(kinds)])


def cost_of(dynamics, batch=(), horizon=None, seed=7):
    generator = torch.Generator().manual_seed(seed)
    space = dynamics.space
    rows = () if horizon is None else (horizon + 1,)
    return QuadraticCost(space=space, state=torch.rand(space.ndx, generator=generator, dtype=torch.float64),
                         action=0.1 * torch.rand(space.nu, generator=generator, dtype=torch.float64),
                         terminal=3 * torch.rand(space.ndx, generator=generator, dtype=torch.float64),
                         target=torch.randn(*batch, *rows, space.nx, generator=generator, dtype=torch.float64),
                         trajectory=horizon is not None)


def drone(integrator="semi_implicit", substeps=1):
    """A quadrotor with a learned force, near hover but tilted and turning."""
    force = randomise(Unstructured(nv=6, features=[Feature(source="velocity"), Feature(source="action")], sizes=[6, 4], bound=0.01,
                                   hidden=(8,)), scale=0.5)
    return ResidualDynamics(Quadrotor(dt=0.01, substeps=substeps, integrator=integrator), [force])


def flight(batch, horizon):
    generator = torch.Generator().manual_seed(2)
    x = 0.3 * torch.randn(batch, 17, generator=generator, dtype=torch.float64)
    x[:, 3] += 1.0
    x[:, 3:7] /= x[:, 3:7].norm(dim=-1, keepdim=True)
    x[:, 13:] = 1.6
    return x, 1.6 + 0.1 * torch.randn(batch, horizon, 4, generator=generator, dtype=torch.float64)


def relative(found, exact):
    return float((found.double() - exact).norm() / exact.norm().clamp_min(1e-12))


def inputs(dynamics, batch, horizon):
    return random_states(dynamics.baseline, *batch) / 3, random_actions(dynamics.baseline, *batch, horizon)


@pytest.mark.parametrize(("batch", "horizon", "dtype"), [((), 40, torch.float32), ((21,), 40, torch.float32), ((2, 3), 7, torch.float64)])
@pytest.mark.parametrize("trajectory", [False, True])
def test_cost_is_that_of_the_states(batch, horizon, dtype, trajectory):
    """One target, or one a step and world."""
    dynamics = model("cartpole")
    x, u = inputs(dynamics, batch, horizon)
    cost = cost_of(dynamics, batch if trajectory else (), horizon if trajectory else None)
    exact = rollout_cost(dynamics, x, u, cost, backend="torch").detach()
    found = rollout_cost(dynamics, x.to(dtype), u.to(dtype), cost, backend="fused").detach()
    assert found.shape == batch
    assert relative(found, exact) < (1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize(("batch", "horizon"), [((3,), 1), ((18,), 75), ((1,), 200)])
def test_gradient_is_that_of_torch(batch, horizon):
    """By first state, actions and weights, a chunk or several long."""
    dynamics = model("pendulum", ("unstructured", "dissipative"), integrator="rk4", substeps=2)
    x, u = inputs(dynamics, batch, horizon)
    cost = cost_of(dynamics)
    exact = cost_gradient(dynamics, x, u, cost, weights=True, backend="torch")
    found = cost_gradient(dynamics, x, u, cost, weights=True, backend="fused")
    assert relative(found.costs, exact.costs) < 1e-12
    assert relative(found.state, exact.state) < 1e-10
    assert relative(found.actions, exact.actions) < 1e-10
    assert found.weights.keys() == dict(dynamics.named_parameters()).keys() == exact.weights.keys()
    for name, by in exact.weights.items():
        assert relative(found.weights[name], by) < 1e-9, name


def test_checkpoints_change_nothing(monkeypatch):
    """A horizon whose units do not fit the cache is gone through again from checkpoints."""
    from residual_mbrl.kernels import launch

    dynamics = model("cartpole")
    x, u = inputs(dynamics, (5,), 101)
    cost = cost_of(dynamics)
    whole = cost_gradient(dynamics, x, u, cost, weights=True, backend="fused")
    monkeypatch.setattr(launch, "CHUNK_BYTES", 1)
    again = cost_gradient(dynamics, x[:4], u[:4], cost, weights=True, backend="fused")
    rest = cost_gradient(dynamics, x[4:], u[4:], cost, weights=True, backend="fused")
    assert relative(again.actions, whole.actions[:4]) < 1e-12
    for name, by in whole.weights.items():
        assert relative(again.weights[name] + rest.weights[name], by) < 1e-10, name


@pytest.mark.parametrize("weighting", ["sum", "different"])
def test_cost_is_differentiable(weighting):
    """By everything, parameters included, whatever each world's cost counts."""
    dynamics = model("cartpole", ("unstructured", "conservative"))
    x, u = inputs(dynamics, (6,), 20)
    by = torch.ones(6, dtype=torch.float64) if weighting == "sum" else torch.arange(6, dtype=torch.float64)
    found = {}
    for backend in ("torch", "fused"):
        xs, us = x.clone().requires_grad_(), u.clone().requires_grad_()
        p = {"cart_mass": torch.tensor(1.2, dtype=torch.float64).requires_grad_()}
        total = (by * rollout_cost(dynamics, xs, us, cost_of(dynamics), p, backend=backend)).sum()
        found[backend] = torch.autograd.grad(total, [xs, us, p["cart_mass"], *dynamics.parameters()])
    for a, b in zip(found["fused"], found["torch"], strict=True):
        assert relative(a, b) < 1e-9


def test_ensemble_costs_are_those_of_its_members():
    """Each member under its own worlds."""
    members = [model("cartpole", seed=3 * k) for k in range(3)]
    joined = ensemble(members)
    x, u = inputs(joined, (3, 18), 10)
    cost = cost_of(joined)
    found = rollout_cost(joined, x, u, cost, backend="fused").detach()
    for k, member in enumerate(members):
        assert relative(found[k], rollout_cost(member, x[k], u[k], cost, backend="torch").detach()) < 1e-12


@pytest.mark.parametrize("substeps", [1, 3])
@pytest.mark.parametrize("integrator", ["semi_implicit", "rk4"])
def test_linearisation_is_that_of_torch(integrator, substeps):
    """Networks, damping and dry friction, whatever the integrator."""
    kinds = ("unstructured", "conservative", "dissipative", "dry_friction")
    dynamics = model("double_pendulum", kinds, integrator=integrator, substeps=substeps)
    x, u = inputs(dynamics, (3,), 11)
    with torch.no_grad():
        states = rollout(dynamics, x, u, backend="torch")
    exact = linearise(dynamics, states, u, backend="torch")
    found = linearise(dynamics, states, u, backend="fused")
    assert relative(found.A, exact.A.detach()) < 1e-10
    assert relative(found.B, exact.B.detach()) < 1e-10


@pytest.mark.parametrize("integrator", ["semi_implicit", "rk4"])
def test_quaternions_are_linearised_on_the_tangent_space(integrator):
    """A quadrotor has 16 tangent entries for 17 of state."""
    dynamics = drone(integrator)
    x, u = flight(2, 9)
    with torch.no_grad():
        states = rollout(dynamics, x, u, backend="torch")
    exact = linearise(dynamics, states, u, backend="torch")
    found = linearise(dynamics, states, u, backend="fused")
    assert found.A.shape == (2, 9, 16, 16)
    assert relative(found.A, exact.A.detach()) < 1e-9
    assert relative(found.B, exact.B.detach()) < 1e-9


def test_costs_of_quaternions_are_on_the_tangent_space():
    """The target's attitude is reached the shorter way round."""
    dynamics = drone()
    x, u = flight(5, 12)
    target = flight(5, 1)[0].flip(0)
    target[:, 3:7] *= -1
    space = dynamics.space
    one = torch.ones(space.ndx, dtype=torch.float64)
    cost = QuadraticCost(space=space, state=one, action=one[:4], target=target)
    exact, found = (cost_gradient(dynamics, x, u, cost, backend=b) for b in ("torch", "fused"))
    assert relative(found.costs, exact.costs) < 1e-11
    assert relative(found.actions, exact.actions) < 1e-9
    assert relative(found.state, exact.state) < 1e-9


def test_linearisation_fuses_where_nothing_is_differentiated():
    """With gradients enabled the result keeps its graph."""
    dynamics = model("pendulum")
    states, u = torch.randn(2, 5, 2, dtype=torch.float64), torch.randn(2, 4, 1, dtype=torch.float64)
    assert linearise(dynamics, states, u).A.requires_grad
    with torch.no_grad():
        assert not linearise(dynamics, states, u).A.requires_grad
    assert not linearise(dynamics, states, u, backend="fused").A.requires_grad


class Loud(QuadraticCost):
    """A user's change of the torch form alone."""

    def running(self, state, action, reference):
        return 2 * super().running(state, action, reference)


@pytest.mark.parametrize("fused", [rollout_cost, cost_gradient])
def test_a_cost_without_a_warp_form_runs_in_torch(fused):
    """And is refused where fused is asked for."""
    dynamics = model("pendulum")
    x, u = inputs(dynamics, (2,), 5)
    cost = Loud(space=dynamics.space, state=torch.ones(2, dtype=torch.float64), action=torch.ones(1, dtype=torch.float64))
    assert fused(dynamics, x, u, cost) is not None
    with pytest.raises(ValueError, match="cannot be fused: Loud has no Warp form"):
        fused(dynamics, x, u, cost, backend="fused")


def test_references_of_another_horizon_are_refused():
    """With the shape that was expected."""
    dynamics = model("pendulum")
    x, u = inputs(dynamics, (2,), 5)
    with pytest.raises(ValueError, match=r"a horizon of 5 needs references \[..., 6, nr\] or \[..., 2, nr\], received \(9, 5\)"):
        rollout_cost(dynamics, x, u, cost_of(dynamics, horizon=8))


@pytest.mark.parametrize(("field", "shape"), [("state", (3,)), ("action", (2,)), ("terminal", (1,)), ("target", (3,))])
def test_wrong_shapes_of_a_cost_are_named(field, shape):
    """Each by its name."""
    right = {"state": torch.ones(2), "action": torch.ones(1)}
    with pytest.raises(ValueError, match=f"QuadraticCost: {field} must have shape"):
        QuadraticCost(space=model("pendulum").space, **{**right, field: torch.ones(shape)})


@pytest.mark.parametrize(("name", "place"), [("state", (0, 0)), ("actions", (1, 4, 0))])
@pytest.mark.parametrize("call", [rollout_cost, cost_gradient])
def test_nan_is_named(call, name, place):
    """A kernel looks while it loads."""
    dynamics = model("pendulum")
    x, u = inputs(dynamics, (2,), 5)
    {"state": x, "actions": u}[name][place] = float("nan")
    with pytest.raises(ValueError, match=f"rollout: {name} holds values that are not finite"):
        call(dynamics, x, u, cost_of(dynamics), backend="fused")
