"""What a learning run is given, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.fitting import FitOptions
from residual_mbrl.identification import IdentifyOptions
from residual_mbrl.learning.acting import PolicyOrPlanning
from residual_mbrl.policy_optimization.mbpo import MBPOOptions
from residual_mbrl.policy_optimization.short_horizon import TrainingOptions


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a run may use.

    Args:
        rounds: At most.
        seconds: Of the plant in all, evaluations aside; an episode too short to learn from counts.
        episodes: Of each round.
        steps: Of an episode that is learned from; the task's where missing.
        evaluations: Episodes of each evaluation, not learned from.
        excited: First rounds in which the excitation acts; the controller does in all others.
    """

    rounds: int = 3
    seconds: float = float("inf")
    episodes: int = 1
    steps: int | None = None
    evaluations: int = 0
    excited: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        if (self.rounds < 1 or self.episodes < 1 or self.seconds <= 0 or self.evaluations < 0 or self.excited < 1
                or (self.steps is not None and self.steps < 2)):
            raise ValueError(f"Budget: expected rounds, episodes and excited >= 1, seconds > 0, steps >= 2, received {self}")


@dataclass(frozen=True, kw_only=True)
class LearnOptions:
    """How a run learns.

    Args:
        window: Steps over which the model is to predict.
        stride: Steps from one window to the next.
        noise: Standard deviation of each measured state entry, [nx] or a number.
        identify: How parameters are found; None leaves them.
        fit: How residuals are fitted; None leaves them.
        members: Fits of an ensemble, each on windows drawn anew and from weights of its own; 1 for a single fit.
        training: How a policy is optimised.
        method: By which algorithm; "mbpo" asks for ``MBPOOptions``.
        seed: Of the run.
    """

    window: int = 25
    stride: int = 5
    noise: float | Sequence[float] = 1e-3
    identify: IdentifyOptions | None = field(default_factory=IdentifyOptions)
    fit: FitOptions | None = field(default_factory=FitOptions)
    members: int = 1
    training: TrainingOptions | MBPOOptions = field(default_factory=TrainingOptions)
    method: Literal["apg", "shac", "mbpo"] = "apg"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.members < 1 or (self.members > 1 and self.fit is None):
            raise ValueError(f"LearnOptions: expected members >= 1, and a fit where there are several, received {self.members}, {self.fit}")
        wanted = MBPOOptions if self.method == "mbpo" else TrainingOptions
        if not isinstance(self.training, wanted):
            raise ValueError(f"LearnOptions: method {self.method!r} takes training of {wanted.__name__}, received "
                             f"{type(self.training).__name__}")


@dataclass(frozen=True, kw_only=True)
class LearnedRound:
    """What a round came to.

    Attributes:
        round: Its number, from 0.
        seconds: Of the plant so far, evaluations aside.
        collected: Mean cost of the round's own episodes.
        predicted: Mean cost of the task's episodes under the policy in the model; NaN of a planner, which would have to plan them.
        evaluated: Mean cost of evaluation episodes on the plant; NaN where there are none.
        values: Physical parameters.
    """

    round: int
    seconds: float
    collected: float
    predicted: float
    evaluated: float
    values: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Learned:
    """The last model, the policy that did best in evaluations (the last where there are none, or the planner), and every round."""

    dynamics: ResidualDynamics
    policy: PolicyOrPlanning
    rounds: tuple[LearnedRound, ...]
