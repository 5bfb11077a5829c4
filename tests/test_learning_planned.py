"""The learning loop with a planner in place of a policy, with ensembles, and without a baseline."""

from __future__ import annotations

import io
import math

import numpy as np
import policy_problem as problem
import pytest
import torch
from rich.console import Console
from test_learning import Dying, Killed

from residual_mbrl.costs import QuadraticCost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.exploration import InformationOptions, disagreement_excitation, information_excitation, random_excitation
from residual_mbrl.exploration.excitation import SearchOptions
from residual_mbrl.fitting import FitOptions
from residual_mbrl.identification import IdentifyOptions
from residual_mbrl.learning import Budget, LearnOptions, ModelPlant, Planning, learn, network_alone, shown
from residual_mbrl.learning.episodes import load
from residual_mbrl.planners import ICEMOptions, ILQROptions
from residual_mbrl.policy_optimization import TrainingOptions
from residual_mbrl.residuals import Feature, Unstructured
from residual_mbrl.tasks import Task, Window

TRUE = {"inertia": 1.4, "viscous": 0.3, "gravity_moment": 8.0}
ICEM = ICEMOptions(samples=64, iterations=2, elites=8)


def alone():
    """A network in place of the pendulum's equations."""
    space = problem.dynamics().baseline.space
    return network_alone(space, dt=0.05, bound=40.0, angles=space.position, hidden=(16,))


def options(**given):
    fit = FitOptions(method="adam", rounds=1, iterations=60, learning_rate=2e-2, parameters=False)
    found = IdentifyOptions(free=list(TRUE), candidates=4, starts=1)
    return LearnOptions(**{"window": 5, "stride": 2, "fit": fit, "identify": found, **given})


def run(out, dynamics, policy, settings, **given):
    plant, budget = ModelPlant(problem.dynamics(**TRUE), 1e-3), Budget(rounds=3, evaluations=2)
    return learn(plant, dynamics, given.pop("task", problem.task()), policy, budget, out, settings, **given)


@pytest.mark.parametrize("planner", [ICEM, ILQROptions(iterations=5)])
def test_planning_in_the_identified_model_holds_the_pendulum_up(tmp_path, planner):
    """From one episode of data on; what it says of itself is whole."""
    lines = io.StringIO()
    with shown(Console(file=lines, width=140)) as told:
        learned = run(tmp_path, problem.dynamics(), Planning(steps=15, options=planner), options(), **told)
    assert learned.rounds[-1].evaluated < 0.2 * learned.rounds[0].collected
    assert math.isnan(learned.rounds[-1].predicted)
    assert "round 2: 6 s of the plant" in lines.getvalue()


def test_networks_alone_with_icem_learn_the_task(tmp_path):
    """An ensemble without a baseline, planned with by sampling: PETS; and the same run again reads what is there."""
    def pets():
        return run(tmp_path, alone(), Planning(steps=12, options=ICEM), options(members=3))

    learned = pets()
    assert learned.dynamics.members == 3
    assert learned.rounds[-1].evaluated < 0.3 * learned.rounds[0].collected
    assert [repr(r) for r in pets().rounds] == [repr(r) for r in learned.rounds]


def test_a_policy_is_trained_in_an_ensemble(tmp_path):
    """Members share the identified values and differ in their residuals."""
    force = Unstructured(nv=1, features=[Feature(source="velocity")], bound=2.0, hidden=(4,))
    model = ResidualDynamics(problem.dynamics().baseline, [force])
    training = TrainingOptions(worlds=8, horizon=24, iterations=60, evaluate_every=20)
    learned = run(tmp_path, model, problem.policy(), options(members=2, training=training))
    assert learned.dynamics.members == 2
    assert learned.dynamics.values["inertia"] == pytest.approx(TRUE["inertia"], rel=0.1)
    assert learned.rounds[-1].evaluated < 0.3 * learned.rounds[0].collected


def test_a_planned_run_that_is_killed_goes_on_to_the_same_result(tmp_path):
    """Samples of the planner depend on the episode alone, members on the round."""
    force = Unstructured(nv=1, features=[Feature(source="velocity")], bound=2.0, hidden=(4,))

    def once(out):
        model, plant = ResidualDynamics(problem.dynamics().baseline, [force]), Dying(problem.dynamics(**TRUE), 1e-3)
        planning, budget = Planning(steps=8, options=ICEM), Budget(rounds=2, evaluations=1)
        found = learn(plant, model, problem.task(), planning, budget, out, options(members=2))
        weights = (out / "round_001" / "model" / "weights.safetensors").read_bytes()
        return [repr(r) for r in found.rounds], weights

    whole = once(tmp_path / "whole")
    Dying.left = 95  # of 160: amid the second round's episode
    with pytest.raises(Killed):
        once(tmp_path / "killed")
    assert once(tmp_path / "killed") == whole


def test_who_acts_may_be_guarded(tmp_path):
    """In every round, with the model as it is known then."""
    seen = []

    def guard(act, dynamics):
        seen.append(dynamics.values["inertia"])
        return lambda state, t: 0.5 * np.clip(act(state, t), -2, 2)

    run(tmp_path, problem.dynamics(), Planning(steps=10, options=ILQROptions(iterations=2)), options(), guard=guard)
    assert seen[0] == 1.0
    assert seen[-1] == pytest.approx(TRUE["inertia"], rel=0.1)
    assert max(np.abs(np.load(p)["actions"]).max() for p in tmp_path.rglob("episode*.npz")) <= 1


def test_planning_follows_targets_that_move(tmp_path):
    """A window of the references at every step, the last one held."""
    space, time = problem.dynamics().baseline.space, 0.05 * torch.arange(41.0)
    target = torch.stack([0.5 * torch.sin(2 * time), torch.cos(2 * time)], -1)
    cost = QuadraticCost(space=space, state=torch.tensor([10.0, 0.1]), action=torch.tensor([1e-4]), target=target, trajectory=True)
    cut = Window(cost, 38, 5).references
    assert torch.equal(cut[:, :2], target[[38, 39, 40, 40, 40, 40]])
    task = Task(cost=cost, start=lambda generator, count: target[:1].repeat(count, 1), steps=40, low=torch.tensor([-20.0]),
                high=torch.tensor([20.0]))
    learned = run(tmp_path, problem.dynamics(), Planning(steps=10, options=ILQROptions(iterations=3)), options(), task=task)
    assert learned.rounds[-1].evaluated < 0.5


def test_wrong_arguments_are_named():
    """Before anything happens."""
    with pytest.raises(ValueError, match="there are no positions"):
        network_alone(problem.dynamics().baseline.space, dt=0.05, bound=1.0, angles=["x"])
    with pytest.raises(ValueError, match="a fit where there are several"):
        LearnOptions(members=3, fit=None)


def test_excitation_in_an_ensemble_goes_on_from_round_to_round(tmp_path):
    """Members are alike in the first round, where disagreement is none and actions are random; they are not in the next."""
    force = Unstructured(nv=1, features=[Feature(source="velocity")], bound=5.0, hidden=(4,))
    search, budget = SearchOptions(iterations=2, candidates=8), Budget(rounds=2, excited=2)
    model, found = ResidualDynamics(problem.dynamics().baseline, [force]), {}

    def information(dynamics, task, steps, seed):
        return information_excitation(dynamics, task, steps, seed, InformationOptions(free=list(TRUE), search=search))

    ways = {"random": random_excitation, "information": information,
            "disagreement": lambda *given: disagreement_excitation(*given, options=search)}
    for name, excite in ways.items():
        learn(ModelPlant(problem.dynamics(**TRUE), 1e-3), model, problem.task(), Planning(steps=5, options=ICEM), budget, tmp_path / name,
              options(members=2), excite=excite)
        found[name] = [load(p, "episode").actions for p in sorted((tmp_path / name).rglob("episode_000.npz"))]
        assert [len(a) for a in found[name]] == [40, 40]
    same = [np.array_equal(a, b) for a, b in zip(found["random"], found["disagreement"], strict=True)]
    assert same == [True, False]
