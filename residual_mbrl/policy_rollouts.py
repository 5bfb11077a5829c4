"""Rolling a model forward under a policy: one signature, whatever computes it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from residual_mbrl.baselines import Values
from residual_mbrl.costs import Cost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.fused.closed_loop import LoopInputs, Outputs, fused_policy, warp_form_of
from residual_mbrl.fused.model import Refusal, speaks_for
from residual_mbrl.policies.base import Policy
from residual_mbrl.policies.networks import NetworkPolicy
from residual_mbrl.policies.value import Value
from residual_mbrl.rollouts import BACKENDS, Backend, check_finite, references_of

log = logging.getLogger(__name__)
Weighting = Callable[[Tensor], Tensor]
"""From costs [*batch] to what each counts, [*batch]."""


class PolicyRollout(NamedTuple):
    """What a policy did in a model, without a graph."""

    costs: Tensor
    """Discounted cost of each world, the value of its last state included, shape [*batch]."""
    states: Tensor
    """Shape [*batch, H + 1, nx]."""
    actions: Tensor
    """Shape [*batch, H, nu]."""
    running: Tensor
    """Cost of each step, not discounted, shape [*batch, H]."""


class PolicyGradient(NamedTuple):
    """Costs of a batch of rollouts under a policy and the gradients of their sum."""

    costs: Tensor
    """Discounted cost of each world, the value of its last state included, shape [*batch]."""
    state: Tensor
    """By the first states, residual memory included, shape [*batch, nx]."""
    weights: dict[str, Tensor]
    """By the policy's weights, by name."""
    rollout: PolicyRollout | None
    """Where it was asked for."""


class Loop(NamedTuple):
    """Arguments of a closed loop that rarely change between calls."""

    noise: Tensor | None = None
    """Standard normal, shape [*#batch, H, noise_size]; the policy's mean where missing."""
    goals: Tensor | None = None
    """Of each step and of the end, shape [*#batch, H + 1, goal_size]."""
    value: Value | None = None
    """Of the last state; nothing where missing."""
    discount: float = 1.0
    """Of each step against the one before."""
    parameters: Values | None = None
    """Physical values by name, each broadcastable to [*batch]."""


def policy_rollout(dynamics: ResidualDynamics, policy: Policy, state: Float[Tensor, "*batch n0"], cost: Cost, horizon: int,
                   loop: Loop = Loop(), *, backend: Backend = "auto") -> PolicyRollout:  # noqa: B008  # immutable
    """Let a policy act in a model for H steps: ``Σ_t γ^t running(x_t, π(x_t), r_t) + γ^H (terminal(x_H, r_H) + V(x_H))``.

    Args:
        dynamics: The model; of an ensemble each member moves its own row of states [members, *batch, nx].
        policy: Any.
        state: First state, shape [*batch, nx]; a baseline state gets the residuals' memory of the first action appended.
        cost: Running and terminal cost.
        horizon: H >= 1.
        loop: Noise, goals, value at the end, discount, physical parameters.
        backend: "auto" fuses a network policy where the model can be and logs at debug level why it did not; "torch" never does;
            "fused" must.

    Raises:
        ValueError: if a shape does not fit or an input is not finite; if the backend is "fused" and the rollout cannot be.
    """
    inputs = _inputs(dynamics, policy, state, cost, horizon, loop, backend)
    found = _fused(dynamics, policy, loop.value, inputs, backend, gradient=False, wanted=("states", "actions", "running"))
    if found is not None:
        return _rollout_of(found, inputs)
    with torch.no_grad():
        return PolicyRollout(*_torch_loop(dynamics, policy, inputs, loop))


def policy_gradient(dynamics: ResidualDynamics, policy: Policy, state: Float[Tensor, "*batch n0"], cost: Cost, horizon: int,
                    loop: Loop = Loop(), *, weighting: Weighting | None = None, rollout: bool = False,  # noqa: B008
                    backend: Backend = "auto") -> PolicyGradient:
    """Return the cost of each rollout under a policy and the gradient of their sum by its weights, without a graph.

    Fused it is one launch there and back. What the residuals remember of the first action is data, not differentiated.

    Args:
        dynamics: The model; of an ensemble each member moves its own row of states [members, *batch, nx].
        policy: With weights.
        state: First state, shape [*batch, nx].
        cost: Running and terminal cost.
        horizon: H >= 1.
        loop: As in ``policy_rollout``.
        weighting: What each world's cost counts in the gradient, a function of all costs; one where missing.
        rollout: Whether states, actions and the cost of each step are wanted.
        backend: As in ``policy_rollout``.

    Raises:
        ValueError: as ``policy_rollout`` does.
    """
    inputs = _inputs(dynamics, policy, state, cost, horizon, loop, backend)
    seeds = None
    if weighting is not None:
        first = _fused(dynamics, policy, loop.value, inputs, backend, gradient=False)
        seeds = None if first is None else weighting(first.costs.reshape(inputs.state.shape[:-1]))
    found = _fused(dynamics, policy, loop.value, inputs, backend, gradient=True, seeds=seeds,
                   wanted=("states", "actions", "running") if rollout else ())
    names = [n for n, _ in policy.named_parameters()]
    if found is not None:
        if found.initial is None or found.weights is None:
            raise RuntimeError("policy_gradient: the kernel gave no gradient")
        by = dict(zip(weight_names(policy), found.weights, strict=True))
        return PolicyGradient(found.costs.reshape(inputs.state.shape[:-1]), found.initial.reshape(inputs.state.shape),
                              {n: by[n] for n in names}, _rollout_of(found, inputs) if rollout else None)
    x, weights = inputs.state.detach().requires_grad_(), list(policy.parameters())
    with torch.enable_grad():
        costs, *others = _torch_loop(dynamics, policy, inputs, loop, x)
        counts = torch.ones_like(costs) if weighting is None else weighting(costs.detach())
        slopes = torch.autograd.grad(costs, [x, *weights], counts.detach(), allow_unused=True)
    named = {n: torch.zeros_like(w) if g is None else g for n, w, g in zip(names, weights, slopes[1:], strict=True)}
    made = PolicyRollout(costs.detach(), *(t.detach() for t in others)) if rollout else None
    return PolicyGradient(costs.detach(), torch.zeros_like(x) if slopes[0] is None else slopes[0], named, made)


def _fused(dynamics: ResidualDynamics, policy: Policy, value: Value | None, inputs: LoopInputs, backend: Backend, *, gradient: bool,
           seeds: Tensor | None = None, wanted: tuple[str, ...] = ()) -> Outputs | None:
    """Return what the kernels found; None where torch is to do it."""
    if backend == "torch" or (backend == "auto" and inputs.state.device.type != "cpu"):
        return None
    found: Outputs | Refusal = refusal(policy, value) or fused_policy(
        dynamics, policy, warp_form_of(policy, getattr(policy, "warp_form", None)), value,
        warp_form_of(value, getattr(value, "warp_form", None)), inputs, gradient=gradient,
        seeds=seeds, wanted=wanted)
    if not isinstance(found, Refusal):
        return found
    if backend == "fused":
        raise ValueError(f"policy rollout: cannot be fused: {found.reason}")
    log.debug("policy rollout in torch: %s", found.reason)
    return None


def refusal(policy: Policy | None, value: Value | None) -> Refusal | None:
    """Return why there is no Warp form of these, None where there is one."""
    known = policy is None or (isinstance(policy, NetworkPolicy) and speaks_for(policy, "warp_act", ("act", "forward", "warp_form")))
    if not known:
        return Refusal(f"{type(policy).__name__} has no Warp form")
    if value is not None and type(value).forward is not Value.forward:
        return Refusal(f"{type(value).__name__} has no Warp form")
    return None


def weight_names(policy: nn.Module) -> list[str]:
    """Return the names of the weights of a network policy or value in the order of its Warp form: matrix and bias of each layer."""
    count = len([n for n, _ in policy.named_parameters()]) // 2
    return [f"network.{kind}.{i}" for i in range(count) for kind in ("weights", "biases")]


def _rollout_of(found: Outputs, inputs: LoopInputs) -> PolicyRollout:
    batch = inputs.state.shape[:-1]
    parts = [t.reshape(batch + t.shape[1:]) for t in (found.costs, found.states, found.actions, found.running) if t is not None]
    return PolicyRollout(*parts)


def _torch_loop(dynamics: ResidualDynamics, policy: Policy, inputs: LoopInputs, loop: Loop,
                start: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return costs, states, actions and the cost of each step, differentiable."""
    x = inputs.state if start is None else start
    check_finite(x, inputs.data)
    p, references, horizon = dynamics.resolve(loop.parameters, x), inputs.references, inputs.data.shape[-2] - 1
    last = references.shape[-2] - 1
    states, actions, running = [x], [], []
    for t in range(horizon):
        noise, goal = _split(policy, inputs.data[..., t, :])
        actions.append(policy(x, noise, goal))
        running.append(inputs.cost.running(x, actions[-1], references[..., min(t, last - 1), :]))
        x = dynamics.step(x, actions[-1], p)
        states.append(x)
    end = inputs.cost.terminal(x, references[..., last, :])
    if loop.value is not None:
        end = end + loop.value(x, _split(policy, inputs.data[..., horizon, :])[1])
    steps = torch.stack(running, -1)
    discounts = steps.new_ones(horizon + 1) if inputs.discounts is None else inputs.discounts.to(steps)
    return (steps * discounts[:-1]).sum(-1) + discounts[-1] * end, torch.stack(states, -2), torch.stack(actions, -2), steps


def _split(policy: Policy, data: Tensor) -> tuple[Tensor | None, Tensor | None]:
    goal, noise = data[..., : policy.goal_size], data[..., policy.goal_size : policy.goal_size + policy.noise_size]
    return noise if policy.noise_size else None, goal if policy.goal_size else None


def _inputs(dynamics: ResidualDynamics, policy: Policy, state: Tensor, cost: Cost, horizon: int, loop: Loop, backend: str) -> LoopInputs:
    """Return the inputs checked and expanded, the state with memory."""
    if backend not in BACKENDS:
        raise ValueError(f"policy rollout: backend must be one of {BACKENDS}, received {backend!r}")
    known = dynamics.baseline.space
    if (policy.space.state_names, policy.space.action) != (known.state_names, known.action):
        raise ValueError(f"policy rollout: the policy is for states {policy.space.state_names} and actions {policy.space.action}, "
                         f"the model has {known.state_names} and {known.action}")
    if state.ndim < 1 or state.shape[-1] not in (known.nx, dynamics.space.nx):
        raise ValueError(f"policy rollout: state must have shape [*batch, {known.nx}] or [*batch, {dynamics.space.nx}], received "
                         f"{tuple(state.shape)}")
    if horizon < 1:
        raise ValueError(f"policy rollout: horizon must be at least 1, received {horizon}")
    if not 0 < loop.discount <= 1:
        raise ValueError(f"policy rollout: discount must lie in (0, 1], received {loop.discount}")
    batch = state.shape[:-1]
    noise = _step_data("noise", loop.noise, batch, horizon, policy.noise_size, state)
    goals = _step_data("goals", loop.goals, batch, horizon + 1, policy.goal_size, state)
    if loop.goals is None and policy.goal_size:
        raise ValueError(f"policy rollout: the policy asks for goals [*batch, {horizon + 1}, {policy.goal_size}]")
    noise = torch.cat([noise, noise.new_zeros(*batch, 1, noise.shape[-1])], -2)
    data = torch.cat([goals, noise], -1) if noise.shape[-1] + goals.shape[-1] else state.new_zeros(*batch, horizon + 1, 1)
    if state.shape[-1] < dynamics.space.nx:
        with torch.no_grad():
            state = dynamics.initial_state(state, policy(state, *_split(policy, data[..., 0, :])))
    references = references_of(cost, state, horizon)
    discounts = None if loop.discount == 1 else loop.discount ** torch.arange(horizon + 1, dtype=state.dtype, device=state.device)
    return LoopInputs(state=state, data=data, cost=cost, references=references, discounts=discounts, parameters=loop.parameters or {})


def _step_data(name: str, given: Tensor | None, batch: torch.Size, rows: int, size: int, like: Tensor) -> Tensor:
    if given is None or size == 0:
        if given is not None and given.shape[-1]:
            raise ValueError(f"policy rollout: the policy takes no {name}, received {tuple(given.shape)}")
        return like.new_zeros(*batch, rows, size)
    if given.ndim < 2 or given.shape[-2:] != (rows, size):
        raise ValueError(f"policy rollout: {name} must have shape [*batch, {rows}, {size}], received {tuple(given.shape)}")
    try:
        return given.to(like).expand(*batch, rows, size)
    except RuntimeError as error:
        raise ValueError(f"policy rollout: {name} of shape {tuple(given.shape)} do not fit states of batch {tuple(batch)}") from error
