"""Jacobians of all steps of a trajectory in one kernel launch, on the tangent space; see ``states``."""

from __future__ import annotations

import torch
from torch import Tensor

from residual_mbrl.baselines import Values
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.fused.call import Call
from residual_mbrl.fused.model import Refusal, prepare
from residual_mbrl.spaces import StateSpace


def fused_jacobians(dynamics: ResidualDynamics, states: Tensor, actions: Tensor, parameters: Values) -> tuple[Tensor, Tensor] | Refusal:
    """Return A, shape [*batch, H, ndx, ndx], and B, shape [*batch, H, ndx, nu], of every step, without a graph; or why there are none.

    Args:
        dynamics: The model.
        states: Shape [*batch, H + 1, nx], quaternions of unit length.
        actions: Shape [*batch, H, nu].
        parameters: Those the caller gave.
    """
    with torch.no_grad():
        model = prepare(dynamics, states[..., 0, :], actions, parameters)
        if isinstance(model, Refusal):
            return model
        call = Call(dynamics, model, states[..., 0, :], actions, parameters)
        horizon, nx, nu = actions.shape[-2], states.shape[-1], actions.shape[-1]
        flat = states.reshape(-1, horizon + 1, nx).contiguous()
        a, b = flat.new_empty(flat.shape[0], horizon, nx, nx), flat.new_empty(flat.shape[0], horizon, nx, nu)
        call.launch("linearise", {"states": flat.data_ptr(), "A": a.data_ptr(), "B": b.data_ptr()})
        batch = states.shape[:-2]
        a, b = a.reshape(*batch, horizon, nx, nx), b.reshape(*batch, horizon, nx, nu)
        space = dynamics.space
        if not space.quaternions:
            return a, b
        after = _tangent(space, states[..., 1:, :])
        # columns by the tangent at x: ∂(x ⊞ δ)/∂δ; rows: the tangent of x', ∂(x' ⊖ y)/∂x' = the pseudo-inverse of the same
        return after.mT @ _metric(space, after) @ a @ _tangent(space, states[..., :-1, :]), after.mT @ _metric(space, after) @ b


def _tangent(space: StateSpace, x: Tensor) -> Tensor:
    """Return ``∂(x ⊞ δ)/∂δ`` at zero, shape [*batch, nx, ndx]."""
    out = x.new_zeros(*x.shape, space.ndx)
    row = column = 0
    starts = {q0 for q0, _ in space.quaternions}
    while row < space.nx:
        if row in starts:
            w, i, j, k = (0.5 * x[..., row + n] for n in range(4))
            out[..., row : row + 4, column : column + 3] = torch.stack([-i, -j, -k, w, -k, j, k, w, -i, -j, i, w], -1).unflatten(-1, (4, 3))
            row, column = row + 4, column + 3
        else:
            out[..., row, column] = 1.0
            row, column = row + 1, column + 1
    return out


def _metric(space: StateSpace, tangent: Tensor) -> Tensor:
    """Return the factors of the rows that make the transpose of a tangent its pseudo-inverse: 4 where a quaternion is, else 1."""
    weights = tangent.new_ones(space.nx)
    for q0, _ in space.quaternions:
        weights[q0 : q0 + 4] = 4.0
    return torch.diag(weights)
