"""Noise of a chosen colour along the horizon, and knots that fewer numbers go through."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def colouring(steps: int, exponent: float) -> Tensor:
    """Return M, shape [n, H], such that white noise [..., n] @ M has a spectrum ``1 / f^exponent`` and unit variance at every step.

    The lowest frequency is that of two horizons, as a control signal need not be periodic over the horizon; for an exponent of zero the
    noise is white. Source: Timmer and König, On generating power law noise, 1995; Pinneri et al., iCEM, 2020.

    Args:
        steps: H.
        exponent: At least 0; 2 is what iCEM takes for slow systems.
    """
    if exponent == 0:
        return torch.eye(steps, dtype=torch.float64)
    frequencies = torch.arange(1, steps + 1, dtype=torch.float64) / (2 * steps)
    angle = 2 * math.pi * frequencies.unsqueeze(-1) * torch.arange(steps, dtype=torch.float64)
    amplitude = frequencies.pow(-0.5 * exponent).unsqueeze(-1)
    basis = torch.cat([amplitude * angle.cos(), amplitude * angle.sin()])
    return basis / basis.square().sum(0).sqrt()


def interpolation(steps: int, knots: int) -> Tensor:
    """Return P, shape [H, knots], such that ``P @ values`` goes straight from knot to knot, the first and the last step being knots."""
    if not 1 <= knots <= steps:
        raise ValueError(f"interpolation: knots must be 1 to {steps}, received {knots}")
    if knots == 1:
        return torch.ones(steps, 1, dtype=torch.float64)
    place = torch.linspace(0, knots - 1, steps, dtype=torch.float64)
    return (1 - (place.unsqueeze(-1) - torch.arange(knots, dtype=torch.float64)).abs()).clamp_min(0)
