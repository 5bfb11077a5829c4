"""Robust losses: quadratic for errors within a scale, growing slower beyond, and plain squares for penalty rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
Loss = Literal["linear", "soft_l1", "cauchy"]


def rho(squared: Array, loss: Loss) -> Array:
    """Return ρ, ρ' and ρ'' of squared scaled errors, shape [3, rows], as ``scipy.optimize.least_squares`` wants them."""
    if loss == "soft_l1":
        t = 1 + squared
        return np.stack([2 * (np.sqrt(t) - 1), t**-0.5, -0.5 * t**-1.5])
    if loss == "cauchy":
        t = 1 + squared
        return np.stack([np.log(t), 1 / t, -1 / t**2])
    if loss == "linear":
        return np.stack([squared, np.ones_like(squared), np.zeros_like(squared)])
    raise ValueError(f"loss must be linear, soft_l1 or cauchy, received {loss!r}")


def scipy_loss(loss: Loss, data_rows: int) -> Callable[[Array], Array]:
    """Return a loss for scipy that is robust on the first ``data_rows`` rows and quadratic on the rest (priors, penalties)."""

    def both(squared: Array) -> Array:
        return np.concatenate([rho(squared[:data_rows], loss), rho(squared[data_rows:], "linear")], 1)

    return both


def cost(errors: Array, loss: Loss, f_scale: float) -> Array:
    """Return the robust cost ``1/2 f² Σ ρ((e/f)²)`` of error vectors, shape [..., rows] to [...]."""
    return np.asarray(0.5 * f_scale**2 * rho((errors / f_scale) ** 2, loss)[0].sum(-1))


def torch_cost(errors: Tensor, loss: Loss, f_scale: float, weights: Tensor | None = None) -> Tensor:
    """Return the same cost in torch, differentiable; ``weights`` count each row as often, shape as ``errors``."""
    squared = (errors / f_scale) ** 2
    shapes: dict[Loss, Callable[[Tensor], Tensor]] = {"linear": lambda s: s, "soft_l1": lambda s: 2 * (torch.sqrt(1 + s) - 1),
                                                      "cauchy": torch.log1p}
    each = shapes[loss](squared)
    return 0.5 * f_scale**2 * (each if weights is None else weights * each).sum(-1)
