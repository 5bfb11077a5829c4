"""SAC in branches of a model from states of logs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import policy_problem as problem
import pytest
import torch

pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed: pip install residual-mbrl[rl]")

from residual_mbrl.function_cost import FunctionCost
from residual_mbrl.learning import Budget, LearnOptions, ModelPlant, learn
from residual_mbrl.learning.episodes import Episode
from residual_mbrl.policies import angles_turned
from residual_mbrl.policy_optimization import MBPOOptions, TrainingOptions, mbpo
from residual_mbrl.policy_optimization.mbpo import transitions
from residual_mbrl.policy_optimization.model_free import BaselinesEnv, MixedReplay, TanhActorPolicy
from residual_mbrl.tasks import Window

SHORT = MBPOOptions(worlds=8, length=4, iterations=24, updates=1, batch=32, evaluate_every=8, evaluated=4)
LONGER = MBPOOptions(worlds=32, updates=4, batch=64, hidden=(64, 64))


def task(**options):
    """Stand up, wherever that is: the cost repeats after a turn, as what the policy sees does."""
    cost = FunctionCost(space=problem.dynamics().baseline.space, terminal=lambda x, r: 0 * x[..., 0],
                        running=lambda x, u, r: 1 + torch.cos(x[..., 0]) + 0.01 * x[..., 1] ** 2 + 1e-3 * u[..., 0] ** 2)
    return replace(problem.task(), cost=cost, **options)


def logs(count=3, of=None):
    """Random torques on a plant that is heavier than the model, until the task is over."""
    plant, rng, found = ModelPlant(problem.dynamics(inertia=1.2), 1e-3), np.random.default_rng(0), []
    of = of or task()
    for k in range(count):
        states, actions = [plant.reset(k, of.starts(k, 1)[0].numpy())], []
        while len(actions) < 40 and not (of.over is not None and of.over(torch.tensor(states[-1]))):
            actions.append(rng.uniform(-20, 20, 1))
            states.append(plant.step(actions[-1])[0])
        episode = Episode(name=f"log {k}", states=np.array(states), actions=np.array(actions))
        found.append(episode.trajectory(plant.space, 0.05))
    return found


def weights(policy):
    return torch.cat([w.detach().flatten() for w in policy.parameters()])


def test_transitions_are_the_steps_of_the_logs():
    """Each with the cost that the task gives it."""
    given = logs(2)
    found = transitions(problem.dynamics(), task(over=lambda x: x[..., 1].abs() > 3), given)
    states = np.concatenate([t.measurements[:-1] for t in given])
    goes_on = np.abs(states[:, 1]) <= 3
    assert np.array_equal(found.states, states[goes_on])
    assert np.array_equal(found.following, np.concatenate([t.measurements[1:] for t in given])[goes_on])
    x, u = found.states, found.actions[:, 0]
    assert found.costs == pytest.approx(1 + np.cos(x[:, 0]) + 0.01 * x[:, 1] ** 2 + 1e-3 * u**2)
    assert np.array_equal(found.over, np.abs(found.following[:, 1]) > 3)
    assert 0 < found.over.sum() < len(found.over)


def test_a_share_of_every_batch_is_the_plants():
    """Exactly so many, and all else is the model's."""
    from gymnasium.spaces import Box

    one = Box(-np.inf, np.inf, (2,), np.float64), Box(-1, 1, (1,), np.float32)
    given = [np.full((5, n) if n > 1 else 5, 7.0) for n in (2, 1, 2, 1, 1)]
    replay = MixedReplay(100, *one, "cpu", n_envs=4, given=given, share=0.25)
    for _ in range(25):
        replay.add(np.zeros((4, 2)), np.zeros((4, 2)), np.zeros((4, 1)), np.zeros(4), np.zeros(4), [{}] * 4)
    batch = replay.sample(64)
    for x in batch[:5]:
        assert len(x) == 64
        assert int((x == 7).all(-1).sum()) == 16
        assert int((x == 0).all(-1).sum()) == 48


def test_the_mean_of_sac_is_the_policy():
    """Its weights go there and back, and give the same action."""
    from stable_baselines3 import SAC

    from residual_mbrl.model_env import ModelEnv
    from residual_mbrl.policy_optimization.mbpo import _paired

    policy = problem.policy()
    x = 3 * torch.randn(20, 2, generator=torch.Generator().manual_seed(1))
    env = BaselinesEnv(ModelEnv(problem.dynamics(), count=1, start=lambda rng, n: np.zeros((n, 2)), reward=lambda x, u, y: 0 * x[:, 0],
                                observe=lambda x: policy.seen(torch.from_numpy(x)).detach().numpy(), action_range=(-20.0, 20.0)))
    learner = SAC(TanhActorPolicy, env, policy_kwargs={"net_arch": list(policy.hidden)}, seed=0)
    for there, here in _paired(learner.actor, policy):
        here.copy_(there)
    acted = learner.predict(policy.seen(x).detach().numpy(), deterministic=True)[0]
    assert np.allclose(acted, policy(x).detach().numpy(), atol=1e-4)
    before = weights(policy)
    with torch.no_grad():
        for w in policy.parameters():
            w.add_(0.1)
    for there, here in _paired(learner.actor, policy):
        there.copy_(here)
    assert torch.equal(weights(policy), before + 0.1)
    acted = learner.predict(policy.seen(x).detach().numpy(), deterministic=True)[0]
    assert np.allclose(acted, policy(x).detach().numpy(), atol=1e-4)


def test_same_arguments_give_the_same_policy():
    """And the global generators are left as they were."""
    given, start = logs(), problem.policy()
    first = mbpo(problem.dynamics(), start, task(), given, SHORT)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    second = mbpo(problem.dynamics(), start, task(), given, SHORT)
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert torch.equal(weights(first.policy), weights(second.policy))
    assert [r.cost for r in first.rounds] == [r.cost for r in second.rounds]
    assert [r.iteration for r in first.rounds] == [8, 16, 24]
    assert first.cost == min(r.cost for r in first.rounds)


@pytest.mark.slow
def test_a_pendulum_stands_up():
    """It costs little more than by gradients through the model."""
    from residual_mbrl.policy_optimization import apg

    found = mbpo(problem.dynamics(), problem.policy(), task(), logs(), replace(LONGER, iterations=600))
    assert found.cost < 2 * apg(problem.dynamics(), problem.policy(), task(), TrainingOptions(iterations=300)).cost


@pytest.mark.slow
def test_a_task_that_ends_is_not_ended():
    """Though every step costs something: where it is over, what is missing counts as the worst."""
    cost = FunctionCost(space=problem.dynamics().baseline.space, terminal=lambda x, r: 0 * x[..., 0],
                        running=lambda x, u, r: 0.1 + (x[..., 0] - problem.UPRIGHT) ** 2)

    def over(x):
        return (x[..., 0] - problem.UPRIGHT).abs() > 0.5

    falls = replace(problem.task(), cost=cost, over=over,
                    start=lambda g, n: torch.tensor([problem.UPRIGHT, 0.0]) + 0.1 * torch.randn(n, 2, generator=g))
    found = mbpo(problem.dynamics(), problem.policy(), falls, logs(20, falls), replace(LONGER, iterations=300, rate=3e-3))
    learner_ends, untrained_ends = (_ended(p, falls, over) for p in (found.policy, problem.policy()))
    assert untrained_ends > 0.9
    assert learner_ends < 0.2


def _ended(policy, task, over):
    """Return the share of episodes that end before their time."""
    from residual_mbrl.policy_rollouts import policy_rollout

    states = policy_rollout(problem.dynamics(), policy, task.starts(0, 50).float(), task.cost, task.steps).states
    return float(over(states).any(-1).float().mean())


def test_a_model_that_fails_spoils_nothing():
    """Where no state is finite, the policy is the one that was given."""
    found = mbpo(problem.dynamics(inertia=1e-300), problem.policy(), task(), logs(), SHORT)
    assert found.cost == float("inf")
    assert torch.equal(weights(found.policy), weights(problem.policy()))


def test_learn_trains_by_it_and_goes_on(tmp_path):
    """To the same result where the policy of a round is missing, as after a kill."""
    import shutil

    def run(out):
        return learn(ModelPlant(problem.dynamics(inertia=1.2), 1e-3), problem.dynamics(), task(), problem.policy(), Budget(rounds=2), out,
                     LearnOptions(window=10, identify=None, fit=None, method="mbpo", training=SHORT))

    whole = run(tmp_path / "run")
    assert whole.rounds[0].predicted == pytest.approx(whole.rounds[0].predicted)
    shutil.rmtree(tmp_path / "run" / "round_001" / "policy")
    assert torch.equal(weights(run(tmp_path / "run").policy), weights(whole.policy))


def test_what_does_not_fit_is_named(tmp_path):
    """Before anything is trained."""
    from residual_mbrl.dynamics import ResidualDynamics
    from residual_mbrl.physics.cartpole import CartPole

    given = logs(1)
    with pytest.raises(ValueError, match="expected an MLPPolicy without goals"):
        mbpo(problem.dynamics(), problem.gaussian(), task(), given, SHORT)
    with pytest.raises(ValueError, match="expected logs of the state"):
        mbpo(ResidualDynamics(CartPole(dt=0.05)), problem.policy(), task(), given, SHORT)
    following = replace(task(), cost=Window(_followed(), 0, 40))
    with pytest.raises(ValueError, match="change from step to step"):
        mbpo(problem.dynamics(), problem.policy(), following, given, SHORT)
    with pytest.raises(ValueError, match="expected an MLPPolicy without goals"):
        learn(ModelPlant(problem.dynamics()), problem.dynamics(), task(), problem.gaussian(), Budget(), tmp_path / "run",
              LearnOptions(identify=None, fit=None, method="mbpo", training=SHORT))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="takes training of MBPOOptions"):
        LearnOptions(method="mbpo")
    with pytest.raises(ValueError, match="takes training of TrainingOptions"):
        LearnOptions(training=SHORT)
    with pytest.raises(ValueError, match="MBPOOptions: expected positive"):
        MBPOOptions(real=1.0)


def _followed():
    space = problem.dynamics().baseline.space
    return FunctionCost(space=space, running=lambda x, u, r: (x - r).square().sum(-1), terminal=lambda x, r: 0 * x[..., 0],
                        reference=torch.zeros(41, 2), trajectory=True)


def test_features_that_it_sees_are_the_policys():
    """Angles as sine and cosine, all else by its spread."""
    policy, x = problem.policy(), torch.tensor([[1.0, 2.0]])
    assert [f.transform for f in angles_turned(policy.space, policy.space.position)][:2] == ["sin", "cos"]
    assert policy.seen(x)[0, :2].tolist() == pytest.approx([np.sin(1.0), np.cos(1.0)])
