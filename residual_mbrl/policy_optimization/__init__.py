"""Policies trained through a model: by gradients of short windows, or by imitating a planner."""

from residual_mbrl.policy_optimization.critic import CriticOptions
from residual_mbrl.policy_optimization.horizon import usable_horizon
from residual_mbrl.policy_optimization.short_horizon import Trained, TrainingOptions, TrainingRound, apg, shac

__all__ = ["CriticOptions", "Trained", "TrainingOptions", "TrainingRound", "apg", "shac", "usable_horizon"]
