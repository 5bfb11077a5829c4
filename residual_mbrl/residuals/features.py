"""What a residual's network sees: named quantities, transformed and normalised inside the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from residual_mbrl.residuals.base import Context
from residual_mbrl.residuals.networks import per_member

Transform = Literal["identity", "abs", "sign", "sin", "cos", "slow", "hats"]


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One input of a network.

    Args:
        source: A state entry, an action entry or a baseline signal; "position", "velocity" or "action" for all of them.
        transform: "identity" and "abs" are divided by the data's spread; "sign" is a tanh 20 times steeper than the spread;
            "sin" and "cos" take radians as they are; "slow" is ``exp(-|x| / width)``, one at rest (Stribeck); "hats" are
            piecewise-linear table knots over the data's range.
        width: For "slow", in the unit of the source.
        knots: For "hats", how many.
        direction: Another source of one component whose sign (a tanh 20 times steeper than its spread) multiplies the feature:
            a table per direction of travel is "hats" once without and once with it.
    """

    source: str
    transform: Transform = "identity"
    width: float = 0.1
    knots: int = 6
    direction: str = ""

    def __post_init__(self) -> None:
        """Check the transform and its options."""
        if self.transform not in Transform.__args__:  # type: ignore[attr-defined]
            raise ValueError(f"Feature: transform must be one of {Transform.__args__}, received {self.transform!r}")  # type: ignore[attr-defined]
        if self.width <= 0 or self.knots < 2:
            raise ValueError(f"Feature: expected width > 0 and knots >= 2, received {self.width}, {self.knots}")


class FeatureMap(nn.Module):
    """Turns a step's context into network inputs; the normaliser is a buffer and so part of the artefact.

    Args:
        features: The inputs in order.
        sizes: Number of components of each feature's source, e.g. nv for "velocity".
    """

    lower: Tensor
    upper: Tensor
    spread: Tensor
    pace: Tensor

    def __init__(self, features: Sequence[Feature], sizes: Sequence[int]) -> None:
        super().__init__()
        if not features or len(features) != len(sizes):
            raise ValueError(f"FeatureMap: expected as many sizes as features and at least one, received {len(features)}, {len(sizes)}")
        self.features, self.sizes = tuple(features), tuple(sizes)
        total = sum(sizes)
        self.register_buffer("lower", -torch.ones(total, dtype=torch.float64))
        self.register_buffer("upper", torch.ones(total, dtype=torch.float64))
        self.register_buffer("spread", torch.ones(total, dtype=torch.float64))
        self.register_buffer("pace", torch.ones(len(self.features), dtype=torch.float64))

    @property
    def outputs(self) -> int:
        """Number of network inputs that come out."""
        return sum(n * (f.knots if f.transform == "hats" else 1) for f, n in zip(self.features, self.sizes, strict=True))

    def fit(self, context: Context) -> None:
        """Set range and root mean square of every source from data, shapes [*batch, ...]."""
        x = torch.cat([context.source(f.source) for f in self.features], -1).reshape(-1, sum(self.sizes)).double()
        self.lower.copy_(x.amin(0))
        self.upper.copy_(torch.maximum(x.amax(0), x.amin(0) + 1e-9))
        self.spread.copy_(x.square().mean(0).sqrt().clamp_min(1e-9))
        for i, f in enumerate(self.features):
            if f.direction:
                self.pace[i] = context.source(f.direction).double().square().mean().sqrt().clamp_min(1e-9)

    def forward(self, context: Context) -> Tensor:
        """Return the network inputs, shape [*batch, outputs]."""
        parts, i = [], 0
        for k, (f, n) in enumerate(zip(self.features, self.sizes, strict=True)):
            x = self._transform(f, context.source(f.source), slice(i, i + n))
            if f.direction:
                along = context.source(f.direction)
                x = x * torch.tanh(20 * along / per_member(self.pace[..., k : k + 1].to(along.dtype), along))
            parts.append(x)
            i += n
        return torch.cat(parts, -1)

    def _transform(self, f: Feature, x: Tensor, columns: slice) -> Tensor:
        if f.transform == "sin":
            return torch.sin(x)
        if f.transform == "cos":
            return torch.cos(x)
        if f.transform == "slow":
            return torch.exp(-x.abs() / f.width)
        if f.transform == "hats":
            lower = per_member(self.lower[..., columns].to(x.dtype), x)
            upper = per_member(self.upper[..., columns].to(x.dtype), x)
            place = ((x - lower) / (upper - lower)).clamp(0, 1) * (f.knots - 1)
            knots = torch.arange(f.knots, dtype=x.dtype, device=x.device)
            return (1 - (place.unsqueeze(-1) - knots).abs()).clamp_min(0).flatten(-2)
        scaled = x / per_member(self.spread[..., columns].to(x.dtype), x)
        if f.transform == "sign":
            return torch.tanh(20 * scaled)
        return scaled.abs() if f.transform == "abs" else scaled

    def describe(self) -> list[dict[str, object]]:
        """Return the features as JSON holds them."""
        return [asdict(f) for f in self.features]


def feature_sizes(features: Sequence[Feature], space_sizes: dict[str, int]) -> list[int]:
    """Number of components of each source; a name that is not a whole vector has one."""
    return [space_sizes.get(f.source, 1) for f in features]
