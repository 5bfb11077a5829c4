"""What a fused launch reads of a model besides its code: parameter values and weights, as they are now."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof, c_longlong
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from residual_mbrl.baselines import Values
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import NotFiniteError
from residual_mbrl.fused.model import REALS, FlatWeights, FusedModel

_versions = count()


def parameter_rows(dynamics: ResidualDynamics, ready: FusedModel, like: Tensor, batch: torch.Size, parameters: Values) -> Tensor:
    """Return values of all parameters in order, and weights that are no network's, shape [B, parameters]; differentiable."""
    own = (like.dtype, like.device, *dynamics.values.values())
    if own not in ready.values:
        ready.values.clear()
        ready.values[own] = torch.tensor([*(dynamics.values[n] for n in ready.names), 0.0], dtype=like.dtype, device=like.device)
    row = ready.values[own]
    scalars = [s for form in ready.forms for s in form.scalars()]
    if not parameters and not scalars:
        return row.expand(like.shape[0], -1)
    parts = [row[:-1].expand(*batch, -1)]
    if parameters:
        parts = [torch.stack([parameters[n].to(like).expand(batch) if n in parameters else row[i].expand(batch)
                              for i, n in enumerate(ready.names)], -1)]
    one = (1,) * (len(batch) - len(ready.members))
    parts += [s.to(like).reshape(*ready.members, *one, s.shape[-1]).expand(*batch, -1) for s in scalars]
    return torch.cat([*parts, row[-1:].expand(*batch, 1)], -1).reshape(like.shape[0], -1)


def constants_on(ready: FusedModel, like: Tensor) -> Tensor:
    """Return the constants in the precision of a tensor and on its device."""
    if like.device.type == "cpu":
        return ready.constants[like.dtype]
    key = like.dtype, like.device
    if key not in ready.placed:
        ready.placed[key] = ready.constants[like.dtype].to(like.device)
    return ready.placed[key]


class Entries(NamedTuple):
    """Where weights are, for a kernel: rows (address, numbers of a member, bytes of a number)."""

    table: Any
    address: int


def weight_entries(weights: Sequence[Tensor], members: int) -> Entries:
    """Return the table of contiguous float32 or float64 weights."""
    rows = (c_longlong * (3 * len(weights) + 1))()
    rows[:-1] = [x for w in weights for x in (w.data_ptr(), w.numel() // members, w.element_size())]
    return Entries(rows, addressof(rows))


def read_weights(dynamics: ResidualDynamics, ready: FusedModel, weights: Sequence[Tensor], dtype: torch.dtype) -> FlatWeights:
    """Return the weights as they are now, and remember them; the kernels compare them at each launch.

    Raises:
        NotFiniteError: if some are not finite in this precision.
    """
    from residual_mbrl.kernels.weights import read_weights as read  # noqa: PLC0415  # half a second that only fused rollouts need

    members = ready.members[0] if ready.members else 1
    size = sum(w.numel() for w in weights) // members
    values = torch.zeros(members, max(size, 1), dtype=dtype, device="cpu")
    entries = weight_entries(weights, members)
    if not read(entries.address, len(weights), values.data_ptr(), size, members, REALS[dtype]):
        raise NotFiniteError(f"rollout: weights of {_overflowing(dynamics, dtype)} are not finite in {str(dtype).removeprefix('torch.')}")
    found = ready.flat[dtype] = FlatWeights(values, next(_versions))
    return found


def _overflowing(dynamics: ResidualDynamics, dtype: torch.dtype) -> str:
    """Name the residuals whose weights are not finite."""
    def broken(module: nn.Module) -> bool:
        return any(not bool(torch.isfinite(w.detach().to(dtype)).all()) for w in module.parameters())

    return ", ".join(r.name for r in dynamics.corrections if broken(r)) or "the residuals"
