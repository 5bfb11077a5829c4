"""A command in microseconds from a state: what a controller uses when no plan is to be had."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from residual_mbrl.costs import Cost


class Law(ABC):
    """Computes a command at once, without a search."""

    @abstractmethod
    def command(self, state: Tensor, cost: Cost | None = None) -> Tensor:
        """Return the command, shape [nu], float64.

        Args:
            state: Of the plant when the command takes effect, shape [nx], float64; entries beyond those that the law knows are left out.
            cost: What is asked for at that time; where missing, what the law was made for.
        """
