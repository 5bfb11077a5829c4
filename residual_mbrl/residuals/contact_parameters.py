"""A learned contact parameter: friction, solref or solimp of one geom as a bounded function of how it is touched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from residual_mbrl.baselines import Baseline, Port
from residual_mbrl.contacts import Contacts
from residual_mbrl.errors import ModelError
from residual_mbrl.residuals.base import Certificate, Context, Residual, bound_certificate
from residual_mbrl.residuals.networks import Perceptron, per_member

INPUTS = ("approach speed", "slip speed", "depth")
"""What the network sees of one contact, with the other geom's material where there are several."""

_EDGE = 1e-6
"""A value at a bound counts as this share of the range away from it, so that it can still move."""
_TINY = 1e-30


class ContactParameters(Residual):
    """The value of one contact parameter for the next step, ``lower < value < upper`` for any weights.

    One network N, shared by all contacts, sees approach speed v, slip speed and depth d of each contact of the geom that the
    parameter belongs to, as ``log(1 + x / spread)``, and the material of the other geom. With p the model's own value::

        value = lower + (upper - lower) σ(σ⁻¹((p - lower) / (upper - lower)) + Σ w N / Σ w),    w = v + d / dt

    over the contacts that touch, or will within the step at their speed: those that take the load count most. Without any, and
    with an untrained network, the value is p. It enters through the parameter port, so that the engine's solver keeps its own laws:
    no pull, no force over a gap, friction inside its cone and against the slip.

    Args:
        live: The parameter, such as "friction:floor.slide", "solref:floor.timeconst"; of the geom that has priority in contacts.
        lower: Bound, in the parameter's unit; where the engine mixes both geoms' values, of what this geom brings in.
        upper: Bound.
        materials: Groups of glob patterns of other geoms' names; each has an input of its own. None: all are one.
        most: Contacts of a world that are looked at, the nearest first.
        reach: Gap [m] up to which they are, more than a body closes within a step.
        hidden: Hidden units.
        seed: Seed of the initial weights.
    """

    port = Port.PARAMETERS
    spread: Tensor

    def __init__(self, *, live: str, lower: float, upper: float, materials: Sequence[Sequence[str]] = (), most: int = 8,
                 reach: float = 0.02, hidden: Sequence[int] = (6,), seed: int = 0) -> None:
        super().__init__()
        if not (math.isfinite(lower) and math.isfinite(upper) and lower < upper) or most < 1 or not reach >= 0:
            raise ValueError(f"ContactParameters: expected finite lower < upper, most >= 1 and reach >= 0, received {lower}, {upper}, "
                             f"{most}, {reach}")
        kind, _, element = live.partition(":")
        if kind not in ("friction", "solref", "solimp") or not element:
            raise ValueError(f"ContactParameters: expected live 'friction:GEOM.x', 'solref:GEOM.x' or 'solimp:GEOM.x', received {live!r}")
        self.live, self.lower, self.upper, self.most_contacts, self.contact_reach = live, lower, upper, most, reach
        self.geom = element.rpartition(".")[0]
        self.materials = tuple(tuple(group) for group in materials)
        self.hidden, self.seed = tuple(hidden), seed
        self.register_buffer("spread", torch.ones(len(INPUTS), dtype=torch.float64))
        self.network = Perceptron(len(INPUTS) + len(self.materials), hidden, 1, torch.Generator().manual_seed(seed))

    def forward(self, context: Context) -> Tensor:
        """Return what is added to the parameter, shape [*batch]."""
        own = context.values[str(self.live)].to(context.state)
        return self.value(own, *self._seen(context)) - own

    def value(self, own: Tensor, seen: Tensor, weight: Tensor, material: Tensor | None = None) -> Tensor:
        """Return the parameter's value for the next step, shape [*batch].

        Args:
            own: Value that the model has by itself, broadcastable to [*batch].
            seen: ``INPUTS`` of each contact, none below zero, shape [*batch, most, 3].
            weight: Share of the load, zero where a contact does not count, shape [*batch, most].
            material: One where the other geom is of a group, shape [*batch, most, groups].
        """
        x = torch.log1p(seen / per_member(self.spread.to(seen.dtype), seen))
        shift = self.network(x if material is None else torch.cat([x, material], -1)).squeeze(-1)
        shift = (weight * shift).sum(-1) / weight.sum(-1).clamp_min(_TINY)
        place = ((own - self.lower) / (self.upper - self.lower)).clamp(_EDGE, 1 - _EDGE)
        found = own + (self.upper - self.lower) * (torch.sigmoid(torch.logit(place) + shift) - torch.sigmoid(torch.logit(place)))
        return torch.where((own >= self.lower) & (own <= self.upper), found.clamp(self.lower, self.upper), found)  # of rounding

    def check(self, baseline: Baseline) -> None:
        """Check that the model has the parameter and the geom, and that its own value and these bounds fit."""
        super().check(baseline)
        p = baseline.parameters[str(self.live)]
        if not (p.lower <= self.lower <= p.nominal <= self.upper <= p.upper):
            raise ModelError(f"{self.name}: expected {p.lower:g} <= lower <= {p.nominal:g} <= upper <= {p.upper:g} for {self.live!r}, "
                             f"received {self.lower:g}, {self.upper:g}")

    def certificate(self, context: Context, baseline: Baseline) -> Certificate:
        """Worst excess of the value over its bounds; what the model has by itself may lie outside."""
        own = context.values[str(self.live)].to(context.state)
        value = own + self(context)
        excess = torch.maximum(value - torch.clamp(own, min=self.upper), torch.clamp(own, max=self.lower) - value)
        unit = baseline.parameters[str(self.live)].unit
        return bound_certificate(self.name, excess, f"{self.live} outside [{self.lower:g}, {self.upper:g}]", unit)

    def describe(self) -> dict[str, object]:
        """Return the constructor arguments."""
        return {"live": self.live, "lower": self.lower, "upper": self.upper, "materials": [list(g) for g in self.materials],
                "most": self.most_contacts, "reach": self.contact_reach,
                "hidden": list(self.hidden), "seed": self.seed}

    def normalise(self, context: Context) -> None:
        """Set the scale of each input to its root mean square over the contacts of the data that count."""
        seen, weight, _ = self._seen(context)
        rows = seen[weight > 0].double()
        if len(rows):
            self.spread.copy_(rows.square().mean(0).sqrt().clamp_min(1e-9))

    def _seen(self, context: Context) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return inputs, weights and materials of the contacts of this parameter's geom."""
        if context.contacts is None:
            raise ModelError(f"{self.name}: the context holds no contacts; build it with ResidualDynamics.contexts")
        contacts: Contacts = context.contacts
        approach = (-contacts.velocity[..., 0]).clamp_min(0)
        slip = torch.linalg.vector_norm(contacts.velocity[..., 1:], dim=-1)
        depth = (-contacts.gap).clamp_min(0)
        one, two = contacts.geoms[..., 0], contacts.geoms[..., 1]
        mine = torch.tensor([n == self.geom for n in contacts.names], device=one.device)
        counts = contacts.present & (mine[one] | mine[two]) & (contacts.gap < approach * context.dt)
        weight = torch.where(counts, approach + depth / context.dt, 0.0)
        groups = [[float(any(fnmatchcase(n, p) for p in g)) for g in self.materials] for n in contacts.names]
        other = torch.where(mine[one], two, one)
        material = approach.new_tensor(groups)[other] if self.materials else None
        return torch.stack([approach, slip, depth], -1), weight, material
