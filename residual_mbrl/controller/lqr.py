"""Linear quadratic regulation about a reference: one matrix product a command."""

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
    """``u = u* - K (x ⊖ g)`` with K from the discrete Riccati equation of the model linearised at (x*, u*).

    The goal g is the target of the cost that is asked for, which may move; x* is where it was linearised. A ``HeldForce`` of the model,
    which no command moves, is not regulated but held against: by the command whose effect on a step is nearest to its own.

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
        self.gain[:, ~held] = regulator(a[~held][:, ~held], b[~held], weights[~held][:, ~held], np.diag(r.numpy()))
        self.gain[:, held] = np.linalg.pinv(b[~held]) @ a[~held][:, held]
        self._gain = torch.from_numpy(self.gain)

    def command(self, state: Tensor, cost: Cost | None = None) -> Tensor:
        """Return the command that leads to the target."""
        goal, nx = self.state, self.space.nx
        if isinstance(cost, QuadraticCost) and cost.space.position == self.space.position:
            n = min(nx, cost.space.nx)
            goal = torch.cat([cost.references[..., 0, :n].reshape(-1)[:n].double(), goal[n:]])
        x = state[:nx] if state.shape[-1] >= nx else torch.cat([state, goal[state.shape[-1] :]])
        return self.action - self._gain @ self.space.difference(x, goal)


def held_entries(dynamics: ResidualDynamics) -> NDArray[np.bool_]:
    """Tell which entries of the tangent space are forces that are held, shape [ndx]."""
    held = np.zeros(dynamics.space.nx, bool)
    for residual, place in zip(dynamics.corrections, dynamics.memory, strict=True):
        held[place] = isinstance(residual, HeldForce)
    return held[dynamics.space.nx - dynamics.space.ndx :]  # memory comes last in both


def regulator(a: Array, b: Array, q: Array, r: Array) -> Array:
    """Return K of ``u = -K x`` that minimises ``Σ xᵀ Q x + uᵀ R u`` under ``x' = A x + B u``, shape [nu, nx].

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
    return gain


def steady_action(dynamics: ResidualDynamics, state: Tensor) -> Tensor:
    """Return the action under which a state changes least, shape [nu], float64."""
    space, x = dynamics.space, state.double()

    def change(u: Array) -> Array:
        with torch.no_grad():
            moved = space.difference(dynamics.step(x, torch.from_numpy(u)), x)
        return np.asarray(moved[: 2 * space.nv].numpy() / dynamics.dt)

    return torch.from_numpy(least_squares(change, np.zeros(space.nu)).x)
