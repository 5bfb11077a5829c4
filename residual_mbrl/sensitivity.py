"""How small changes of a first state grow over a rollout, and from where on they have grown too much."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from residual_mbrl.audit_result import Finding, FindingKind


class Sensitivity(NamedTuple):
    """Growth of small changes."""

    growth: Float[Tensor, "*batch horizon"]
    """Norm of ``∂x[t+1] / ∂x[0]``; infinite from where a state is not finite."""
    horizon: Int[Tensor, "*batch"]
    """Steps until it exceeds the threshold, or a state is not finite."""
    rate: Float[Tensor, "*batch"]
    """Factor of a step, the geometric mean over the horizon."""
    findings: list[Finding]


def measure_sensitivity(transitions: Float[Tensor, "*batch horizon ndx ndx"], finite: Bool[Tensor, "*batch horizon"], names: list[str],
                        threshold: float) -> Sensitivity:
    """Multiply the Jacobians of steps and find where the product explodes.

    It explodes where its norm exceeds ``threshold max(1, median norm of a step)``: a stiff oscillation, whose rates are large
    from the first step on but do not grow, does not.

    Args:
        transitions: ``∂x[t+1] / ∂x[t]`` on the tangent space.
        finite: Where they mean something.
        names: Of the tangent's entries.
        threshold: Growth allowed.
    """
    sound = finite.cummin(-1).values
    steps = torch.where(sound[..., None, None], transitions, 0.0)
    products = [steps[..., 0, :, :]]
    for step in steps.unbind(-3)[1:]:
        products.append((step @ products[-1]).clamp(-1e150, 1e150))  # beyond, the norm itself overflows
    product = torch.stack(products, -3)
    growth = torch.where(sound, torch.linalg.matrix_norm(product, 2), torch.inf)
    median = torch.where(sound, torch.linalg.matrix_norm(steps, 2), torch.nan).nanmedian(-1, keepdim=True).values.nan_to_num(1.0)
    limit = threshold * median.clamp_min(1.0)
    beyond = growth > limit
    horizon = torch.where(beyond.any(-1), beyond.int().argmax(-1), growth.shape[-1])
    findings = [_finding(tuple(w), int(horizon[tuple(w)]), product, growth, float(limit[(*w, 0)]), names)
                for w in (beyond & sound).any(-1).nonzero().tolist()]
    last = (horizon - 1).clamp_min(0).unsqueeze(-1)
    rate = growth.gather(-1, last).squeeze(-1) ** (1 / (last.squeeze(-1) + 1))
    return Sensitivity(growth, horizon, rate, findings)


def _finding(world: tuple[int, ...], step: int, product: Tensor, growth: Tensor, limit: float, names: list[str]) -> Finding:
    left, _, right = torch.linalg.svd(product[(*world, step)])
    received = float(growth[(*world, step)])
    return Finding(kind=FindingKind.EXPLODING, world=world, step=step, steps=(step,), input=names[int(right[0].abs().argmax())],
                   output=names[int(left[:, 0].abs().argmax())], expected=limit, received=received, error=received / limit)
