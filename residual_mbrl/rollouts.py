"""Rolling a model forward over a horizon: one signature, whatever computes it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from residual_mbrl.baselines import Values
from residual_mbrl.dynamics import ResidualDynamics


class Linearisation(NamedTuple):
    """First-order model along a trajectory on the tangent space: ``δx[t+1] = A[t] δx[t] + B[t] δu[t]``."""

    A: Float[Tensor, "*batch horizon ndx ndx"]
    B: Float[Tensor, "*batch horizon ndx nu"]


def rollout(dynamics: ResidualDynamics, state: Float[Tensor, "*#batch n0"], actions: Float[Tensor, "*#batch horizon nu"],
            parameters: Values | None = None) -> Float[Tensor, "... horizon+1 nx"]:
    """Simulate H steps with a torch loop; differentiable in everything, float32 or float64 as the state is.

    Args:
        dynamics: The model.
        state: First state, shape [*batch, nx]; a baseline state gets the residuals' memory appended.
        actions: Shape [*batch, H, nu], H >= 1.
        parameters: Physical values by name, each broadcastable to [*batch]; live additions by name, shaped as the baseline
            documents, their batch being that of state and actions.

    Returns:
        States, shape [*batch, H + 1, nx], the first one included.

    Raises:
        ValueError: if a shape, dtype or device does not fit, an input is not finite, or a parameter is unknown.
    """
    state, actions = _checked(dynamics, state, actions)
    batch = _batch(dynamics, state, actions, parameters or {})
    p = dynamics.resolve(parameters, state)
    state = state.expand(*batch, state.shape[-1])
    if state.shape[-1] < dynamics.space.nx:
        state = dynamics.initial_state(state, actions[..., 0, :].expand(*batch, actions.shape[-1]))
    states = [state]
    for action in actions.expand(*batch, *actions.shape[-2:]).unbind(-2):
        states.append(dynamics.step(states[-1], action, p))
    return torch.stack(states, -2)


def linearise(dynamics: ResidualDynamics, states: Float[Tensor, "*#batch horizon_1 nx"],
              actions: Float[Tensor, "*#batch horizon nu"], parameters: Values | None = None) -> Linearisation:
    """Linearise every step of a trajectory on the tangent space, by forward-mode differentiation of all steps at once.

    Args:
        dynamics: The model.
        states: States of a rollout, shape [*batch, H + 1, nx].
        actions: Shape [*batch, H, nu].
        parameters: Physical values by name, each broadcastable to [*batch].

    Returns:
        A, shape [*batch, H, ndx, ndx], and B, shape [*batch, H, ndx, nu].
    """
    x = states[..., :-1, :].detach()
    p = {n: v.unsqueeze(-1) if v.ndim else v for n, v in dynamics.resolve(parameters, x).items()}
    space = dynamics.space
    after = dynamics.step(x, actions, p).detach()

    def moved(dx: Tensor, du: Tensor) -> Tensor:
        return space.difference(dynamics.step(space.integrate(x, dx), actions + du, p), after)

    zero_x, zero_u = x.new_zeros(*x.shape[:-1], space.ndx), torch.zeros_like(actions)
    columns = []
    for i in range(space.ndx + actions.shape[-1]):
        dx, du = torch.zeros_like(zero_x), torch.zeros_like(zero_u)
        if i < space.ndx:
            dx[..., i] = 1
        else:
            du[..., i - space.ndx] = 1
        columns.append(torch.func.jvp(moved, (zero_x, zero_u), (dx, du))[1])
    jacobian = torch.stack(columns, -1)
    return Linearisation(jacobian[..., : space.ndx], jacobian[..., space.ndx :])


def _batch(dynamics: ResidualDynamics, state: Tensor, actions: Tensor, parameters: Values) -> torch.Size:
    """Return the common batch shape of all inputs, every parameter's name and shape checked."""
    named, live = dynamics.values.keys(), dynamics.baseline.live
    unknown = [n for n in parameters if n not in named and n not in live]
    if unknown:
        raise ValueError(f"rollout: {type(dynamics.baseline).__name__} has no parameters {unknown}; there are {sorted({*named, *live})}")
    batch = _joined("state and actions", state.shape[:-1], actions.shape[:-2])
    for name in named & parameters.keys():
        batch = _joined(f"parameter {name!r}", batch, parameters[name].shape)
    return batch


def _joined(what: str, batch: torch.Size, shape: torch.Size) -> torch.Size:
    try:
        return torch.Size(torch.broadcast_shapes(batch, shape))
    except RuntimeError as error:
        raise ValueError(f"rollout: {what} must broadcast, received batch {tuple(batch)} and {tuple(shape)}") from error


def _checked(dynamics: ResidualDynamics, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    known, full, nu = dynamics.baseline.space.nx, dynamics.space.nx, len(dynamics.space.action)
    if state.ndim < 1 or state.shape[-1] not in (known, full):
        raise ValueError(f"rollout: state must have shape [*batch, {full}] or [*batch, {known}], received {tuple(state.shape)}")
    if actions.ndim < 2 or actions.shape[-1] != nu or actions.shape[-2] < 1:
        raise ValueError(f"rollout: actions must have shape [*batch, H, {nu}] with H >= 1, received {tuple(actions.shape)}")
    if state.dtype != actions.dtype or state.device != actions.device:
        raise ValueError(f"rollout: state and actions must agree, received {state.dtype} on {state.device} and "
                         f"{actions.dtype} on {actions.device}")
    for name, x in (("state", state), ("actions", actions)):
        if not bool(torch.isfinite(x.detach()).all()):
            raise ValueError(f"rollout: {name} holds values that are not finite")
    return state, actions
