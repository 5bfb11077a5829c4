"""The learning loop: collect, identify, fit, optimise or plan, evaluate, and again."""

from residual_mbrl.learning.acting import Planning, PolicyOrPlanning, actor
from residual_mbrl.learning.loop import learn
from residual_mbrl.learning.networks import network_alone
from residual_mbrl.learning.plants import GymnasiumPlant, LoggedPlant, ModelPlant, Plant
from residual_mbrl.learning.progress import shown
from residual_mbrl.learning.settings import Budget, Learned, LearnedRound, LearnOptions

__all__ = ["Budget", "GymnasiumPlant", "LearnOptions", "Learned", "LearnedRound", "LoggedPlant", "ModelPlant", "Plant",
           "Planning", "PolicyOrPlanning", "actor", "learn", "network_alone", "shown"]
