"""Fitting a policy or a value to targets, by the fused kernel where it can."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from residual_mbrl.fused.closed_loop import warp_form_of
from residual_mbrl.fused.regression import Moments, fused_fit, fused_outputs, fused_training
from residual_mbrl.policies.networks import NetworkPolicy
from residual_mbrl.policies.value import Value
from residual_mbrl.policy_rollouts import refusal, weight_names
from residual_mbrl.rollouts import Backend

Head = NetworkPolicy | Value


class Regression(NamedTuple):
    """Mean squared error of a head and its gradient."""

    error: float
    weights: dict[str, Tensor]
    """By name."""


def outputs(head: Head, state: Tensor, goal: Tensor | None = None, *, backend: Backend = "auto") -> Tensor:
    """Return actions [*batch, nu] of a policy's mean or values [*batch], without a graph.

    Args:
        head: The policy or value.
        state: Shape [*batch, nx] or longer.
        goal: Shape [*batch, goal_size].
        backend: "auto" and "fused" use the kernel where there is one.
    """
    if not _fuses(head, state, backend):
        with torch.no_grad():
            found: Tensor = head(state, goal=goal)
            return found
    flat, data = _flattened(head, state, goal)
    n = 1 if isinstance(head, Value) else head.space.nu
    made = fused_outputs(head, warp_form_of(head, head.warp_form), n, flat, data)
    return made.reshape(state.shape[:-1]) if isinstance(head, Value) else made.reshape(*state.shape[:-1], n)


def regression(head: Head, state: Tensor, target: Tensor, goal: Tensor | None = None, *, backend: Backend = "auto") -> Regression:
    """Return the mean over samples of ``|head(x) - target|²`` and its gradient by the weights.

    Args:
        head: The policy (its mean) or value.
        state: Shape [N, nx] or longer.
        target: Actions [N, nu] or values [N].
        goal: Shape [N, goal_size].
        backend: "auto" and "fused" use the kernel where there is one.

    Raises:
        ValueError: if the targets do not fit.
    """
    expected = state.shape[:-1] if isinstance(head, Value) else (*state.shape[:-1], head.space.nu)
    if state.ndim != 2 or target.shape != expected:
        raise ValueError(f"regression: expected states [N, nx] and targets {tuple(expected)}, received {tuple(state.shape)} and "
                         f"{tuple(target.shape)}")
    if _fuses(head, state, backend):
        flat, data = _flattened(head, state, goal)
        fit = fused_fit(head, warp_form_of(head, head.warp_form), flat, data, target.reshape(flat.shape[0], -1).to(flat))
        by = dict(zip(weight_names(head), fit.weights, strict=True))
        return Regression(float(fit.errors.mean()), {n: by[n] for n, _ in head.named_parameters()})
    named = dict(head.named_parameters())
    with torch.enable_grad():
        error = (head(state, goal=goal) - target).square().sum() / state.shape[0]
        slopes = torch.autograd.grad(error, list(named.values()))
    return Regression(float(error.detach()), dict(zip(named, slopes, strict=True)))


def train(head: Head, state: Tensor, target: Tensor, adam: torch.optim.Adam, order: Tensor, size: int, *, largest: float = float("inf"),
          unit: float = 1.0, backend: Backend = "auto") -> Tensor:
    """Take steps of Adam on the mean squared error over ``unit``; return the error before each step.

    Fused, all steps are one launch.

    Args:
        head: Changed in place.
        state: Shape [N, nx] or longer.
        target: Actions [N, nu] or values [N].
        adam: Of all weights of the head, without weight decay.
        order: Of samples, int64, shape [rounds, N].
        size: Samples of a step.
        largest: Norm that gradients are cut to.
        unit: What squared errors are counted in, so that a rate does not depend on the targets' unit.
        backend: "auto" and "fused" use the kernel where there is one.
    """
    named = dict(head.named_parameters())
    weights = [named[n] for n in weight_names(head)]
    if not _fuses(head, state, backend) or any(w.dtype != state.dtype for w in weights):
        seen = []
        for row in order:
            for part in row.split(size):
                found = regression(head, state[part], target[part], backend=backend)
                slopes = torch._foreach_div(list(found.weights.values()), unit)
                apply(head, dict(zip(found.weights, slopes, strict=True)), adam, largest)
                seen.append(found.error)
        return torch.tensor(seen, dtype=state.dtype)
    x, data = _flattened(head, state, None)
    for w in weights:
        if not adam.state[w]:
            adam.state[w] = {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(w), "exp_avg_sq": torch.zeros_like(w)}
    group, known = adam.param_groups[0], [adam.state[w] for w in weights]
    rows = [weights, *([k[n] for k in known] for n in ("exp_avg", "exp_avg_sq"))]
    mean, square = (torch.cat([t.reshape(-1) for t in row]) for row in rows[1:])
    moments = Moments(mean, square, [float(known[0]["step"]), group["lr"], *group["betas"], group["eps"], largest, unit])
    wanted = target.reshape(x.shape[0], -1).to(x)
    flat, errors, step = fused_training(head, warp_form_of(head, head.warp_form), x, data, wanted, order, size, moments)
    sizes = [w.numel() for w in weights]
    with torch.no_grad():
        for old, new in zip(rows, (flat, mean, square), strict=True):
            torch._foreach_copy_(old, [part.view_as(w) for w, part in zip(weights, new.split(sizes), strict=True)])
        for k in known:
            k["step"].fill_(float(step))
    return errors


def apply(module: nn.Module, gradients: dict[str, Tensor], optimizer: torch.optim.Optimizer, largest: float | None = None) -> float:
    """Let an optimiser take a step along gradients by name, cut to a largest norm; return their norm.

    Where the norm is not finite nothing is changed.
    """
    weights = dict(module.named_parameters())
    slopes = [gradients[name] for name in weights]
    norm = float(torch.nn.utils.get_total_norm(slopes))
    if not math.isfinite(norm):
        return norm
    if largest is not None and norm + 1e-6 > largest:
        slopes = list(torch._foreach_mul(slopes, largest / (norm + 1e-6)))
    for weight, slope in zip(weights.values(), slopes, strict=True):
        weight.grad = slope
    optimizer.step()
    return norm


def _fuses(head: Head, state: Tensor, backend: Backend) -> bool:
    policy, value = (None, head) if isinstance(head, Value) else (head, None)
    return backend != "torch" and state.device.type == "cpu" and refusal(policy, value) is None


def _flattened(head: Head, state: Tensor, goal: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return states [N, nx] and data [N, goal and noise] as kernels want them; no data for a head that has none."""
    x = state.detach().reshape(-1, state.shape[-1])[:, : head.space.nx]
    size = head.goal_size + (0 if isinstance(head, Value) else head.noise_size)
    d = x.new_zeros(x.shape[0], size) if size else None
    if goal is not None and d is not None:
        d[:, : head.goal_size] = goal.reshape(-1, head.goal_size)
    return x, d
