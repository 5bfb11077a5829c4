"""Difference quotients at two step sizes from both sides, and what they say of a derivative."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

FINER = 4.0
"""Ratio of the two step sizes."""
ROUNDING = 16
"""Units of rounding that a step's result may be off."""
SIDES = 4
"""Evaluations of a direction."""
WORLDS = 1 << 13
"""Most worlds in one evaluation, a bound on memory."""


class Verdict(IntEnum):
    """What differences say of a derivative; the larger the graver."""

    AGREES = 0
    SWITCH = 1
    WRONG = 2
    DEAD = 3
    NOT_FINITE = 4


class Quotients(NamedTuple):
    """One-sided difference quotients of a function along directions; each of shape [*batch, directions, outputs]."""

    forward: Tensor
    """``f(h d) / h`` with the finer step h, of a function that is zero at zero."""
    backward: Tensor
    """``-f(-h d) / h``."""
    coarse_forward: Tensor
    """As ``forward``, with the coarser step."""
    coarse_backward: Tensor

    @property
    def centred(self) -> Tensor:
        """Centred quotient with the finer step."""
        return 0.5 * (self.forward + self.backward)

    @property
    def magnitude(self) -> Tensor:
        """Absolute value of the smaller one-sided quotient, which a jump to the other side does not reach; zero where not finite."""
        return torch.minimum(self.forward.abs(), self.backward.abs()).nan_to_num(0.0, 0.0)

    def steady(self, allowed: Tensor) -> Tensor:
        """Return where the quotients agree among themselves, to ``allowed``.

        Where a function is smooth the one-sided quotients approach one another in proportion to the step; across a kink at the
        point they do not, across one near it the centred ones differ between the steps, and across a jump or in noise both.
        """
        gap, coarse_gap = (self.forward - self.backward).abs(), (self.coarse_forward - self.coarse_backward).abs()
        moved = (self.centred - 0.5 * (self.coarse_forward + self.coarse_backward)).abs()
        return self.centred.isfinite() & (moved <= allowed) & ~((gap > allowed) & (gap > 0.5 * coarse_gap))

    def projected(self, weights: Tensor) -> Quotients:
        """Return the quotients of the sum of outputs times ``weights``, one output; outputs of weight zero do not count."""
        return Quotients(*(torch.where(weights != 0, x * weights, 0.0).sum(-1, keepdim=True) for x in self))


class Comparison(NamedTuple):
    """A derivative beside its difference quotients; each of shape [*batch, directions, outputs]."""

    verdict: Int[Tensor, "*shape"]
    error: Float[Tensor, "*shape"]
    """Relative to the expected derivative; of one that agrees with a one-sided quotient, to that."""
    received: Tensor
    expected: Tensor

    def or_else(self, other: Comparison) -> Comparison:
        """Return this comparison, and another one where this finds a derivative wrong and the other right."""
        better = (self.verdict != Verdict.AGREES) & (other.verdict == Verdict.AGREES)
        return Comparison(*(torch.where(better, b, a) for a, b in zip(self, other, strict=True)))


def quotients(function: Callable[[Tensor], Tensor], directions: Float[Tensor, "*batch directions n"], step: float) -> Quotients:
    """Return the difference quotients of a function about zero, where it is zero.

    Args:
        function: From moves [*batch, R, n] to outputs [*batch, R, m], for any R.
        directions: Shape [*batch, D, n].
        step: The coarser step size.
    """
    sizes = step * directions.new_tensor([1.0, -1.0, 1 / FINER, -1 / FINER])
    worlds = max(1, directions.shape[:-2].numel())
    found = []
    with torch.no_grad():
        for some in directions.split(max(1, WORLDS // (SIDES * worlds)), -2):
            moves = some.unsqueeze(-2) * sizes.unsqueeze(-1)
            slopes = function(moves.flatten(-3, -2)).unflatten(-2, (some.shape[-2], SIDES)) / sizes.unsqueeze(-1)
            found.append(slopes)
    coarse_forward, coarse_backward, forward, backward = torch.cat(found, -3).unbind(-2)
    return Quotients(forward, backward, coarse_forward, coarse_backward)


def compare(received: Tensor, found: Quotients, *, tolerance: float, size: Tensor, rounding: Tensor) -> Comparison:
    """Judge a derivative by difference quotients.

    It agrees if it lies within ``tolerance (|quotient| + size) + rounding`` of the centred quotient, or of a one-sided one: at a
    kink the derivative from either side is right.

    Args:
        received: Shape [*batch, D, m].
        found: Of the same shape.
        tolerance: Relative error allowed.
        size: Below which errors are relative to this instead, broadcastable.
        rounding: Of the quotients, broadcastable.
    """
    sides = torch.stack([found.centred, found.forward, found.backward])
    errors = (received - sides).abs() / (sides.abs() + size + rounding / tolerance)
    nearest = errors.nan_to_num(torch.inf, torch.inf).amin(0)
    allowed = tolerance * (found.centred.abs() + size) + rounding
    verdict = torch.full(received.shape, int(Verdict.WRONG), device=received.device)
    # zero to rounding: on its way from a quaternion to the tangent space a zero may pick some up
    dead = (received.abs() <= ROUNDING * torch.finfo(torch.float64).eps * found.centred.abs()) & (found.centred != 0.0)
    verdict = verdict.masked_fill(dead, int(Verdict.DEAD))
    verdict = verdict.masked_fill(~found.steady(allowed), int(Verdict.SWITCH))
    verdict = verdict.masked_fill(nearest <= tolerance, int(Verdict.AGREES))
    verdict = verdict.masked_fill(~received.isfinite(), int(Verdict.NOT_FINITE))
    return Comparison(verdict, torch.where(verdict == Verdict.AGREES, nearest, errors[0]), received, found.centred)
