"""A learned contact force that cannot pull, reach over a gap, leave the friction cone or drive what slides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from residual_mbrl.baselines import Baseline, Port
from residual_mbrl.contacts import Contacts
from residual_mbrl.errors import ModelError
from residual_mbrl.residuals.base import Certificate, Context, Residual
from residual_mbrl.residuals.contact_cone import cone_excess, room
from residual_mbrl.residuals.networks import Perceptron, per_member

INPUTS = ("depth", "normal speed", "slip speed", "normal force", "friction")
"""What the network sees of one contact."""
_SOLVES = 5
"""Solves of the engine in which friction is shrunk, before it is dropped."""
_CAUTION = 0.95
"""Share of the room taken where friction is shrunk, as the engine answers to that too."""
_TINY = 1e-30
_SHY = -4.0
"""Bias of the outputs at first: the sigmoid of it is 0.02, small and yet with a gradient."""


class _Limits(NamedTuple):
    """What holds for a contact whatever the network says."""

    stop_normal: Tensor
    """Force [N] that would by itself stop the approach within the step, shape [*batch, most]."""
    stop_slip: Tensor
    """The same for slip."""
    slip: Tensor
    """Slip velocity [m/s], shape [*batch, most, 2]."""
    speed: Tensor
    """Its norm [m/s], shape [*batch, most]."""


class ContactForce(Residual):
    """At every contact a force ``[λ_n, λ_t]``, added through ``Jᵀ``; one network for all contacts of all bodies.

    With depth d, normal velocity v_n (positive parts the bodies), slip velocity v_t, step h and two outputs s in (0, 1) of the network::

        g   = 1 - exp(-d / depth)                 where the gap is closed, zero elsewhere
        λ_n = s_n g (-v_n)₊ / (h w_n)             braking of the approach
        λ_t = -s_t g a v_t / |v_t|,               a = r b / √(r² + b²),   b = |v_t| / (h w_t)

    r is the room that friction has: the largest a that keeps engine plus residual, ``f_t + λ_t``, inside the cone
    ``|f_t + λ_t| <= μ (f_n + λ_n)``, spin and rolling included. w are sums of the norms of the
    blocks (normal, tangential) in a row of ``J M⁻¹ Jᵀ`` over the touching contacts, so that ``diag(w)`` exceeds that matrix
    (Feingold and Varga 1962, block diagonal dominance) and the impulse ``p = h λ`` takes energy as a whole, not only to first order:
    ``p · v + ½ pᵀ J M⁻¹ Jᵀ p <= 0``. The force vanishes with the velocity: at rest nothing is pushed.

    The engine solves for its own forces again with λ acting, f', and answers to it. With ``cone="total"``, friction that the engine
    is found to leave no room for is taken back, λ_t shrunk until ``|f'_t + λ_t| <= μ (f'_n + λ_n)``, at the cost of one to five
    more solves a step; without friction of the residual this holds always, as the engine's own forces do. With ``cone="own"`` the
    residual alone is in the cone, ``|λ_t| <= μ λ_n``, and as cones are convex so is the sum with any answer. That needs no solve,
    but allows friction only where a contact is closing, as in impacts.

    All of it holds for any weights, at the start of the step and, for the answer, in the solve of its first engine step as far as
    that is solved; further residuals on the force port change the answer. Gaps, Jacobians, velocities and engine forces are taken as
    given: gradients flow to the weights, not through those to the state.

    Args:
        most: Contacts of a world that are corrected, the deepest first; those beyond are counted by the baseline.
        friction: Coefficient of friction of the cone as a multiple of the engine's, at least 1. A contact that slides in the engine
            has no room left at 1: give the engine the least friction that may be, and the residual the rest.
        cone: "total" or "own", as above.
        depth: Penetration [m] over which the force sets in.
        hidden: Hidden units.
        seed: Seed of the initial weights.
    """

    port = Port.FORCE
    spread: Tensor

    def __init__(self, *, most: int = 16, friction: float = 1.0, cone: Literal["total", "own"] = "total", depth: float = 1e-3,
                 hidden: Sequence[int] = (16, 16), seed: int = 0) -> None:
        super().__init__()
        if most < 1 or not (friction >= 1 and depth > 0) or cone not in ("total", "own"):
            raise ValueError(f"ContactForce: expected most >= 1, friction >= 1, depth > 0 and cone 'total' or 'own', received {most}, "
                             f"{friction}, {depth}, {cone!r}")
        self.most_contacts, self.friction, self.cone, self.depth = most, friction, cone, depth
        self.hidden, self.seed = tuple(hidden), seed
        self.register_buffer("spread", torch.ones(len(INPUTS), dtype=torch.float64))
        self.network = Perceptron(len(INPUTS), hidden, 2, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            self.network.biases[-1].fill_(_SHY)

    def forward(self, context: Context) -> Tensor:
        """Return the generalised force [N or N·m], shape [*batch, nv]."""
        return _seen(context).generalised(self.contact_forces(context))

    def contact_forces(self, context: Context) -> Tensor:
        """Return λ in each contact frame [N], shape [*batch, most, 3]."""
        contacts = _seen(context)
        limits = _limits(contacts, context.dt)
        shares = torch.sigmoid(self.network(self._inputs(contacts)))
        gate = torch.where(contacts.touching, -torch.expm1(contacts.gap.clamp_max(0) / self.depth), 0.0)
        normal = shares[..., 0] * gate * limits.stop_normal
        direction = torch.where(limits.speed[..., None] > 0, limits.slip / limits.speed.clamp_min(_TINY)[..., None],
                                torch.tensor([1.0, 0.0]).to(normal))
        friction = contacts.friction * self.friction
        left = room(*self._acting(contacts, normal), friction, direction)
        size = left * limits.stop_slip / (left.square() + limits.stop_slip.square()).clamp_min(_TINY).sqrt()
        size = shares[..., 1] * gate * size
        force = torch.cat([normal[..., None], -size[..., None] * direction], -1)
        if self.cone == "own":
            return force
        with torch.no_grad():
            kept = self._kept(context, force.detach(), size.detach(), direction)
        return torch.cat([normal[..., None], kept[..., None] * force[..., 1:]], -1)

    def _kept(self, context: Context, force: Tensor, size: Tensor, direction: Tensor) -> Tensor:
        """Return the share of friction for which the engine's answer leaves room, shape [*batch, most]."""
        kept = torch.ones_like(size)
        friction = _seen(context).friction * self.friction
        for turn in range(_SOLVES):
            acting = torch.cat([force[..., :1], kept[..., None] * force[..., 1:]], -1)
            solved = _under(context, acting)
            total = solved.force + acting
            alone = cone_excess(solved.force, solved.torque, friction).clamp_min(0)  # rounding of the engine's own
            outside = cone_excess(total, solved.torque, friction) - alone > _rounding(total)
            if not bool(outside.any()):
                break
            if turn == _SOLVES - 1:  # this has not settled: without friction nothing can be outside
                return torch.where(outside.any(-1, keepdim=True), 0.0, kept)
            before = solved.force + torch.cat([force[..., :1], torch.zeros_like(force[..., 1:])], -1)
            left = room(before, solved.torque, friction, direction) / size.clamp_min(_TINY)
            kept = torch.where(outside, torch.minimum(kept, _CAUTION * left), kept)
        return kept

    def certificate(self, context: Context, baseline: Baseline) -> Certificate:
        """Return the one of ``certificates`` that is nearest to breaking, or broken most."""
        return max(self.certificates(context, baseline), key=lambda c: c.worst - c.limit)

    def certificates(self, context: Context, baseline: Baseline) -> list[Certificate]:
        """Return the worst of each of ``violations``; the limits are rounding at the size of what takes part."""
        found = []
        for (quantity, unit), (excess, scale) in self.violations(context).items():
            size, worst = (float(x.detach().max()) if x.numel() else 0.0 for x in (scale, excess))
            limit = 64 * torch.finfo(excess.dtype).eps * size
            found.append(Certificate(residual=self.name, quantity=quantity, worst=worst, limit=limit, unit=unit,
                                     samples=_seen(context).missed.numel()))
        return found

    def violations(self, context: Context) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
        """Return, by quantity and unit, what breaks a law where it is positive, and the size of the terms it is made of.

        Adhesion, force at a gap, excess over the friction cone with the engine's force as it would be alone and as it is after the
        solve [N], power of friction [W], energy that the impulse gives [J]. Where the engine's own force is outside the cone, only
        what the residual adds to that counts.
        """
        contacts, force = _seen(context), self.contact_forces(context)
        solved = _under(context, force)
        impulse = context.dt * force
        onto = torch.where(contacts.touching[..., None], impulse, 0.0)
        answer = 0.5 * contacts.generalised(onto) * torch.einsum("...kin,...ki->...n", contacts.response, onto)  # of p · J M⁻¹ Jᵀ p
        work = (impulse * contacts.velocity).flatten(-2)
        powers = force * contacts.velocity
        return {("adhesion", "N"): (-force[..., 0], force.abs()),
                ("force at a gap", "N"): (torch.where(contacts.touching[..., None], 0.0, force.abs()), force.abs()),
                ("excess over the friction cone", "N"): self._excess(contacts, force),
                ("excess over the friction cone after the solve", "N"): self._excess(solved, force),
                ("power of friction", "W"): (powers[..., 1:].sum(-1), powers.abs()),
                ("energy given by the impulse", "J"): (work.sum(-1) + answer.sum(-1), torch.cat([work.abs(), answer.abs()], -1))}

    def _excess(self, contacts: Contacts, force: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far engine plus residual are outside the cone and the engine alone is not, and the size of both."""
        friction, total = contacts.friction * self.friction, contacts.force + force
        alone = cone_excess(contacts.force, contacts.torque, friction).clamp_min(0)
        excess = cone_excess(total, contacts.torque, friction) - alone
        return torch.where(contacts.touching, excess, 0.0), torch.cat([total.abs(), force.abs()], -1)

    def describe(self) -> dict[str, object]:
        """Return the constructor arguments."""
        return {"most": self.most_contacts, "friction": self.friction, "cone": self.cone, "depth": self.depth,
                "hidden": list(self.hidden), "seed": self.seed}

    def normalise(self, context: Context) -> None:
        """Set the scale of each input to its root mean square over the touching contacts of the data."""
        contacts = _seen(context)
        rows = _quantities(contacts)[contacts.touching].double()
        if len(rows):
            self.spread.copy_(rows.square().mean(0).sqrt().clamp_min(1e-9))

    def _inputs(self, contacts: Contacts) -> Tensor:
        x = _quantities(contacts)
        return x / per_member(self.spread.to(x.dtype), x)

    def _acting(self, contacts: Contacts, normal: Tensor) -> tuple[Tensor, Tensor]:
        """Return force and torque at each contact before the residual's friction, its normal force included."""
        own = torch.cat([normal[..., None], torch.zeros_like(contacts.force[..., 1:])], -1)
        return (own, torch.zeros_like(contacts.torque)) if self.cone == "own" else (contacts.force + own, contacts.torque)


def _seen(context: Context) -> Contacts:
    if context.contacts is None:
        raise ModelError("ContactForce: the context holds no contacts; build it with ResidualDynamics.contexts")
    return context.contacts


def _under(context: Context, force: Tensor) -> Contacts:
    """Return the contacts with the engine's answer to forces in the contact frames."""
    if context.contacts_under is None:
        raise ModelError("ContactForce: the context cannot solve for contacts; build it with ResidualDynamics.contexts")
    return context.contacts_under(_seen(context).generalised(force).detach())


def _rounding(x: Tensor) -> Tensor:
    """Return what counts as zero beside numbers of this size, shape [*batch, 1]."""
    return 16 * torch.finfo(x.dtype).eps * x.abs().flatten(-2).amax(-1, keepdim=True)


def _limits(contacts: Contacts, dt: float) -> _Limits:
    """Return what stops each contact, shared so that all at once do not overshoot."""
    normal, slip = _weights(contacts)
    velocity = contacts.velocity[..., 1:]
    speed = torch.linalg.vector_norm(velocity, dim=-1)
    return _Limits(_ratio((-contacts.velocity[..., 0]).clamp_min(0), dt * normal), _ratio(speed, dt * slip), velocity, speed)


def _weights(contacts: Contacts) -> tuple[Tensor, Tensor]:
    """Return the sums of block norms in the rows of ``J M⁻¹ Jᵀ``, normal and tangential, shape [*batch, most] each."""
    most = contacts.gap.shape[-1]
    touched = contacts.touching.flatten(0, -2).any(0).nonzero()
    count = int(touched[-1]) + 1 if len(touched) else 0  # rows beyond are zero, and most of what there is
    blocks = contacts.answers(count).unflatten(-1, (-1, 3)).unflatten(-3, (-1, 3)).movedim(-2, -3).square()  # [*batch, i, j, 3, 3]
    norms = [[blocks[..., r, c].sum((-2, -1)).sqrt() for c in (slice(1), slice(1, 3))] for r in (slice(1), slice(1, 3))]
    normal, slip = (sum(row, torch.zeros_like(row[0])).sum(-1) for row in norms)
    return torch.nn.functional.pad(normal, (0, most - count)), torch.nn.functional.pad(slip, (0, most - count))


def _ratio(speed: Tensor, weight: Tensor) -> Tensor:
    """Return speed over weight, zero where nothing can move."""
    return torch.where(weight > _TINY, speed / weight.clamp_min(_TINY), 0.0)


def _quantities(contacts: Contacts) -> Tensor:
    """Return the network's inputs in SI units, shape [*batch, most, 5]."""
    speed = torch.linalg.vector_norm(contacts.velocity[..., 1:], dim=-1)
    return torch.stack([-contacts.gap, contacts.velocity[..., 0], speed, contacts.force[..., 0], contacts.friction[..., 0]], -1)
