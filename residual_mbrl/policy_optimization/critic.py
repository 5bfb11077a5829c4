"""A value fitted to what policies cost: TD(λ) targets against a slow copy (Xu et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from residual_mbrl.policies.value import Value
from residual_mbrl.policy_optimization.regression import outputs, train
from residual_mbrl.rollouts import Backend


@dataclass(frozen=True, kw_only=True)
class CriticOptions:
    """How a value is fitted.

    Args:
        rate: Learning rate of Adam.
        rounds: Times that the data of an iteration are gone through.
        batches: Parts of the data in each round.
        trace: λ of the targets, 1 for costs of the whole window, 0 for those of one step.
        follow: Part of the way that the slow copy goes towards the value in each iteration.
        largest: Norm that gradients are cut to.
    """

    rate: float = 2e-3
    rounds: int = 4
    batches: int = 4
    trace: float = 0.95
    follow: float = 0.3
    largest: float = 1.0


def traced_targets(running: Tensor, values: Tensor, discount: float, trace: float) -> Tensor:
    """Return ``V_t = c_t + γ ((1 - λ) V'(x_{t+1}) + λ V_{t+1})`` with ``V_H = V'(x_H)``, shape [*batch, H].

    Args:
        running: Cost of each step, shape [*batch, H].
        values: V' of each state, the last included, shape [*batch, H + 1].
        discount: γ.
        trace: λ.
    """
    steps = running + discount * (1 - trace) * values[..., 1:]
    steps[..., -1] += discount * trace * values[..., -1]
    return steps @ _sums(running.shape[-1], discount * trace, running.dtype, running.device)


@cache
def _sums(steps: int, decay: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the rows of the sum over steps s from t on, shape [s, t]."""
    later = torch.arange(steps)[:, None] - torch.arange(steps)[None]
    powers = decay ** torch.arange(steps, dtype=torch.float64)
    return torch.where(later >= 0, powers[later.clamp_min(0)], 0.0).to(device, dtype)


def fit_value(value: Value, slow: Value, optimizer: torch.optim.Adam, states: Tensor, running: Tensor, discount: float,
              options: CriticOptions, generator: torch.Generator, backend: Backend) -> float:
    """Fit a value to windows, and let its slow copy follow; return the mean squared error of the last round.

    Args:
        value: Changed in place.
        slow: Changed in place.
        optimizer: Of the value's weights.
        states: Shape [*batch, H + 1, nx].
        running: Cost of each step, shape [*batch, H].
        discount: Of a step.
        options: How.
        generator: Of the order of samples.
        backend: What computes gradients.
    """
    targets = traced_targets(running, outputs(slow, states, backend=backend), discount, options.trace).flatten()
    x = states[..., :-1, :].reshape(-1, states.shape[-1])
    if not torch.isfinite(targets.sum() + x.sum()):
        sound = torch.isfinite(targets) & torch.isfinite(x).all(-1)
        x, targets = x[sound], targets[sound]
    if not len(targets):
        return float("nan")
    if float(value.scale) == 1.0:  # once, from the first data: a network's outputs are about one
        for module in (value, slow):
            module.scale.fill_(float(targets.square().mean().sqrt().clamp_min(1e-6)))
    order = torch.empty(options.rounds, len(targets), dtype=torch.int64)
    for row in order:
        torch.randperm(len(targets), generator=generator, out=row)
    errors = train(value, x, targets, optimizer, order, -(-len(targets) // options.batches), largest=options.largest,
                   unit=float(value.scale) ** 2, backend=backend)
    with torch.no_grad():
        torch._foreach_lerp_(list(slow.parameters()), list(value.parameters()), options.follow)
    return float(errors.reshape(options.rounds, -1)[-1].mean())
