"""A loss for contact without a simulation: how badly a recorded step breaks the laws of contact, whatever forces acted in it.

A rollout through impacts is discontinuous in stiff contact's parameters; this loss is not. Pfrommer, Halm and Posa, "ContactNets",
CoRL 2020, arXiv 2009.11193, in the convex form of Bianchini, Halm and Posa, 2023 (all terms in joules).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from residual_mbrl.contacts import Contacts

_TINY = 1e-30


@dataclass(frozen=True)
class ContactLoss:
    """What the best impulses leave unexplained of a step, shapes [*batch].

    Args:
        unexplained: Kinetic energy of the velocity that no impulse accounts for [J].
        at_a_gap: Work of normal impulses that act over a gap, impulse times gap over time step [J].
        dissipation: What friction fell short of the most that it could take [J].
        penetration: Half the stiffness times the penetration squared [J].
        impulses: Per contact, in the contact frame [N·s], shape [*batch, most, 3].
    """

    unexplained: Tensor
    at_a_gap: Tensor
    dissipation: Tensor
    penetration: Tensor
    impulses: Tensor

    @property
    def total(self) -> Tensor:
        """The loss [J]."""
        return self.unexplained + self.at_a_gap + self.dissipation + self.penetration


def contact_loss(contacts: Contacts, change: Tensor, mass: Tensor, dt: float, friction: Tensor | None = None, *, stiffness: float = 1e4,
                 iterations: int = 400) -> ContactLoss:
    """Return the least violation of the laws of contact that any impulses λ inside the cone leave of a recorded step.

    ::

        min over |λ_t| <= μ λ_n of   ½ |M Δv - Jᵀ λ|²_{M⁻¹} + Σ λ_n φ₊ / h + Σ (λ_t · u + μ λ_n |u|) + ½ k Σ φ₋²

    with gaps φ, slip velocities u and J at the end of the step, and Δv the change of velocity that is not from smooth forces. Each
    term is nonnegative. The minimum is found without gradients; by the envelope theorem its gradients are those of the sum with λ
    held, exact for whatever of gaps, Jacobians, velocities, change and friction has a gradient.

    Args:
        contacts: At the end of the step, those near a touch included; ``jacobian``, ``gap``, ``velocity``, ``friction`` are used.
        change: v' - v - h M⁻¹ (smooth forces), shape [*batch, nv].
        mass: M, shape [*batch, nv, nv].
        dt: h [s].
        friction: μ in place of the contacts' own, broadcastable to [*batch, most].
        stiffness: k [N/m]: what a penetration costs.
        iterations: Of accelerated projected gradients (Beck and Teboulle, 2009, doi 10.1137/080716542).
    """
    mu = contacts.friction[..., 0] if friction is None else friction
    on = contacts.present.to(change)
    mu, scale = mu * on, torch.stack([on, mu * on, mu * on], -1)  # in s = [λ_n, λ_t / μ] the cone is |s_t| <= s_n whatever μ is
    rows = scale[..., None] * contacts.jacobian
    slip = scale[..., 1:] * contacts.velocity[..., 1:]
    gap = contacts.gap.clamp_min(0) * on / dt
    speed = torch.linalg.vector_norm(slip + _TINY, dim=-1)
    momentum = (mass @ change.unsqueeze(-1)).squeeze(-1)
    with torch.no_grad():
        s = _solve(rows, torch.cat([(gap + speed)[..., None], slip], -1), change, mass, iterations)
    left = momentum - torch.einsum("...kin,...ki->...n", rows, s)
    unexplained = 0.5 * (left * torch.linalg.solve(mass, left)).sum(-1)
    return ContactLoss(
        unexplained=unexplained, at_a_gap=(s[..., 0] * gap).sum(-1),
        dissipation=((s[..., 1:] * slip).sum(-1) + s[..., 0] * speed).sum(-1),
        penetration=0.5 * stiffness * (contacts.gap.clamp_max(0).square() * on).sum(-1), impulses=(s * scale).detach())


def with_velocity(contacts: Contacts, velocity: Tensor) -> Contacts:
    """Return contacts with ``J v`` of other generalised velocities, shape [*batch, nv]: those re-derived from poses."""
    return replace(contacts, velocity=torch.einsum("...kin,...n->...ki", contacts.jacobian, velocity))


def _solve(rows: Tensor, linear: Tensor, change: Tensor, mass: Tensor, iterations: int) -> Tensor:
    """Return the minimum of ``½ sᵀ A s + cᵀ s`` over cones ``|s_t| <= s_n``, shape [*batch, most, 3]."""
    flat = rows.flatten(-3, -2)
    a = flat @ torch.linalg.solve(mass, flat.mT)
    c = linear.flatten(-2) - (flat @ change.unsqueeze(-1)).squeeze(-1)
    rate = 1 / torch.linalg.matrix_norm(a).clamp_min(_TINY)[..., None]  # not below the largest eigenvalue
    s = torch.zeros_like(c)
    ahead, t = s, 1.0
    for _ in range(iterations):
        step = ahead - rate * ((a @ ahead.unsqueeze(-1)).squeeze(-1) + c)
        new = _project(step.unflatten(-1, (-1, 3))).flatten(-2)
        uphill = ((ahead - new) * (new - s)).sum(-1, keepdim=True) > 0  # restart (O'Donoghue and Candès, 2015)
        following = (1 + (1 + 4 * t * t) ** 0.5) / 2
        ahead = torch.where(uphill, new, new + (t - 1) / following * (new - s))
        s, t = new, following
    return torch.unflatten(s, -1, (-1, 3))


def _project(s: Tensor) -> Tensor:
    """Return the nearest points of the cone ``|s_t| <= s_n``."""
    n, norm = s[..., 0], torch.linalg.vector_norm(s[..., 1:], dim=-1)
    middle = ((n + norm) / 2).clamp_min(0)
    size = torch.where(norm <= n, norm, torch.where(norm <= -n, 0.0, middle))
    normal = torch.where(norm <= n, n, torch.where(norm <= -n, 0.0, middle))
    return torch.cat([normal[..., None], s[..., 1:] * (size / norm.clamp_min(_TINY))[..., None]], -1)
