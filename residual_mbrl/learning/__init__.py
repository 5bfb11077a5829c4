"""The learning loop: collect, identify, fit, optimise, evaluate, and again."""

from residual_mbrl.learning.loop import Budget, Learned, LearnedRound, LearnOptions, learn
from residual_mbrl.learning.plants import GymnasiumPlant, LoggedPlant, ModelPlant, Plant

__all__ = ["Budget", "GymnasiumPlant", "LearnOptions", "Learned", "LearnedRound", "LoggedPlant", "ModelPlant", "Plant", "learn"]
