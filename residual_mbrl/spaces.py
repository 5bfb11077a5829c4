"""The state space of a plant: names, units, sizes, and differences on its manifold."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class StateSpace:
    """Layout of a state ``x = [q (nq), v (nv), a (na)]`` and of an action ``u (nu)``.

    Positions may hold unit quaternions (w-x-y-z, body to world); their velocity is the angular velocity in the body
    frame. Everything is in SI units unless a unit says otherwise.

    Args:
        position: Name of each entry of q.
        velocity: Name of each entry of v.
        activation: Name of each entry of a (actuator and residual memory).
        action: Name of each entry of u.
        units: Unit of any name above; a name that is missing here has unit "1".
        quaternions: Pairs (first entry in q, first entry in v) of each quaternion segment (4 entries in q, 3 in v).
    """

    position: tuple[str, ...]
    velocity: tuple[str, ...]
    action: tuple[str, ...]
    activation: tuple[str, ...] = ()
    units: dict[str, str] = field(default_factory=dict)
    quaternions: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        """Check that sizes, names and quaternion segments agree."""
        names = self.state_names + self.action
        if len(set(names)) != len(names):
            raise ValueError(f"StateSpace: names must be unique, received {names}")
        if self.nq - len(self.quaternions) != self.nv:
            raise ValueError(f"StateSpace: nq - number of quaternions must equal nv, received {self.nq}, "
                             f"{len(self.quaternions)}, {self.nv}")
        end = 0
        for k, (q0, v0) in enumerate(sorted(self.quaternions)):
            # everything else maps one to one and in order, so the k-th quaternion has lost k entries before it
            if not (end <= q0 <= self.nq - 4 and v0 == q0 - k):
                raise ValueError(f"StateSpace: quaternion segment ({q0}, {v0}) does not fit nq {self.nq}, nv {self.nv}: expected "
                                 f"4 free entries of q from {q0} and its velocity at {q0 - k}")
            end = q0 + 4

    @property
    def nq(self) -> int:
        """Number of position coordinates."""
        return len(self.position)

    @property
    def nv(self) -> int:
        """Number of degrees of freedom (velocities)."""
        return len(self.velocity)

    @property
    def na(self) -> int:
        """Number of activation states."""
        return len(self.activation)

    @property
    def nu(self) -> int:
        """Number of actions."""
        return len(self.action)

    @property
    def nx(self) -> int:
        """Size of a state, nq + nv + na."""
        return self.nq + self.nv + self.na

    @property
    def ndx(self) -> int:
        """Size of a tangent vector, 2 nv + na."""
        return 2 * self.nv + self.na

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of q, v and a in order."""
        return self.position + self.velocity + self.activation

    def unit(self, name: str) -> str:
        """Return the unit of a state or action entry, "1" where none is given."""
        return self.units.get(name, "1")

    def index(self, name: str) -> int:
        """Return the place of a name in the state vector.

        Raises:
            ValueError: if no state entry has this name.
        """
        if name not in self.state_names:
            raise ValueError(f"StateSpace: no state entry named {name!r}; there are {list(self.state_names)}")
        return self.state_names.index(name)

    def split(self, state: Float[Tensor, "*batch nx"]) -> tuple[Tensor, Tensor, Tensor]:
        """Split a state into positions, velocities and activations (views)."""
        nq, nv = self.nq, self.nv
        return state[..., :nq], state[..., nq : nq + nv], state[..., nq + nv :]

    def with_memory(self, names: tuple[str, ...]) -> StateSpace:
        """Return this space with further activation entries at the end of the state."""
        return replace(self, activation=self.activation + names)

    def difference(self, state: Float[Tensor, "*#batch nx"], reference: Float[Tensor, "*#batch nx"]) -> Tensor:
        """Return the tangent ``d = state ⊖ reference``, shape [*batch, ndx], with ``reference ⊞ d = state``."""
        if not self.quaternions:
            return state - reference
        q1, v1, a1 = self.split(state)
        q0, v0, a0 = self.split(reference)
        return torch.cat([self._position_difference(q1, q0), v1 - v0, a1 - a0], -1)

    def integrate(self, state: Float[Tensor, "*#batch nx"], tangent: Float[Tensor, "*#batch ndx"]) -> Tensor:
        """Return ``state ⊞ tangent``, shape [*batch, nx]; quaternions stay of unit length."""
        if not self.quaternions:
            return state + tangent
        q, v, a = self.split(state)
        nv = self.nv
        return torch.cat([self.integrate_position(q, tangent[..., :nv]), v + tangent[..., nv : 2 * nv],
                          a + tangent[..., 2 * nv :]], -1)

    def integrate_position(self, q: Float[Tensor, "*#batch nq"], step: Float[Tensor, "*#batch nv"]) -> Tensor:
        """Move positions by a tangent step: additions, and the exponential map on quaternions."""
        if not self.quaternions:
            return q + step
        parts, qi, vi = [], 0, 0
        for q0, v0 in sorted(self.quaternions):
            parts.append(q[..., qi:q0] + step[..., vi:v0])
            parts.append(_quaternion_product(q[..., q0 : q0 + 4], _quaternion_exp(step[..., v0 : v0 + 3])))
            qi, vi = q0 + 4, v0 + 3
        parts.append(q[..., qi:] + step[..., vi:])
        return torch.cat(parts, -1)

    def _position_difference(self, q1: Tensor, q0: Tensor) -> Tensor:
        parts, qi = [], 0
        for start, _ in sorted(self.quaternions):
            parts.append(q1[..., qi:start] - q0[..., qi:start])
            conjugate = q0[..., start : start + 4] * q0.new_tensor([1.0, -1.0, -1.0, -1.0])
            parts.append(_quaternion_log(_quaternion_product(conjugate, q1[..., start : start + 4])))
            qi = start + 4
        parts.append(q1[..., qi:] - q0[..., qi:])
        return torch.cat(parts, -1)


_TINY = 1e-12
"""Below this norm a rotation vector is twice the quaternion's vector part to rounding."""


def _quaternion_product(a: Tensor, b: Tensor) -> Tensor:
    w1, x1, y1, z1 = a.unbind(-1)
    w2, x2, y2, z2 = b.unbind(-1)
    return torch.stack([w1 * w2 - x1 * x2 - y1 * y2 - z1 * z2, w1 * x2 + x1 * w2 + y1 * z2 - z1 * y2,
                        w1 * y2 - x1 * z2 + y1 * w2 + z1 * x2, w1 * z2 + x1 * y2 - y1 * x2 + z1 * w2], -1)


def _quaternion_exp(rotation: Tensor) -> Tensor:
    """Unit quaternion of a rotation vector [rad]; smooth at zero through sinc."""
    half = 0.5 * _safe_norm(rotation)
    return torch.cat([torch.cos(half), 0.5 * torch.sinc(half / torch.pi) * rotation], -1)


def _quaternion_log(q: Tensor) -> Tensor:
    """Rotation vector [rad] of a unit quaternion, the shorter way round."""
    q = torch.where(q[..., :1] < 0, -q, q)
    norm = _safe_norm(q[..., 1:])
    angle = 2 * torch.atan2(norm, q[..., :1])
    return torch.where(norm > _TINY, angle / norm, torch.full_like(norm, 2.0)) * q[..., 1:]


def _safe_norm(x: Tensor) -> Tensor:
    """Euclidean norm with a finite gradient at zero, shape [*batch, 1]."""
    return torch.sqrt((x * x).sum(-1, keepdim=True).clamp_min(1e-30))
