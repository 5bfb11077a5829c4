"""Learners of stable-baselines3 in a model."""

from __future__ import annotations

import numpy as np
import policy_problem as problem
import pytest

pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed: pip install residual-mbrl[rl]")

from residual_mbrl.model_env import ModelEnv
from residual_mbrl.policy_optimization.model_free import BaselinesEnv


def worlds(count=4, horizon=20):
    def start(rng, n):
        return np.stack([problem.UPRIGHT + 0.3 * rng.standard_normal(n), np.zeros(n)], 1)

    def reward(x, u, after):
        return 1 - (x[:, 0] - problem.UPRIGHT) ** 2 - 1e-3 * u[:, 0] ** 2

    return ModelEnv(problem.dynamics(), count=count, start=start, reward=reward, horizon=horizon, action_range=(-20.0, 20.0),
                    ends=lambda x: np.abs(x[:, 0] - problem.UPRIGHT) > 1.5)


def test_episodes_begin_anew_where_they_end():
    """With the last observation of each, and whether it was the time that ended it."""
    env = BaselinesEnv(worlds())
    env.seed(3)
    env.reset()
    for k in range(1, 21):
        shown, _, over, infos = env.step(np.zeros((4, 1), np.float32))
        assert (np.abs(shown[:, 0] - problem.UPRIGHT) <= 1.5).all()
        for world in np.flatnonzero(over):
            fell = abs(infos[world]["terminal_observation"][0] - problem.UPRIGHT) > 1.5
            assert infos[world]["TimeLimit.truncated"] == (k == 20 and not fell)
    assert over.any()


@pytest.mark.slow
def test_sac_learns_in_the_model():
    """To keep a pendulum up that falls without it."""
    from stable_baselines3 import SAC
    from stable_baselines3.common.evaluation import evaluate_policy

    learner = SAC("MlpPolicy", BaselinesEnv(worlds(8)), learning_starts=200, train_freq=4, gradient_steps=8, batch_size=64, seed=0,
                  learning_rate=2e-3, ent_coef=0.02, policy_kwargs={"net_arch": [32, 32]})
    before, _ = evaluate_policy(learner, BaselinesEnv(worlds(8)), 16, warn=False)
    learner.learn(4000)
    after, _ = evaluate_policy(learner, BaselinesEnv(worlds(8)), 16, warn=False)
    assert after > before + 3
