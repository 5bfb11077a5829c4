"""Densities by location, scale and degrees of freedom: Gaussian where these are infinite, Student-t otherwise."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

Array = NDArray[np.float64]


def negative_log_density(error: Tensor, scale: Tensor, dof: Tensor | float = math.inf) -> Tensor:
    """Return ``-log p(error)`` of a Gaussian or Student-t density about zero, differentiable in everything.

    Args:
        error: Shape [...].
        scale: Standard deviation of the Gaussian, scale of Student's t; broadcastable.
        dof: Degrees of freedom ν; infinite for the Gaussian.
    """
    z2 = (error / scale).square()
    if not isinstance(dof, Tensor) and math.isinf(dof):
        return 0.5 * z2 + torch.log(scale) + 0.5 * math.log(2 * math.pi)
    nu = torch.as_tensor(dof, dtype=error.dtype, device=error.device)
    return (0.5 * (nu + 1) * torch.log1p(z2 / nu) + torch.log(scale) + 0.5 * torch.log(nu * math.pi)
            + torch.lgamma(nu / 2) - torch.lgamma((nu + 1) / 2))


def half_width(level: float, dof: float = math.inf) -> float:
    """Return half the width of the central interval that holds ``level`` of the density, in scales."""
    if not 0 < level < 1:
        raise ValueError(f"half_width: level must lie in (0, 1), received {level}")
    return float(stats.norm.ppf(0.5 + level / 2) if math.isinf(dof) else stats.t.ppf(0.5 + level / 2, dof))


def crps(error: Array, scale: Array, dof: float = math.inf) -> Array:
    """Return the continuous ranked probability score in closed form, in the unit of the error; smaller is better.

    Gneiting and Raftery, JASA 102 (2007), eq. 21, for the Gaussian; Jordan, Krüger, Lerch, J. Stat. Software 90 (2019) for t (ν > 1).

    Args:
        error: Observed minus predicted mean, shape [...].
        scale: Broadcastable.
        dof: Degrees of freedom.
    """
    z = error / scale
    if math.isinf(dof):
        return np.asarray(scale * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / math.sqrt(math.pi)))
    if dof <= 1:
        raise ValueError(f"crps: Student's t has a finite score for more than one degree of freedom, received {dof}")
    spread = 2 * math.sqrt(dof) / (dof - 1) * math.exp(_log_beta(0.5, dof - 0.5) - 2 * _log_beta(0.5, dof / 2))
    return np.asarray(scale * (z * (2 * stats.t.cdf(z, dof) - 1) + 2 * stats.t.pdf(z, dof) * (dof + z**2) / (dof - 1) - spread))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
