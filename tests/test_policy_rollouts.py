"""Rollouts under a policy, fused, against torch in float64: costs, states and every gradient."""

from __future__ import annotations

import pytest
import torch
from problems import random_states, randomise
from test_fused_costs import cost_of, model, relative

from residual_mbrl.dynamics import ensemble
from residual_mbrl.policies import GaussianPolicy, LinearPolicy, MLPPolicy, Value, angles_turned
from residual_mbrl.policy_rollouts import Loop, policy_gradient, policy_rollout

KINDS = {"mlp": MLPPolicy, "gaussian": GaussianPolicy, "linear": LinearPolicy}


def policy_for(dynamics, kind="mlp", goal_size=0, hidden=(12, 9), seed=3):
    space = dynamics.baseline.space
    made = KINDS[kind](space=space, low=[-2.0] * space.nu, high=[3.0] * space.nu, hidden=hidden, goal_size=goal_size,
                       features=angles_turned(space, space.position[-1:], goal_size))
    made.normalise(random_states(dynamics.baseline, 50), torch.randn(50, goal_size, dtype=torch.float64) if goal_size else None)
    return randomise(made, scale=0.5, seed=seed)


def value_for(dynamics, goal_size=0, seed=5):
    made = Value(space=dynamics.baseline.space, hidden=(7,), goal_size=goal_size)
    made.scale.fill_(3.0)
    return randomise(made, scale=0.5, seed=seed)


def numbers(*shape, seed=11):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same(found, exact, tolerance):
    assert relative(found.costs, exact.costs) < tolerance
    assert relative(found.state, exact.state) < 10 * tolerance
    assert found.weights.keys() == exact.weights.keys()
    for name, by in exact.weights.items():
        assert by.norm() > 0, name
        assert relative(found.weights[name], by) < 10 * tolerance, name


@pytest.mark.parametrize(("batch", "horizon", "dtype"), [((), 40, torch.float64), ((21,), 40, torch.float32), ((2, 9), 75, torch.float64),
                                                         ((3,), 1, torch.float32)])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_that_of_torch(kind, batch, horizon, dtype):
    """By first state and by the policy's weights, with noise, discount and a value at the end."""
    dynamics = model("cartpole")
    policy, value = policy_for(dynamics, kind), value_for(dynamics)
    x = random_states(dynamics.baseline, *batch) / 3
    noise = numbers(*batch, horizon, policy.noise_size) if policy.noise_size else None
    loop = Loop(noise=noise, value=value, discount=0.97)
    exact = policy_gradient(dynamics, policy, x, cost_of(dynamics), horizon, loop, rollout=True, backend="torch")
    found = policy_gradient(dynamics, policy, x.to(dtype), cost_of(dynamics), horizon, loop, rollout=True, backend="fused")
    assert_same(found, exact, 1e-5 if dtype == torch.float32 else 1e-11)
    for name in ("states", "actions", "running"):
        assert relative(getattr(found.rollout, name), getattr(exact.rollout, name)) < (1e-5 if dtype == torch.float32 else 1e-11), name


@pytest.mark.parametrize(("worlds", "dtype"), [(64, torch.float32), (250, torch.float64)])
def test_two_registers_of_worlds_do_as_one(worlds, dtype):
    """Batches that fill pairs of registers, the last of them in part, as torch and as their worlds alone."""
    from residual_mbrl.kernels.closed_loop import ClosedLoopEngine

    dynamics = model("cartpole")
    policy, value = policy_for(dynamics, hidden=(12, 7, 17)), value_for(dynamics)
    x, tolerance = random_states(dynamics.baseline, worlds).to(dtype) / 3, 1e-5 if dtype == torch.float32 else 1e-11
    engine = object.__new__(ClosedLoopEngine)
    engine.real = "float" if dtype == torch.float32 else "double"
    assert engine._schedule_for(worlds, 1) == "pairs"
    loop, threads = Loop(value=value, discount=0.97), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = policy_gradient(dynamics, policy, x, cost_of(dynamics), 40, loop, backend="fused")
        few = policy_gradient(dynamics, policy, x[-5:], cost_of(dynamics), 40, loop, backend="fused")
    finally:
        torch.set_num_threads(threads)
    assert_same(found, policy_gradient(dynamics, policy, x.double(), cost_of(dynamics), 40, loop, backend="torch"), tolerance)
    assert relative(found.state[-5:], few.state) < tolerance


def test_goals_are_seen_by_policy_and_value():
    """A goal for each step and for the end."""
    dynamics = model("double_pendulum", ("dissipative",))
    policy, value = policy_for(dynamics, "gaussian", goal_size=2), value_for(dynamics, goal_size=2)
    loop = Loop(noise=numbers(5, 20, 2), goals=numbers(5, 21, 2, seed=2), value=value)
    x = random_states(dynamics.baseline, 5) / 3
    exact, found = (policy_gradient(dynamics, policy, x, cost_of(dynamics), 20, loop, backend=b) for b in ("torch", "fused"))
    assert_same(found, exact, 1e-10)


def test_memory_of_an_actuator_starts_from_the_first_action():
    """And is a part of the states, which a policy does not see."""
    dynamics = model("cartpole", ("actuator", "unstructured"))
    policy, x = policy_for(dynamics), random_states(dynamics.baseline, 5) / 3
    exact, found = (policy_gradient(dynamics, policy, x, cost_of(dynamics), 12, backend=b) for b in ("torch", "fused"))
    assert exact.state.shape == (5, dynamics.space.nx)
    assert_same(found, exact, 1e-10)


def test_each_world_of_an_ensemble_meets_its_member():
    """One policy for all of them."""
    members = [model("cartpole", seed=3 * k) for k in range(3)]
    joined, policy = ensemble(members), policy_for(members[0])
    x = random_states(members[0].baseline, 3, 18) / 3
    exact, found = (policy_gradient(joined, policy, x, cost_of(joined), 10, backend=b) for b in ("torch", "fused"))
    assert_same(found, exact, 1e-10)
    alone = policy_gradient(members[1], policy, x[1], cost_of(joined), 10, backend="torch")
    assert relative(found.costs[1], alone.costs) < 1e-11


def test_weighting_says_what_each_cost_counts():
    """A function of all costs, as of an ensemble's spread."""
    dynamics = model("cartpole")
    policy, x = policy_for(dynamics), random_states(dynamics.baseline, 19) / 3
    exact, found = (policy_gradient(dynamics, policy, x, cost_of(dynamics), 15, weighting=lambda c: c / c.mean(), backend=b)
                    for b in ("torch", "fused"))
    assert_same(found, exact, 1e-10)
    plain = policy_gradient(dynamics, policy, x, cost_of(dynamics), 15)
    assert relative(found.weights["network.weights.0"], plain.weights["network.weights.0"]) > 0.01


def test_gradient_is_that_of_differences():
    """Of a weight in each layer, central differences of the cost."""
    dynamics = model("cartpole")
    policy, x = policy_for(dynamics), random_states(dynamics.baseline, 3) / 3
    found = policy_gradient(dynamics, policy, x, cost_of(dynamics), 8, backend="fused")
    for name, weight in policy.named_parameters():
        costs = []
        for step in (1e-6, -2e-6):
            weight.data.view(-1)[0] += step
            costs.append(policy_rollout(dynamics, policy, x, cost_of(dynamics), 8, backend="fused").costs.sum())
        weight.data.view(-1)[0] += 1e-6
        assert abs((costs[0] - costs[1]) / 2e-6 - found.weights[name].view(-1)[0]) < 1e-5 * found.weights[name].norm() + 1e-8, name


def test_checkpoints_change_nothing(monkeypatch):
    """A horizon whose units do not fit the cache is gone through again from checkpoints."""
    from residual_mbrl.kernels import closed_loop

    dynamics = model("cartpole")
    policy, x = policy_for(dynamics), random_states(dynamics.baseline, 5) / 3
    whole = policy_gradient(dynamics, policy, x, cost_of(dynamics), 101, backend="fused")
    monkeypatch.setattr(closed_loop, "CHUNK_BYTES", 1)
    again = policy_gradient(dynamics, policy, x[:4], cost_of(dynamics), 101, backend="fused")
    rest = policy_gradient(dynamics, policy, x[4:], cost_of(dynamics), 101, backend="fused")
    for name, by in whole.weights.items():
        assert relative(again.weights[name] + rest.weights[name], by) < 1e-9, name


def test_changed_weights_and_normalisers_are_seen():
    """Nothing is compiled or kept that a training changes."""
    dynamics = model("cartpole")
    policy, x = policy_for(dynamics), random_states(dynamics.baseline, 5) / 3
    for change in (lambda: policy.network.weights[0].data.mul_(1.1), lambda: policy.normalise(x), lambda: policy.high.fill_(1.5),
                   lambda: dynamics.corrections[0].network.biases[-1].data.add_(0.3)):
        before = policy_gradient(dynamics, policy, x, cost_of(dynamics), 9, backend="fused")
        change()
        exact, found = (policy_gradient(dynamics, policy, x, cost_of(dynamics), 9, backend=b) for b in ("torch", "fused"))
        assert relative(before.costs, exact.costs) > 1e-6
        assert_same(found, exact, 1e-10)


def test_a_policy_with_equations_of_its_own_runs_in_torch():
    """Its Warp form would speak for others."""
    class Reversed(MLPPolicy):
        def act(self, y, noise):
            return -super().act(y, noise)

    dynamics = model("cartpole")
    policy = Reversed(space=dynamics.space, low=-1.0, high=1.0)
    x = random_states(dynamics.baseline, 2)
    policy_gradient(dynamics, policy, x, cost_of(dynamics), 3)
    with pytest.raises(ValueError, match="Reversed has no Warp form"):
        policy_gradient(dynamics, policy, x, cost_of(dynamics), 3, backend="fused")


@pytest.mark.parametrize("backend", ["torch", "fused"])
@pytest.mark.parametrize(("change", "message"), [
    ({"state": torch.zeros(3)}, "state must have shape"),
    ({"horizon": 0}, "horizon must be at least 1"),
    ({"state": torch.full((2, 4), torch.nan, dtype=torch.float64)}, "not finite"),
    ({"loop": Loop(noise=torch.zeros(2, 5, 1))}, "takes no noise"),
    ({"loop": Loop(goals=torch.zeros(6, 3))}, "takes no goals"),
    ({"loop": Loop(discount=1.5)}, "discount must lie"),
])
def test_wrong_arguments_are_named(change, message, backend):
    """With what was expected and received."""
    dynamics = model("cartpole")
    given = {"state": torch.zeros(2, 4, dtype=torch.float64), "horizon": 5, "loop": Loop(), **change}
    with pytest.raises(ValueError, match=message):
        policy_gradient(dynamics, policy_for(dynamics), given["state"], cost_of(dynamics), given["horizon"], given["loop"], backend=backend)


@pytest.mark.parametrize("kind", ["mlp", "gaussian", "linear", "value"])
@pytest.mark.parametrize(("count", "dtype"), [(1, torch.float64), (1100, torch.float32)])
def test_regression_is_that_of_torch(kind, count, dtype):
    """Outputs, mean squared error and every gradient, with goals."""
    from residual_mbrl.policy_optimization.regression import outputs, regression

    dynamics = model("double_pendulum")
    head = value_for(dynamics, 2) if kind == "value" else policy_for(dynamics, kind, goal_size=2)
    x, goal = random_states(dynamics.baseline, count), numbers(count, 2)
    target = numbers(count) if kind == "value" else numbers(count, 2)
    tolerance = 1e-11 if dtype == torch.float64 else 1e-5
    exact, found = (outputs(head, s.to(d), goal.to(d), backend=b) for b, s, d in (("torch", x, torch.float64), ("fused", x, dtype)))
    assert relative(found, exact) < tolerance
    exact, found = (regression(head, x.to(d), target.to(d), goal.to(d), backend=b) for b, d in (("torch", torch.float64), ("fused", dtype)))
    assert abs(found.error - exact.error) < 10 * tolerance * exact.error
    for name, by in exact.weights.items():
        assert relative(found.weights[name], by) < 10 * tolerance, name


@pytest.mark.parametrize("kind", ["gaussian", "value"])
def test_steps_of_adam_are_those_of_torch(kind):
    """Weights and moments after several launches, with gradients cut and a last part that is smaller."""
    from residual_mbrl.policy_optimization.regression import train

    dynamics = model("double_pendulum")
    x, found = random_states(dynamics.baseline, 700), {}
    target = 5 * numbers(700) if kind == "value" else numbers(700, 2)
    for backend in ("torch", "fused"):
        head = value_for(dynamics) if kind == "value" else policy_for(dynamics, kind)
        adam = torch.optim.Adam(head.parameters(), 3e-3, betas=(0.7, 0.95), fused=True)
        generator, errors = torch.Generator().manual_seed(0), []
        for _ in range(2):
            order = torch.stack([torch.randperm(700, generator=generator) for _ in range(3)])
            errors.append(train(head, x, target, adam, order, 256, largest=1.0, unit=4.0, backend=backend))
        moments = [adam.state[w][n] for w in head.parameters() for n in ("exp_avg", "exp_avg_sq", "step")]
        found[backend] = [torch.cat(errors), *(w.detach() for w in head.parameters()), *moments]
    for a, b in zip(found["fused"], found["torch"], strict=True):
        assert relative(a, b.double()) < 1e-9


@pytest.mark.parametrize("count", [1500, 5000])
def test_threads_change_a_fit_by_rounding_alone(count, monkeypatch):
    """Steps of which each thread takes its pieces, the last one smaller, twice the same to the last bit."""
    from residual_mbrl.kernels import regression
    from residual_mbrl.policy_optimization.regression import train

    dynamics, found, threads = model("double_pendulum"), [], torch.get_num_threads()
    x, target = random_states(dynamics.baseline, count), numbers(count)
    monkeypatch.setattr(regression, "THREAD_WORK", 0.0)
    try:
        for n in (1, 3, 3):
            torch.set_num_threads(n)
            head = value_for(dynamics)
            order = torch.stack([torch.randperm(count, generator=torch.Generator().manual_seed(k)) for k in range(3)])
            errors = train(head, x, target, torch.optim.Adam(head.parameters(), 3e-3), order, 1024, backend="fused")
            found.append([errors, *(w.detach() for w in head.parameters())])
    finally:
        torch.set_num_threads(threads)
    assert any(not torch.equal(alone, shared) for alone, shared in zip(*found[:2], strict=True))
    for alone, shared, again in zip(*found, strict=True):
        assert relative(shared, alone) < 1e-11
        assert torch.equal(shared, again)
