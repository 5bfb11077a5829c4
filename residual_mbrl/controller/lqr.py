"""Linear quadratic regulation along a reference: some matrix products a command."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, solve_discrete_are
from scipy.optimize import least_squares
from torch import Tensor

from residual_mbrl.controller.law import Law
from residual_mbrl.costs import Cost, QuadraticCost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import ModelError
from residual_mbrl.residuals.held_force import HeldForce
from residual_mbrl.rollouts import linearise

Array = NDArray[np.float64]

REGULARISATION = 1e-9
"""Of the state weights, relative to the largest: states without a cost must not make the equation singular."""


class LQR(Law):
    """``u = u* - K (x ⊖ g_0) - Σ_t M_t w_t`` with K from the discrete Riccati equation of the model linearised at (x*, u*).

    The goals g_t are the targets of the cost that is asked for, a model's step apart where they move; x* is where it was linearised.
    ``w_t = A (g_t ⊖ x*) - (g_{t+1} ⊖ x*)`` is what the linear model misses on the way from one to the next, which the command sees
    coming: ``M_t = (R + Bᵀ P B)⁻¹ Bᵀ ((A - B K)ᵀ)^t P`` (Anderson and Moore, Optimal Control, 1990, ch. 4). A ``HeldForce`` of the
    model, which no command moves, is not regulated but held against: by the command whose effect on a step is nearest to its own.

    Args:
        dynamics: The model; other residual memory counts as state.
        cost: Its weights of state and action are those of the regulator, its target is x*.
        action: u* that holds the target, shape [nu]; found by least squares where missing.

    Raises:
        ModelError: if the model cannot be stabilised about the target.
    """

    def __init__(self, dynamics: ResidualDynamics, cost: QuadraticCost, action: Tensor | None = None) -> None:
        space = dynamics.space
        target, q, r = cost.references[..., 0, :].reshape(-1).double().split([space.nx, space.ndx, space.nu])
        self.space, self.state = space, target
        self.action = steady_action(dynamics, target) if action is None else action.double()
        with torch.no_grad():
            moves = linearise(dynamics, target.expand(2, -1), self.action.expand(1, -1), backend="torch")
        weights = np.diag(np.maximum(q.numpy(), REGULARISATION * float(q.max())))
        held, (a, b) = held_entries(dynamics), (np.asarray(m[0].double().numpy()) for m in moves)
        self.gain = np.zeros((space.nu, space.ndx))
        a_own, b_own, r_own = a[~held][:, ~held], b[~held], np.diag(r.numpy())
        self.gain[:, ~held], p = regulator(a_own, b_own, weights[~held][:, ~held], r_own)
        self.gain[:, held] = np.linalg.pinv(b_own) @ a[~held][:, held]
        self._gain, self._own, self._moves = torch.from_numpy(self.gain), torch.from_numpy(~held), torch.from_numpy(a_own)
        ahead, closed = np.linalg.solve(r_own + b_own.T @ p @ b_own, b_own.T), (a_own - b_own @ self.gain[:, ~held]).T
        self._ahead, self._closed, self._preview = ahead, closed, np.empty((0, *b_own.T.shape))
        self._value = p

    def command(self, state: Tensor, cost: Cost | None = None) -> Tensor:
        """Return the command that leads to the target."""
        goals, nx = self.state.unsqueeze(0), self.space.nx
        if isinstance(cost, QuadraticCost) and cost.space.position == self.space.position:
            n = min(nx, cost.space.nx)
            rows = cost.references[..., :n].reshape(-1, n).double()
            rows = rows if len(rows) > 2 else rows[:1]  # two rows are a target that stays, and the weights of the end
            goals = torch.cat([rows, self.state[n:].expand(len(rows), -1)], -1)
        x = state[:nx] if state.shape[-1] >= nx else torch.cat([state, self.state[state.shape[-1] :]])
        apart = self.space.difference(goals, self.state)[:, self._own]
        missed = apart[:-1] @ self._moves.mT - apart[1:]
        seen = torch.einsum("tun,tn->u", self._preview_of(len(missed)), missed)
        return self.action - self._gain @ self.space.difference(x, goals[0]) - seen

    def _preview_of(self, steps: int) -> Tensor:
        """Return M_t of so many steps, shape [steps, nu, ndx without held forces]."""
        while len(self._preview) < steps:
            self._preview = np.concatenate([self._preview, (self._ahead @ self._value)[None]])
            self._ahead = self._ahead @ self._closed
        return torch.from_numpy(self._preview[:steps])


def held_entries(dynamics: ResidualDynamics) -> NDArray[np.bool_]:
    """Tell which entries of the tangent space are forces that are held, shape [ndx]."""
    held = np.zeros(dynamics.space.nx, bool)
    for residual, place in zip(dynamics.corrections, dynamics.memory, strict=True):
        held[place] = isinstance(residual, HeldForce)
    return held[dynamics.space.nx - dynamics.space.ndx :]  # memory comes last in both


def regulator(a: Array, b: Array, q: Array, r: Array) -> tuple[Array, Array]:
    """Return K of ``u = -K x`` that minimises ``Σ xᵀ Q x + uᵀ R u`` under ``x' = A x + B u``, and P of the minimum ``xᵀ P x``.

    Raises:
        ModelError: if the equation has no stabilising solution.
    """
    try:
        p = solve_discrete_are(a, b, q, r)
    except (LinAlgError, ValueError) as error:
        raise ModelError(f"LQR: the model cannot be stabilised about the reference (one whose dry friction holds it there cannot: give a "
                         f"model without it): {error}") from error
    gain: Array = np.linalg.solve(r + b.T @ p @ b, b.T @ p @ a)
    radius = float(np.abs(np.linalg.eigvals(a - b @ gain)).max())
    if not radius < 1 + 1e-9:
        raise ModelError(f"LQR: the closed loop about the reference has an eigenvalue of magnitude {radius:.6f}, expected below 1")
    return gain, p


def steady_action(dynamics: ResidualDynamics, state: Tensor) -> Tensor:
    """Return the action under which a state changes least, shape [nu], float64."""
    space, x = dynamics.space, state.double()

    def change(u: Array) -> Array:
        with torch.no_grad():
            moved = space.difference(dynamics.step(x, torch.from_numpy(u)), x)
        return np.asarray(moved[: 2 * space.nv].numpy() / dynamics.dt)

    return torch.from_numpy(least_squares(change, np.zeros(space.nu)).x)
