"""Training through short windows: it finds what a known solution is near to, resumes exactly, and cuts exploding horizons."""

from __future__ import annotations

import math

import policy_problem as problem
import pytest
import torch
from problems import randomise, system

from residual_mbrl.dynamics import ResidualDynamics, ensemble
from residual_mbrl.errors import ModelError
from residual_mbrl.policies import LinearPolicy, MLPPolicy, Value
from residual_mbrl.policy_optimization import CriticOptions, TrainingOptions, apg, shac, usable_horizon
from residual_mbrl.policy_optimization.critic import traced_targets
from residual_mbrl.policy_optimization.distillation import DistillationOptions, distil
from residual_mbrl.policy_optimization.values import ValueCost, warm_actions
from residual_mbrl.policy_rollouts import policy_rollout
from residual_mbrl.residuals import Feature, Unstructured
from residual_mbrl.rollouts import cost_gradient, rollout
from residual_mbrl.tasks import WithoutEnd

FEW = {"worlds": 32, "horizon": 16, "iterations": 150, "evaluated": 32}


def cost_of(policy, model=None):
    found = policy_rollout(model or problem.dynamics(), policy, problem.task().starts(99, 64, dtype=torch.float32), problem.task().cost, 40)
    return float(found.running.sum(-1).mean())


def regulator():
    """A stiff PD controller, which with so much torque is close to the best."""
    space = problem.dynamics().space
    best = (math.inf, None)
    for stiffness in (10.0, 20.0, 30.0, 45.0):
        for damping in (2.0, 4.0, 8.0):
            found = LinearPolicy.feedback(space=space, gain=torch.tensor([[stiffness, damping]], dtype=torch.float64), low=-20.0, high=20.0,
                                          target=torch.tensor([problem.UPRIGHT, 0.0], dtype=torch.float64),
                                          action=torch.zeros(1, dtype=torch.float64)).float()
            best = min(best, (cost_of(found), found), key=lambda pair: pair[0])
    return best


@pytest.mark.parametrize("train", [apg, shac])
@pytest.mark.parametrize("kind", ["policy", "gaussian"])
def test_training_comes_near_the_best_regulator(train, kind):
    """From a policy that does nothing, within a sixth of the best of a grid of regulators."""
    policy = getattr(problem, kind)()
    found = train(problem.dynamics(), policy, problem.task(), TrainingOptions(**{**FEW, "horizon": 32}))
    assert cost_of(found.policy) < 7 / 6 * regulator()[0] < 0.3 * cost_of(policy)
    assert found.skipped == 0
    assert found.steps == 150 * 32 * 32


def test_backends_agree():
    """The same training in torch gives the same policy, while rounding has not grown."""
    costs = [shac(problem.dynamics(), problem.gaussian(), problem.task(),
                  TrainingOptions(**{**FEW, "iterations": 4, "evaluate_every": 4, "dtype": torch.float64}), backend=b).cost
             for b in ("torch", "fused")]
    assert costs[0] == pytest.approx(costs[1], rel=1e-9)


@pytest.mark.parametrize("train", [apg, shac])
def test_a_stopped_run_goes_on_to_the_same_result(train, tmp_path):
    """Bit for bit, wherever it was stopped between evaluations."""
    options = TrainingOptions(**{**FEW, "iterations": 12, "evaluate_every": 4})

    class Stopped(Exception):  # noqa: N818
        pass

    def stop(entry):
        if entry.iteration == 8:
            raise Stopped

    def run(**given):
        return train(problem.dynamics(), problem.gaussian(), problem.task(), options, **given)

    whole = run()
    with pytest.raises(Stopped):
        run(checkpoint=tmp_path / "c", progress=stop)
    again = run(checkpoint=tmp_path / "c")
    assert again.cost == whole.cost
    for a, b in zip(again.policy.parameters(), whole.policy.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ModelError, match="another model, task or options"):
        train(problem.dynamics(inertia=2.0), problem.gaussian(), problem.task(), options, checkpoint=tmp_path / "c")


def test_targets_are_those_of_the_definition():
    """λ of one sums up the window, λ of zero looks one step ahead."""
    running, values = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0, 40.0])
    torch.testing.assert_close(traced_targets(running, values, 0.5, 0.0), torch.tensor([11.0, 17.0, 23.0]))
    torch.testing.assert_close(traced_targets(running, values, 0.5, 1.0), torch.tensor([1 + 1 + 0.75 + 5, 2 + 1.5 + 10, 3 + 20]))


def test_horizon_is_cut_where_the_closed_loop_explodes():
    """At an unstable equilibrium changes grow by the known factor, and feedback that holds it ends the growth."""
    model = problem.dynamics()
    held = torch.tensor([[problem.UPRIGHT, 0.0]], dtype=torch.float64).expand(3, 81, 2)
    nothing = MLPPolicy(space=model.space, low=-20.0, high=20.0)
    actions = torch.zeros(3, 80, 1, dtype=torch.float64)
    rate = torch.linalg.eigvals(_transition(model, held[0, 0])).abs().max()
    found = usable_horizon(model, nothing, held, actions, threshold=100.0)
    assert abs(found - math.log(100) / math.log(rate)) < 8
    holds = LinearPolicy.feedback(space=model.space, gain=torch.tensor([[30.0, 6.0]], dtype=torch.float64), target=held[0, 0],
                                  action=torch.zeros(1, dtype=torch.float64), low=-20.0, high=20.0)
    assert usable_horizon(model, holds, held, actions, threshold=100.0) == 80


def _transition(model, x):
    return torch.autograd.functional.jacobian(lambda y: model.step(y, torch.zeros(1, dtype=torch.float64)), x)


def test_training_uses_the_cut_horizon():
    """And says so."""
    options = TrainingOptions(**{**FEW, "iterations": 2, "horizon": 60, "explosion": 3.0, "audit_every": 1, "evaluate_every": 1})
    found = apg(problem.dynamics(), problem.policy(), problem.task(80), options)
    assert found.rounds[-1].horizon < 60


def members(spread):
    """An ensemble whose members push each their own way."""
    made = []
    for k in range(3):
        force = Unstructured(nv=1, features=[Feature(source="velocity")], bound=10.0, hidden=(4,))
        with torch.no_grad():
            force.network.biases[-1].fill_(spread * (k - 1))
        made.append(ResidualDynamics(problem.dynamics().baseline, [force]))
    return ensemble(made)


def test_penalty_narrows_the_spread_between_members():
    """At the price of the mean."""
    x = problem.task().starts(5, 64, dtype=torch.float32).expand(3, 64, 2)
    spreads = []
    for penalty in (0.0, 3.0):
        found = apg(members(0.15), problem.policy(), problem.task(), TrainingOptions(**{**FEW, "penalty": penalty}))
        costs = policy_rollout(members(0.15), found.policy, x, problem.task().cost, 16).costs
        spreads.append(float(costs.std(0).mean()))
    assert spreads[1] < spreads[0]


def test_distilled_policy_does_as_its_expert():
    """On states of its own making."""
    cost, expert = regulator()
    found = distil(problem.dynamics(), expert, problem.policy(), problem.task(), DistillationOptions(rounds=3, epochs=40))
    assert len(found.rounds) == 3
    assert found.rounds[-1].states == 3 * 8 * 40
    assert cost_of(found.policy) < 1.1 * cost


def test_value_is_the_cost_to_come():
    """Of the policy that it was fitted under: to two fifths of their spread over states, in the middle one of three trainings."""
    errors, x = [], problem.task().starts(7, 200, dtype=torch.float32)
    for seed in range(3):  # one training ends at a tenth or at a half, as rounding has it, in torch too
        options = TrainingOptions(**{**FEW, "iterations": 400, "critic": CriticOptions(rounds=24), "seed": seed})
        found = shac(problem.dynamics(), problem.policy(), problem.task(), options)
        running = policy_rollout(problem.dynamics(), found.policy, x, problem.task().cost, 300).running
        true = (running * 0.99 ** torch.arange(300)).sum(-1)
        assert isinstance(found.value, Value)
        errors.append(float((found.value(x).detach() - true).square().mean().sqrt() / true.std()))
    assert sorted(errors)[1] < 0.4


@pytest.mark.parametrize(("call", "message"), [
    (lambda: TrainingOptions(worlds=0), "expected positive"),
    (lambda: TrainingOptions(discount=2.0), "discount"),
    (lambda: DistillationOptions(epochs=0), "expected positive"),
    (lambda: apg(ResidualDynamics(system("cartpole")), problem.policy(), problem.task()), "the model has 4"),
])
def test_wrong_arguments_are_named(call, message):
    """With what was expected and received."""
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("backend", ["torch", "fused"])
def test_value_ends_a_planners_cost(backend):
    """Costs and gradients of given actions are those of the value's own rollout, its weights being data."""
    model, task = problem.dynamics(), problem.task()
    value = randomise(Value(space=model.space, features=problem.policy().features.features, hidden=(6, 5)), scale=0.6)
    value.normalise(3 * torch.randn(50, 2, dtype=torch.float64))
    value.scale.fill_(4.0)
    x, u = task.starts(3, 5), torch.randn(5, 12, 1, dtype=torch.float64)
    cost = ValueCost(task.cost, value, 0.9)
    for _ in range(2):
        found, states = cost_gradient(model, x, u, cost, backend=backend), rollout(model, x, u, backend="torch")
        plain = cost_gradient(model, x, u, WithoutEnd(task.cost), backend="torch")
        torch.testing.assert_close(found.costs, plain.costs + 0.9 * value(states[:, -1]).detach(), rtol=1e-9, atol=1e-9)
        moved = u.clone().requires_grad_()
        total = (0.9 * value(rollout(model, x, moved, backend="torch")[:, -1])).sum()
        torch.testing.assert_close(found.actions, plain.actions + torch.autograd.grad(total, moved)[0], rtol=1e-7, atol=1e-7)
        value.network.weights[0].data.mul_(0.7)


def test_a_policy_says_where_a_planner_may_begin():
    """Its actions under the model."""
    model, task, policy = problem.dynamics(), problem.task(), problem.policy()
    randomise(policy, scale=0.3)
    x = task.starts(3, 5)
    actions = warm_actions(model, policy, x, task.cost, 7)
    states = rollout(model, x, actions)
    torch.testing.assert_close(actions, policy(states[:, :-1]).detach())
