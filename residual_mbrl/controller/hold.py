"""The end of the chain: a command that is safe whatever is known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from residual_mbrl.controller.law import Law
from residual_mbrl.costs import Cost


class Hold(Law):
    """Goes to one command, within the limits, and stays there: brakes on, motors off, or hover.

    Args:
        action: Shape [nu].
    """

    def __init__(self, action: Tensor | Sequence[float]) -> None:
        self.action = torch.as_tensor(action, dtype=torch.float64).reshape(-1)

    def command(self, state: Tensor, cost: Cost | None = None) -> Tensor:
        """Return the action."""
        return self.action
