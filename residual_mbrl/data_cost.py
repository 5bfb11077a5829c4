"""The error between states and the samples of a log as a cost of a rollout, so that fused kernels sum it up and take it back themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from residual_mbrl import robust
from residual_mbrl.costs import Cost, WarpCost

DIVERGED = 1e3
"""Scaled error [noise standard deviations] that stands for a simulation that is not finite."""


class DataCost(Cost):
    """``Σ_t w ½ f² Σ_k ρ((e_tk / f)²)`` with the scaled errors ``e_tk = s_tk (x_t[place k] - y_tk)``, bounded by ``DIVERGED``.

    Args:
        places: State entry that each column shows.
        samples: What the log holds, y, shape [*batch, H + 1, ny]; finite where the scale is positive.
        scale: One over the noise, s, zero where a sample does not count, shape [*batch, H + 1, ny].
        weight: How often each window counts, w, shape [*batch].
        loss: Robust loss ρ.
        f_scale: Noise standard deviations f beyond which the loss is linear.
    """

    def __init__(self, *, places: Sequence[int], samples: Float[Tensor, "*batch horizon_1 ny"], scale: Float[Tensor, "*batch horizon_1 ny"],
                 weight: Float[Tensor, "*batch"], loss: robust.Loss, f_scale: float) -> None:
        self._places, self._loss, self._f_scale = tuple(places), loss, float(f_scale)
        shown = torch.where(scale > 0, samples, 0.0)
        each = weight[..., None, None].expand(*scale.shape[:-1], 1)
        self._references = torch.cat([shown, scale, each], -1).contiguous()

    @property
    def references(self) -> Tensor:
        """Samples, scales and weight of each step, shape [*batch, H + 1, 2 ny + 1]."""
        return self._references

    def running(self, state: Tensor, action: Tensor, reference: Tensor) -> Tensor:
        """Return the cost of a step's samples, shape [*batch]."""
        return self.terminal(state, reference)

    def terminal(self, state: Tensor, reference: Tensor) -> Tensor:
        """Return the cost of the last samples, shape [*batch]."""
        ny = len(self._places)
        shown, scale, weight = reference.split([ny, ny, 1], -1)
        error = torch.where(scale > 0, bounded((state[..., list(self._places)] - shown) * scale), 0.0)
        return robust.torch_cost(error, self._loss, self._f_scale, weight)

    def warp_form(self) -> WarpCost:
        """Return the same functions in Warp."""
        import warp as wp  # noqa: PLC0415  # half a second that only fused rollouts need

        places, ny, scale, loss = self._places, len(self._places), 1 / self._f_scale, self._loss
        largest, factor = DIVERGED * scale, 0.5 * self._f_scale**2

        def terminal(x: Any, r: Any) -> Any:
            total: Any = 0.0
            for k, place in enumerate(places):
                e = wp.clamp((x[place] - r[k]) * (r[ny + k] * scale), -largest, largest)
                squared = wp.where(r[ny + k] > 0.0, e * e, 0.0)
                if loss == "soft_l1":
                    squared = 2.0 * (wp.sqrt(1.0 + squared) - 1.0)
                elif loss == "cauchy":
                    squared = wp.log(1.0 + squared)
                total = total + squared
            return total * (r[2 * ny] * factor)

        def running(x: Any, u: Any, r: Any) -> Any:
            return terminal(x, r)

        return WarpCost(("data", places, loss, self._f_scale), running, terminal)


def bounded(error: Tensor) -> Tensor:
    """Return errors within ``DIVERGED``, which also stands for those that are not finite."""
    return torch.nan_to_num(error, nan=DIVERGED, posinf=DIVERGED, neginf=-DIVERGED).clamp(-DIVERGED, DIVERGED)
