"""A model as a batched Gymnasium environment."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import ModelError
from residual_mbrl.physics.cartpole import CartPole
from residual_mbrl.residuals import CommandActuator
from residual_mbrl.rollouts import rollout

gymnasium = pytest.importorskip("gymnasium")

from residual_mbrl.model_env import ModelEnv  # noqa: E402  # needs gymnasium


def balanced(count=3, *, dynamics=None, **options):
    """Cart-poles near the upright position; the reward is the pole's height."""
    dynamics = dynamics or ResidualDynamics(CartPole(dt=0.02))
    return ModelEnv(dynamics, count=count, start=lambda rng, n: 0.01 * rng.standard_normal((n, 4)),
                    reward=lambda x, u, y: np.cos(y[:, 1]), action_range=(-5.0, 5.0), **options)


def test_steps_are_the_models():
    """Observations are the model's own rollout."""
    env = balanced()
    first, _ = env.reset(seed=1)
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 3, 1)).astype(np.float32)
    seen = np.stack([first, *(env.step(u)[0] for u in actions)], 1)
    expected = rollout(env.dynamics, torch.from_numpy(first), torch.from_numpy(actions.astype(np.float64)).transpose(0, 1))
    assert np.allclose(seen, expected.numpy(), atol=1e-12)


def test_spaces_hold_what_it_gives():
    """Observations and sampled actions lie in their spaces; actions beyond the range are clipped."""
    env = balanced(horizon=5)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    inside, beyond = balanced(), balanced()
    inside.reset(seed=0)
    beyond.reset(seed=0)
    assert np.array_equal(inside.step(np.full((3, 1), 5.0))[0], beyond.step(np.full((3, 1), 50.0))[0])


def test_seeds_repeat():
    """One seed gives the same first states."""
    assert np.array_equal(balanced().reset(seed=4)[0], balanced().reset(seed=4)[0])


def test_ends_and_starts_again():
    """An episode is truncated at its horizon, and the step after it shows a new first state and no reward."""
    env = balanced(horizon=2)
    env.reset(seed=0)
    push = np.ones((3, 1))
    assert not env.step(push)[3].any()
    assert env.step(push)[3].all()
    observation, reward, terminated, truncated, _ = env.step(push)
    assert np.abs(observation).max() < 0.1
    assert not (reward.any() or terminated.any() or truncated.any())
    assert not env.step(push)[3].any()


def test_terminates_where_the_task_is_over():
    """A world that meets the end condition terminates alone."""
    env = balanced(ends=lambda x: np.abs(x[:, 0]) > 0.05)
    env.reset(seed=0)
    push = np.array([[5.0], [0.0], [0.0]])
    for _ in range(20):
        terminated = env.step(push)[2]
        if terminated.any():
            break
    assert terminated.tolist() == [True, False, False]


def test_a_lost_world_ends_and_the_others_go_on():
    """A state that is no longer finite is a failed, terminated episode without reward."""
    env = balanced()
    env.reset(seed=0)
    env._state[1] = float("nan")
    observation, reward, terminated, _, infos = env.step(np.zeros((3, 1)))
    assert terminated.tolist() == infos["failed"].tolist() == [False, True, False]
    assert reward[1] == 0
    assert np.isfinite(observation[[0, 2]]).all()
    assert np.isfinite(env.step(np.zeros((3, 1)))[0]).all()


def test_memory_starts_with_each_episode():
    """A delay remembers the first command of its own episode, not the last one's."""
    dynamics = ResidualDynamics(CartPole(dt=0.02), [CommandActuator(nu=1, channels=[0], dt=0.02, max_delay=0.05)])
    env = balanced(dynamics=dynamics, horizon=3)
    env.reset(seed=0)
    for _ in range(4):
        first = env.step(np.full((3, 1), 5.0))[0]
    seen = env.step(np.full((3, 1), -5.0))[0]
    with torch.no_grad():
        expected = rollout(dynamics, torch.from_numpy(first), torch.full((3, 1, 1), -5.0, dtype=torch.float64))[:, -1, :4]
    assert np.allclose(seen, expected.numpy(), atol=1e-12)


def test_bad_input():
    """Wrong shapes are named."""
    with pytest.raises(ModelError, match=r"start must give states of shape \(1, 4\)"):
        ModelEnv(ResidualDynamics(CartPole(dt=0.02)), count=2, start=lambda rng, n: np.zeros((n, 3)), reward=lambda x, u, y: x[:, 0])
    env = balanced()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"expected actions of shape \(3, 1\)"):
        env.step(np.zeros((2, 1)))


def test_steps_of_an_ensemble_are_each_of_one_member():
    """Drawn anew: over some steps a world meets several, and all are met."""
    from problems import system

    from residual_mbrl.dynamics import ensemble
    from residual_mbrl.residuals import Feature, Unstructured

    def member(seed):
        generator = torch.Generator().manual_seed(seed)
        residual = Unstructured(nv=2, features=[Feature(source="angle")], bound=5.0, hidden=(4,), seed=seed)
        with torch.no_grad():
            for w in residual.parameters():
                w.add_(torch.randn(w.shape, generator=generator, dtype=w.dtype), alpha=0.5)
        return ResidualDynamics(system("cartpole"), [residual])

    members = [member(k) for k in range(3)]
    env = balanced(8, dynamics=ensemble(members))
    x, _ = env.reset(seed=0)
    met = np.zeros((8, 3), bool)
    for _ in range(12):
        shown, *_ = env.step(np.ones((8, 1)))
        after = np.stack([m.step(torch.from_numpy(x), torch.ones(8, 1).double()).detach().numpy() for m in members], 1)
        same = np.isclose(after, shown[:, None], atol=1e-12).all(-1)
        assert (same.sum(1) == 1).all()
        met |= same
        x = shown
    assert met.any(0).all()
    assert (met.sum(1) > 1).all()


def test_a_reward_that_is_no_number_is_named():
    """With the world, its state and action."""
    env = ModelEnv(ResidualDynamics(CartPole(dt=0.02)), count=3, start=lambda rng, n: np.zeros((n, 4)),
                   reward=lambda x, u, y: np.array([0.0, np.nan, 0.0]))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="the reward of world 1 is nan, of state"):
        env.step(np.zeros((3, 1)))
