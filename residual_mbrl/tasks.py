"""What is to be done with a plant: where episodes begin, how long they are, and what they cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from residual_mbrl.costs import Cost, CostParts, WarpCost

Start = Callable[[torch.Generator, int], Tensor]
"""From a generator and a count to first states of the plant, [count, nx]."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """An episode of so many steps from a drawn first state; its return is minus the sum of its running costs.

    Args:
        cost: Of the plant's state and action; only its running part counts.
        start: First states.
        steps: Steps of an episode.
        low: Lowest action, shape [nu].
        high: Highest action, shape [nu].
        practice: First states of training in a model, where any state can be had: wider than those of the task, so that gradients see
            what it takes to succeed; the task's where missing.
        over: From states [*batch, nx] to where an episode is over before its time, [*batch]; nowhere where missing.
    """

    cost: Cost
    start: Start
    steps: int
    low: Tensor
    high: Tensor
    practice: Start | None = None
    over: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.steps < 1:
            raise ValueError(f"Task: steps must be at least 1, received {self.steps}")
        if self.low.shape != self.high.shape or self.low.ndim != 1 or not bool((self.low < self.high).all()):
            raise ValueError(f"Task: expected low < high of shape [nu], received {self.low.tolist()} and {self.high.tolist()}")

    def starts(self, seed: int, count: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return first states that a seed draws, shape [count, nx].

        Raises:
            ValueError: if the task's start gives another shape or a state that is not finite.
        """
        return self.draw(torch.Generator().manual_seed(seed), count, dtype=dtype)

    def draw(self, generator: torch.Generator, count: int, *, dtype: torch.dtype, practice: bool = False) -> Tensor:
        """Return first states of a generator, of the task or for practice; see ``starts``."""
        drawn = (self.practice if practice and self.practice is not None else self.start)(generator, count)
        if drawn.ndim != 2 or drawn.shape[0] != count or not bool(torch.isfinite(drawn).all()):
            raise ValueError(f"Task: start must give {count} finite states [{count}, nx], received {tuple(drawn.shape)}")
        return drawn.to(dtype)

    def running(self, states: Tensor, actions: Tensor) -> Tensor:
        """Return the running cost of each step of an episode from its first on, shape [H].

        Args:
            states: Where each step begins, shape [H, nx].
            actions: Shape [H, nu].
        """
        every = self.cost.references.to(states)
        return self.cost.running(states, actions, every[..., : len(actions) if every.shape[-2] > 2 else 1, :])

    def recorded(self, states: Tensor, actions: Tensor, name: str) -> Tensor:
        """Return what ``running`` does for steps that were recorded, whose costs must be finite.

        Raises:
            ValueError: naming the first step whose cost is not, and its state and action.
        """
        costs = self.running(states, actions)
        bad = (~torch.isfinite(costs)).nonzero()
        if len(bad):
            t = int(bad[0])
            raise ValueError(f"{name}: the task's cost of step {t} is {float(costs[t])}, of state {states[t].tolist()} and action "
                             f"{actions[t].tolist()}; expected a finite number")
        return costs


class Window(Cost):
    """A stretch of a cost whose references change from step to step; beyond the end the last one is held.

    Args:
        cost: Of an episode.
        first: Step of the episode at which the stretch begins.
        steps: Its length.
    """

    def __init__(self, cost: Cost, first: int, steps: int) -> None:
        self.cost = cost
        every = cost.references
        rows = torch.arange(first, first + steps + 1).clamp_max(every.shape[-2] - 1)
        self._references = every[..., rows, :]

    @property
    def references(self) -> Tensor:
        """Those of the stretch, shape [*batch, steps + 1, nr]."""
        return self._references

    def running(self, state: Tensor, action: Tensor, reference: Tensor) -> Tensor:
        """Return the cost of a step, shape [*batch]."""
        return self.cost.running(state, action, reference)

    def terminal(self, state: Tensor, reference: Tensor) -> Tensor:
        """Return the cost of the last state, shape [*batch]."""
        return self.cost.terminal(state, reference)

    def parts(self, state: Tensor, action: Tensor | None, reference: Tensor) -> CostParts:
        """Return the cost in parts."""
        return self.cost.parts(state, action, reference)

    def warp_form(self) -> WarpCost | None:
        """Return the cost's own form; None where it has none."""
        return self.cost.warp_form()


class WithoutEnd(Cost):
    """The running part of a cost, nothing at the end: a window of an episode."""

    def __init__(self, cost: Cost) -> None:
        self.cost = cost

    @property
    def references(self) -> Tensor:
        """Those of the cost."""
        return self.cost.references

    def running(self, state: Tensor, action: Tensor, reference: Tensor) -> Tensor:
        """Return the cost of a step, shape [*batch]."""
        return self.cost.running(state, action, reference)

    def terminal(self, state: Tensor, reference: Tensor) -> Tensor:
        """Return zero, shape [*batch]."""
        return torch.zeros_like(state[..., 0])

    def warp_form(self) -> WarpCost | None:
        """Return the same functions in Warp; None where the cost has none."""
        form = self.cost.warp_form()
        if form is None:
            return None

        def nothing(x: Any, r: Any) -> Any:
            return 0.0 * x[0]

        return WarpCost(("without end", *form.key), form.running, nothing)
