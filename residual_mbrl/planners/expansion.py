"""Second-order expansion of a cost along trajectories, in torch: for models and costs that have no form in the kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import hessian, jacfwd, vmap

from residual_mbrl.costs import Cost
from residual_mbrl.fused.linearisation import _tangent
from residual_mbrl.spaces import StateSpace


class Expansion(NamedTuple):
    """``cost(x ⊞ δx, u + δu) ≈ cost + g·z + ½ z·C z`` with z = (δx, δu); at the end the rows of δu are zero."""

    gradient: Tensor
    """Shape [*batch, H + 1, ndx + nu]."""
    curvature: Tensor
    """Shape [*batch, H + 1, ndx + nu, ndx + nu]."""


def expand_cost(cost: Cost, space: StateSpace, states: Tensor, actions: Tensor, references: Tensor) -> Expansion:
    """Expand a cost at every step, squares by Gauss-Newton and the rest by its Hessian.

    Args:
        cost: Running and terminal cost.
        space: Of the model.
        states: Shape [*batch, H + 1, nx].
        actions: Shape [*batch, H, nu].
        references: Shape [*#batch, H + 1 or 2, nr].
    """
    batch, horizon, nu = actions.shape[:-2], actions.shape[-2], actions.shape[-1]
    ndx = space.ndx
    last = references[..., -1, :]
    each = references[..., :-1, :].expand(*references.shape[:-2], horizon, references.shape[-1])
    g, c = states.new_zeros(*batch, horizon + 1, ndx + nu), states.new_zeros(*batch, horizon + 1, ndx + nu, ndx + nu)
    points = torch.cat([states[..., :-1, :], actions], -1)
    g[..., :-1, :], c[..., :-1, :, :] = _expanded(cost, space, points, each.expand(*batch, *each.shape[-2:]), nu)
    end_g, end_c = _expanded(cost, space, states[..., -1:, :], last.expand(*batch, -1).unsqueeze(-2), 0)
    g[..., -1:, :ndx], c[..., -1:, :ndx, :ndx] = end_g, end_c
    return Expansion(g, c)


def _expanded(cost: Cost, space: StateSpace, points: Tensor, references: Tensor, nu: int) -> tuple[Tensor, Tensor]:
    """Expand at points (x, u), or x alone where nu is 0, shape [*batch, n]."""
    shape, nx = points.shape[:-1], space.nx
    z, r = points.reshape(-1, points.shape[-1]), references.reshape(-1, references.shape[-1])

    def parts(point: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = cost.parts(point[:nx], point[nx:] if nu else None, reference)
        none = point.new_zeros(0)
        return (none if found.values is None else found.values, none if found.weights is None else found.weights,
                point.new_zeros(()) if found.rest is None else found.rest)

    def squares(point: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        values, weights, _ = parts(point, reference)
        return values, values * weights

    def rest(point: Tensor, reference: Tensor) -> Tensor:
        return parts(point, reference)[2]

    g, h = z.new_zeros(z.shape), z.new_zeros(*z.shape, z.shape[-1])
    bend = z.new_zeros(len(z), len(space.quaternions))
    sample = cost.parts(z[0, :nx], z[0, nx:] if nu else None, r[0])
    if sample.values is not None:
        slopes, weighted = vmap(jacfwd(squares, has_aux=True))(z, r)
        weights = vmap(parts)(z, r)[1]
        g = g + 2 * torch.einsum("nm,nmi->ni", weighted, slopes)
        h = h + 2 * torch.einsum("nm,nmi,nmj->nij", weights, slopes, slopes)
    if sample.rest is not None:
        own = vmap(torch.func.grad(rest))(z, r)
        g, h = g + own, h + vmap(hessian(rest))(z, r)
        for k, (q, _) in enumerate(sorted(space.quaternions)):
            bend[:, k] = (own[:, q : q + 4] * z[:, q : q + 4]).sum(-1)
    if space.quaternions:
        low = z.new_zeros(len(z), z.shape[-1], space.ndx + nu)
        low[:, :nx, : space.ndx] = _tangent(space, z[:, :nx])
        low[:, nx:, space.ndx :] = torch.eye(nu, dtype=z.dtype, device=z.device)
        g, h = (low.mT @ g.unsqueeze(-1)).squeeze(-1), low.mT @ h @ low
        for k, (_, v0) in enumerate(sorted(space.quaternions)):
            for i in range(v0, v0 + 3):  # a quaternion of unit length bends away from its tangent
                h[:, i, i] -= 0.25 * bend[:, k]
    return g.reshape(*shape, -1), h.reshape(*shape, h.shape[-1], h.shape[-1])
