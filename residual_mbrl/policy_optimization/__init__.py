"""Policies trained through a model: by gradients of short windows, by SAC in branches, or by imitating a planner."""

from residual_mbrl.policy_optimization.critic import CriticOptions
from residual_mbrl.policy_optimization.horizon import usable_horizon
from residual_mbrl.policy_optimization.mbpo import MBPOOptions, mbpo
from residual_mbrl.policy_optimization.short_horizon import Trained, TrainingOptions, TrainingRound, apg, shac

__all__ = ["CriticOptions", "MBPOOptions", "Trained", "TrainingOptions", "TrainingRound", "apg", "mbpo", "shac", "usable_horizon"]
