"""Violations of the laws of contact by a model, in newtons, millimetres and joules."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from residual_mbrl.baselines import Values
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.residuals.contact_cone import cone_excess


@dataclass(frozen=True, kw_only=True)
class Violations:
    """The worst over some states; zero or less where a law is kept.

    Args:
        states: How many were examined.
        adhesion: Force that pulls [N].
        at_a_gap: Force over a gap [N].
        outside_cone: Friction beyond the cone [N].
        penetration: Depth of the deepest contact [mm].
        energy_gain: Energy that a step in contact adds [J].
    """

    states: int
    adhesion: float
    at_a_gap: float
    outside_cone: float
    penetration: float
    energy_gain: float

    def rows(self) -> list[tuple[str, float, str]]:
        """Return quantity, value and unit of each."""
        return [("adhesion", self.adhesion, "N"), ("force at a gap", self.at_a_gap, "N"),
                ("excess over the friction cone", self.outside_cone, "N"), ("penetration", self.penetration, "mm"),
                ("energy gained in a step", self.energy_gain, "J")]


def contact_violations(dynamics: ResidualDynamics, state: Tensor, action: Tensor, parameters: Values | None = None, *, most: int = 16,
                       reach: float = 0.01) -> Violations:
    """Return what the engine's contact forces do under a model's residuals; those of residuals are in their certificates.

    Energy counts where no actuator works: give actions that do nothing, or read the last line as what those bring in.

    Args:
        dynamics: A baseline with contacts and an ``energy``, and its residuals.
        state: Baseline states with residual memory, shape [B, nx].
        action: Shape [B, nu].
        parameters: As in ``ResidualDynamics.step``.
        most: Contacts of a world that are looked at.
        reach: Gap [m] up to which pairs without a touch are, for forces that have no business there.

    Raises:
        ValueError: if the baseline knows of no contacts.
    """
    baseline = dynamics.baseline
    if not baseline.has_contacts:
        raise ValueError(f"contact_violations: expected a baseline with contacts, received a {type(baseline).__name__}")
    with torch.no_grad():
        acting = dynamics.correction(state, action, parameters)
        known = acting.contexts[0].state if acting.contexts else state[..., : baseline.space.nx]
        seen = baseline.contacts(known, acting.action, acting.values, most=most, reach=reach, force=acting.force)
        after = dynamics.step(state, action, parameters)[..., : baseline.space.nx]
        energy = getattr(baseline, "energy")  # noqa: B009  # of those with contacts, not of every baseline
        gain = energy(after, acting.values) - energy(known, acting.values)
        normal, size = seen.force[..., 0], torch.linalg.vector_norm(seen.force, dim=-1)
        touched = seen.touching.any(-1)
        worst = {"adhesion": torch.where(seen.present, -normal, 0.0), "at_a_gap": torch.where(seen.touching, 0.0, size),
                 "outside_cone": torch.where(seen.touching, cone_excess(seen.force, seen.torque, seen.friction), 0.0),
                 "penetration": 1e3 * torch.where(seen.present, -seen.gap, 0.0), "energy_gain": torch.where(touched, gain, -torch.inf)}
    return Violations(states=len(known), **{n: float(x.max()) for n, x in worst.items()})
