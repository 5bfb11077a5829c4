"""Rolling a model forward over a horizon: one signature, whatever computes it."""

from __future__ import annotations

import logging
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from residual_mbrl.baselines import Values
from residual_mbrl.costs import Cost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import NotFiniteError
from residual_mbrl.first_order import make_differentiable
from residual_mbrl.fused.costs import CostGradient, fused_cost, fused_cost_gradient
from residual_mbrl.fused.linearisation import fused_jacobians
from residual_mbrl.fused.model import Refusal
from residual_mbrl.fused.states import fused_rollout

log = logging.getLogger(__name__)
Backend = Literal["auto", "torch", "fused"]
BACKENDS = ("auto", "torch", "fused")


class Linearisation(NamedTuple):
    """First-order model along a trajectory on the tangent space: ``δx[t+1] = A[t] δx[t] + B[t] δu[t]``."""

    A: Float[Tensor, "*batch horizon ndx ndx"]
    B: Float[Tensor, "*batch horizon ndx nu"]


def rollout(dynamics: ResidualDynamics, state: Float[Tensor, "*#batch n0"], actions: Float[Tensor, "*#batch horizon nu"],
            parameters: Values | None = None, lead: Float[Tensor, "*#batch lead nu"] | None = None, *,
            backend: Backend = "auto") -> Float[Tensor, "... horizon+1 nx"]:
    """Simulate H steps; differentiable in everything, float32 or float64 as the state is.

    Where every part of the model has a Warp form, a rollout on the CPU is one kernel launch (and one back, for first derivatives); the
    first one of a structure compiles for a second or two, and later processes load it. Otherwise a torch loop steps a baseline with
    residuals, and without residuals the baseline's own ``rollout`` does, in a simulator one native call.

    Args:
        dynamics: The model.
        state: First state, shape [*batch, nx]; a baseline state gets the residuals' memory appended.
        actions: Shape [*batch, H, nu], H >= 1.
        parameters: Physical values by name, each broadcastable to [*batch]; live additions by name, shaped as the baseline
            documents, their batch being that of state and actions.
        lead: Commands of the L >= 0 steps before the first action, shape [*batch, L, nu], from which the residuals' memory
            starts; without them the first action has long been there.
        backend: "auto" fuses where it can and logs at debug level why it did not; "torch" never does; "fused" must.

    Returns:
        States, shape [*batch, H + 1, nx], the first one included.

    Raises:
        ValueError: if a shape, dtype or device does not fit, an input is not finite, a parameter is unknown, or there is a
            lead to a state that holds the memory already; if the backend is "fused" and the rollout cannot be.
    """
    state, actions = _inputs(dynamics, state, actions, parameters, lead, backend)
    if _may_fuse(backend, state):
        fused = fused_rollout(dynamics, state, actions, parameters or {})
        if not isinstance(fused, Refusal):
            return fused
        _not_fused(fused, backend)
    check_finite(state, actions)
    return _torch_rollout(dynamics, state, actions, parameters)


def rollout_cost(dynamics: ResidualDynamics, state: Float[Tensor, "*#batch n0"], actions: Float[Tensor, "*#batch horizon nu"], cost: Cost,
                 parameters: Values | None = None, lead: Float[Tensor, "*#batch lead nu"] | None = None, *,
                 backend: Backend = "auto") -> Float[Tensor, "..."]:
    """Return the cost of each rollout, shape [*batch]; differentiable as ``rollout`` is.

    Fused, the cost is accumulated within the kernel and no state is written, which is what sampling planners need; its gradient comes
    from the same launch.

    Args:
        dynamics: The model.
        state: First state, shape [*batch, nx]; a baseline state gets the residuals' memory appended.
        actions: Shape [*batch, H, nu], H >= 1.
        cost: Running and terminal cost.
        parameters: Physical values by name, each broadcastable to [*batch].
        lead: As in ``rollout``.
        backend: As in ``rollout``.

    Raises:
        ValueError: as ``rollout`` does, and if the cost's references do not fit the horizon or the batch.
    """
    state, actions = _inputs(dynamics, state, actions, parameters, lead, backend)
    references = references_of(cost, state, actions.shape[-2])
    if _may_fuse(backend, state):
        fused = fused_cost(dynamics, state, actions, cost, references, parameters or {})
        if not isinstance(fused, Refusal):
            return fused
        _not_fused(fused, backend)
    check_finite(state, actions)
    return _torch_cost(_torch_rollout(dynamics, state, actions, parameters), actions, cost, references)


def cost_gradient(dynamics: ResidualDynamics, state: Float[Tensor, "*#batch n0"], actions: Float[Tensor, "*#batch horizon nu"], cost: Cost,
                  parameters: Values | None = None, *, weights: bool = False, backend: Backend = "auto") -> CostGradient:
    """Return the cost of each rollout and the gradients of their sum, without a graph: what a gradient planner asks at each iteration.

    Fused it is one launch there and back, several times quicker for small batches than differentiating ``rollout_cost``.

    Args:
        dynamics: The model.
        state: First state, shape [*batch, nx]; a baseline state gets the residuals' memory appended.
        actions: Shape [*batch, H, nu], H >= 1.
        cost: Running and terminal cost.
        parameters: Physical values by name, each broadcastable to [*batch].
        weights: Whether the gradients of the model's weights are wanted too.
        backend: As in ``rollout``.

    Raises:
        ValueError: as ``rollout_cost`` does.
    """
    state, actions = _inputs(dynamics, state, actions, parameters, None, backend)
    references = references_of(cost, state, actions.shape[-2])
    if _may_fuse(backend, state):
        fused = fused_cost_gradient(dynamics, state, actions, cost, references, parameters or {}, weights=weights)
        if not isinstance(fused, Refusal):
            return fused
        _not_fused(fused, backend)
    check_finite(state, actions)
    x, u = state.detach().requires_grad_(), actions.detach().requires_grad_()
    learned = dict(dynamics.named_parameters()) if weights else {}
    with torch.enable_grad():
        costs = _torch_cost(_torch_rollout(dynamics, x, u, parameters), u, cost, references)
        by = torch.autograd.grad(costs.sum(), [x, u, *learned.values()], allow_unused=True)
    found = {n: torch.zeros_like(w) if g is None else g for (n, w), g in zip(learned.items(), by[2:], strict=True)}
    return CostGradient(costs.detach(), by[0], by[1], found)


def linearise(dynamics: ResidualDynamics, states: Float[Tensor, "*#batch horizon_1 nx"],
              actions: Float[Tensor, "*#batch horizon nu"], parameters: Values | None = None, *,
              backend: Backend = "auto") -> Linearisation:
    """Linearise every step of a trajectory on the tangent space, all steps at once.

    Where every part of the model has a Warp form and nothing is to be differentiated further, this is one kernel launch. In torch it is
    forward-mode differentiation; the derivative of a baseline that torch cannot differentiate so is the baseline's own ``jacobian``.

    Args:
        dynamics: The model.
        states: States of a rollout, shape [*batch, H + 1, nx].
        actions: Shape [*batch, H, nu].
        parameters: Physical values by name, each broadcastable to [*batch].
        backend: "auto" fuses where gradients are disabled (``torch.no_grad``); "torch" never does; "fused" must, and its result has no
            graph.

    Returns:
        A, shape [*batch, H, ndx, ndx], and B, shape [*batch, H, ndx, nu].
    """
    if backend == "fused" or (_may_fuse(backend, states) and not torch.is_grad_enabled()):
        batch = torch.broadcast_shapes(states.shape[:-2], actions.shape[:-2], *(v.shape for v in (parameters or {}).values()))
        x, u = states.expand(*batch, *states.shape[-2:]), actions.expand(*batch, *actions.shape[-2:])
        fused = fused_jacobians(dynamics, x, u, parameters or {})
        if not isinstance(fused, Refusal):
            return Linearisation(*fused)
        _not_fused(fused, backend)
    if not dynamics.residuals and not torch.is_grad_enabled():
        p = {n: v.unsqueeze(-1) if v.ndim else v for n, v in dynamics.resolve(parameters, states).items()}
        known = dynamics.baseline.jacobian(states[..., :-1, :], actions, None, p, by=())
        if known is not None:
            return Linearisation(known.state, known.action)
    # all directions in one call: a batch dimension before the horizon's, as ensembles have theirs first
    x, u = states[..., :-1, :].detach().unsqueeze(-3), actions.unsqueeze(-3)
    p = {n: v.unsqueeze(-1).unsqueeze(-1) if v.ndim else v for n, v in dynamics.resolve(parameters, x).items()}
    space, nu = dynamics.space, actions.shape[-1]
    after = dynamics.step(x, u, p).detach()
    dynamics = make_differentiable(dynamics, x, u.detach(), p)

    def moved(dx: Tensor, du: Tensor) -> Tensor:
        return space.difference(dynamics.step(space.integrate(x, dx), u + du, p), after)

    directions = torch.eye(space.ndx + nu, dtype=x.dtype, device=x.device).unsqueeze(-2)
    basis = directions.expand(*after.shape[:-3], space.ndx + nu, *after.shape[-2:-1], space.ndx + nu)
    tangents = (basis[..., : space.ndx].contiguous(), basis[..., space.ndx :].contiguous())
    jacobian = torch.func.jvp(moved, tuple(torch.zeros_like(t) for t in tangents), tangents)[1].movedim(-3, -1)
    return Linearisation(jacobian[..., : space.ndx], jacobian[..., space.ndx :])


def _inputs(dynamics: ResidualDynamics, state: Tensor, actions: Tensor, parameters: Values | None, lead: Tensor | None,
            backend: str) -> tuple[Tensor, Tensor]:
    """Return state and actions, checked, with memory, and expanded to one batch."""
    if backend not in BACKENDS:
        raise ValueError(f"rollout: backend must be one of {BACKENDS}, received {backend!r}")
    _check_shapes(dynamics, state, actions)
    batch = _batch(dynamics, state, actions, parameters or {})
    if lead is not None:
        _check_lead(dynamics, state, actions, lead)
        batch = _joined("lead", batch, lead.shape[:-2])
    if state.shape[:-1] != batch:
        state = state.expand(*batch, state.shape[-1])
    if state.shape[-1] < dynamics.space.nx:
        earlier = None if lead is None else lead.expand(*batch, *lead.shape[-2:])
        state = dynamics.initial_state(state, actions[..., 0, :].expand(*batch, actions.shape[-1]), earlier)
    if actions.shape[:-2] != batch:
        actions = actions.expand(*batch, *actions.shape[-2:])
    return state, actions


def _may_fuse(backend: str, state: Tensor) -> bool:
    """Tell whether to try: on a GPU, where the kernels have not been measured yet, only if asked for by name."""
    return backend == "fused" or (backend == "auto" and state.device.type == "cpu")


def _not_fused(refusal: Refusal, backend: str) -> None:
    if backend == "fused":
        raise ValueError(f"rollout: cannot be fused: {refusal.reason}")
    log.debug("rollout in torch: %s", refusal.reason)


def _torch_rollout(dynamics: ResidualDynamics, state: Tensor, actions: Tensor, parameters: Values | None) -> Tensor:
    p = dynamics.resolve(parameters, state)
    if not dynamics.residuals:
        return dynamics.baseline.rollout(state, actions, p)
    states = [state]
    for action in actions.unbind(-2):
        states.append(dynamics.step(states[-1], action, p))
    return torch.stack(states, -2)


def references_of(cost: Cost, state: Tensor, horizon: int) -> Tensor:
    """Return the references of a cost, shape [*#batch, H + 1, nr], or [*#batch, 2, nr] for all steps and the end.

    Raises:
        ValueError: if they do not fit the horizon or the batch.
    """
    found, rows = cost.references, horizon + 1
    if found.shape[-2] not in (2, rows):
        raise ValueError(f"rollout_cost: a horizon of {rows - 1} needs references [..., {rows}, nr] or [..., 2, nr], "
                         f"received {tuple(found.shape)}")
    if found.ndim > 2:
        _joined("references of the cost", state.shape[:-1], found.shape[:-2])
    return found.to(state)


def _torch_cost(states: Tensor, actions: Tensor, cost: Cost, references: Tensor) -> Tensor:
    running = cost.running(states[..., :-1, :], actions, references[..., :-1, :]).sum(-1)
    return running + cost.terminal(states[..., -1, :], references[..., -1, :])


def _batch(dynamics: ResidualDynamics, state: Tensor, actions: Tensor, parameters: Values) -> torch.Size:
    """Return the common batch shape of all inputs, every parameter's name and shape checked."""
    if not parameters and state.shape[:-1] == actions.shape[:-2]:
        return state.shape[:-1]
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


def _check_shapes(dynamics: ResidualDynamics, state: Tensor, actions: Tensor) -> None:
    known, full, nu = dynamics.baseline.space.nx, dynamics.space.nx, len(dynamics.space.action)
    if state.ndim < 1 or state.shape[-1] not in (known, full):
        raise ValueError(f"rollout: state must have shape [*batch, {full}] or [*batch, {known}], received {tuple(state.shape)}")
    if actions.ndim < 2 or actions.shape[-1] != nu or actions.shape[-2] < 1:
        raise ValueError(f"rollout: actions must have shape [*batch, H, {nu}] with H >= 1, received {tuple(actions.shape)}")
    if state.dtype != actions.dtype or state.device != actions.device:
        raise ValueError(f"rollout: state and actions must agree, received {state.dtype} on {state.device} and "
                         f"{actions.dtype} on {actions.device}")


def check_finite(state: Tensor, actions: Tensor) -> None:
    """Refuse inputs that are not finite; a fused rollout looks for itself."""
    for name, x in (("state", state), ("actions", actions)):
        if not bool(torch.isfinite(x.detach()).all()):
            raise NotFiniteError(f"rollout: {name} holds values that are not finite")


def _check_lead(dynamics: ResidualDynamics, state: Tensor, actions: Tensor, lead: Tensor) -> None:
    if lead.ndim < 2 or lead.shape[-1] != actions.shape[-1] or lead.dtype != actions.dtype or lead.device != actions.device:
        raise ValueError(f"rollout: lead must have shape [*batch, L, {actions.shape[-1]}] in {actions.dtype} on {actions.device}, "
                         f"received {tuple(lead.shape)} in {lead.dtype} on {lead.device}")
    if state.shape[-1] > dynamics.baseline.space.nx:
        raise ValueError(f"rollout: a state of {state.shape[-1]} entries holds the residuals' memory already; expected no lead beside it")
    if not bool(torch.isfinite(lead.detach()).all()):
        raise ValueError("rollout: lead holds values that are not finite")
