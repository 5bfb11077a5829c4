"""What every policy is: actions from states, with noise and goals as data."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from residual_mbrl.spaces import StateSpace


class Policy(nn.Module, ABC):
    """``u = π(x, noise, goal)``; a policy keeps nothing between steps.

    Args:
        space: Of the plant, without residual memory: a policy sees what the plant shows.
        noise_size: Standard normal numbers that a step asks for; none makes the policy deterministic.
        goal_size: Numbers that say what is wanted of the step, such as a target.
    """

    def __init__(self, space: StateSpace, *, noise_size: int = 0, goal_size: int = 0) -> None:
        super().__init__()
        self.space, self.noise_size, self.goal_size = space, noise_size, goal_size

    @abstractmethod
    def forward(self, state: Float[Tensor, "*batch n"], noise: Float[Tensor, "*batch k"] | None = None,
                goal: Float[Tensor, "*batch g"] | None = None) -> Float[Tensor, "*batch nu"]:
        """Return the action, shape [*batch, nu].

        Args:
            state: State of the plant or of a model of it, whose memory is not looked at, shape [*batch, nx] or longer.
            noise: Standard normal, shape [*batch, noise_size]; none where missing: the mean action.
            goal: Shape [*batch, goal_size].

        Raises:
            ValueError: if a shape does not fit.
        """

    def known(self, state: Tensor, goal: Tensor | None) -> Tensor:
        """Return the plant's part of a state, shape [*batch, nx].

        Raises:
            ValueError: if a shape does not fit, or a goal is missing or not asked for.
        """
        if state.shape[-1] < self.space.nx:
            raise ValueError(f"{type(self).__name__}: state must have shape [*batch, {self.space.nx}], received {tuple(state.shape)}")
        if (goal is None) != (self.goal_size == 0) or (goal is not None and goal.shape[-1] != self.goal_size):
            raise ValueError(f"{type(self).__name__}: goal must have {self.goal_size} entries, received "
                             f"{'none' if goal is None else tuple(goal.shape)}")
        return state[..., : self.space.nx]
