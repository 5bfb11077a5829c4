"""How far gradients under a policy reach before they explode."""

from __future__ import annotations

import torch
from torch import Tensor

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.policies.base import Policy
from residual_mbrl.rollouts import linearise
from residual_mbrl.sensitivity import measure_sensitivity


def policy_slopes(dynamics: ResidualDynamics, policy: Policy, state: Tensor) -> Tensor:
    """Return ``∂π/∂x`` of the mean action on the tangent space, shape [*batch, nu, ndx].

    Args:
        dynamics: Whose states these are.
        policy: Without goals.
        state: Shape [*batch, nx].
    """
    moved = state.new_zeros(*state.shape[:-1], dynamics.space.ndx).requires_grad_()
    with torch.enable_grad():
        action = policy(dynamics.space.integrate(state.detach(), moved))
        rows = [torch.autograd.grad(action[..., i].sum(), moved, retain_graph=True)[0] for i in range(action.shape[-1])]
    return torch.stack(rows, -2)


def usable_horizon(dynamics: ResidualDynamics, policy: Policy, states: Tensor, actions: Tensor, *, threshold: float = 1e4,
                   share: float = 0.1) -> int:
    """Return the steps after which small changes have grown too much in a share of the worlds, at least 1.

    The transitions are those of the closed loop, ``A + B ∂π/∂x``; what too much is, ``measure_sensitivity`` says as it does for
    ``gradient_audit``.

    Args:
        dynamics: The model.
        policy: Without goals.
        states: Of rollouts under the policy, shape [*batch, H + 1, nx].
        actions: Shape [*batch, H, nu].
        threshold: Growth allowed, relative to that of a median step.
        share: Of the worlds that may explode.
    """
    with torch.no_grad():
        model = linearise(dynamics, states.double(), actions.double())
    first = states[..., :-1, :].double()
    closed = model.A + model.B @ policy_slopes(dynamics, policy, first)
    sound = torch.isfinite(states).all(-1)
    finite = sound[..., 1:] & sound[..., :-1] & torch.isfinite(closed).all(-1).all(-1)
    space = dynamics.space
    names = [f"d{i}" for i in range(space.ndx)]
    horizon = measure_sensitivity(closed, finite, names, threshold).horizon
    return max(1, int(torch.quantile(horizon.double().flatten(), share)))
