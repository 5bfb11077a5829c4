"""Exploration that looks first: an action whose predicted consequences leave what is allowed is replaced by a fallback's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.dynamics import ResidualDynamics, member_count
from residual_mbrl.policies.base import Policy
from residual_mbrl.rollouts import rollout

Array = NDArray[np.float64]
Act = Callable[[Array, int], Array]


class Veto:
    """``act(state, t)`` that lets an action pass only if, with the fallback after it, predictions stay within limits.

    The predictions are those of one model with margins that grow over the steps, or of all members of an ensemble with one margin;
    margins are half widths of the model's calibrated interval: what is promised is what these hold.

    Args:
        act: Who explores.
        dynamics: The model.
        fallback: Brings the plant back; its action replaces a vetoed one.
        largest: Largest magnitude allowed of each state entry; infinite where anything is, shape [nx].
        horizon: Steps looked ahead.
        margin: Half width of the interval of each entry at each step ahead, shape [horizon, nx] or what broadcasts to it.

    Attributes:
        vetoed: Actions replaced so far.
    """

    def __init__(self, act: Act, dynamics: ResidualDynamics, fallback: Policy, largest: Array, *, horizon: int = 20,
                 margin: float | Array = 0.0) -> None:
        space = dynamics.baseline.space
        if np.shape(largest) != (space.nx,) or horizon < 1:
            raise ValueError(f"Veto: expected largest [{space.nx}] and horizon >= 1, received {np.shape(largest)} and {horizon}")
        self.act, self.dynamics, self.fallback, self.horizon, self.vetoed = act, dynamics, fallback, horizon, 0
        self._allowed = torch.as_tensor(np.broadcast_to(largest - np.asarray(margin), (horizon, space.nx)).copy())
        self._members = member_count(dynamics)

    def __call__(self, state: Array, t: int) -> Array:
        """Return the explorer's action, or the fallback's."""
        action = np.asarray(self.act(state, t), np.float64)
        x = torch.tensor(state, dtype=torch.float64)
        if self.passes(x, torch.tensor(action, dtype=torch.float64)):
            return action
        self.vetoed += 1
        with torch.no_grad():
            found: Array = self.fallback(x).double().numpy()
        return found

    def passes(self, state: Tensor, action: Tensor) -> bool:
        """Tell whether an action [nu] from a state [nx] on leaves all predictions within the limits."""
        x = state if not self._members else state.expand(self._members, 1, state.shape[-1])
        u = action.expand(*x.shape[:-1], len(action))
        nx = self.dynamics.baseline.space.nx
        with torch.no_grad():
            for k in range(self.horizon):
                x = rollout(self.dynamics, x, u.unsqueeze(-2))[..., -1, :]
                if not bool((x[..., :nx].abs() <= self._allowed[k]).all()):
                    return False
                u = self.fallback(x)
        return True
