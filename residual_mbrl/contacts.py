"""What touches what in a state: gaps, frames, Jacobians, forces and materials as tensors of one size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Contacts:
    """The contacts of each world at the start of a step, the nearest first; rows that are not ``present`` are zero.

    The contact frame has the normal first, which points from the first geom to the second: a positive normal velocity parts them.

    Args:
        present: Which rows hold a contact, shape [*batch, most].
        gap: Signed distance [m], negative in penetration, shape [*batch, most].
        position: Contact point [m] in the world, shape [*batch, most, 3].
        frame: Axes of the contact frame as rows in the world, shape [*batch, most, 3, 3].
        jacobian: J, of the velocity of the second body against the first in the contact frame, shape [*batch, most, 3, nv].
        response: Rows of J M⁻¹, how v answers to a unit impulse along each axis [1/kg and the like], shape [*batch, most, 3, nv].
        velocity: J v [m/s], shape [*batch, most, 3].
        force: Of the engine on the second body, contact frame [N], shape [*batch, most, 3].
        torque: The same for spin about the normal and rolling about the tangents [N·m], shape [*batch, most, 3].
        friction: Coefficients of sliding (2) [1], spin and rolling (2) [m], zero where the contact has none, shape [*batch, most, 5].
        geoms: Indices of the two geoms, shape [*batch, most, 2].
        names: Name of every geom, by index.
        missed: Contacts beyond ``most`` that are left out, shape [*batch].
    """

    present: Tensor
    gap: Tensor
    position: Tensor
    frame: Tensor
    jacobian: Tensor
    response: Tensor
    velocity: Tensor
    force: Tensor
    torque: Tensor
    friction: Tensor
    geoms: Tensor
    names: tuple[str, ...]
    missed: Tensor

    @property
    def touching(self) -> Tensor:
        """Which rows hold a contact without a gap, shape [*batch, most]."""
        return self.present & (self.gap <= 0)

    def generalised(self, force: Tensor) -> Tensor:
        """Return ``Σ Jᵀ λ`` [N or N·m], shape [*batch, nv], of forces in the contact frames [N], shape [*batch, most, 3]."""
        return torch.einsum("...kin,...ki->...n", self.jacobian, force)

    def answers(self, count: int | None = None) -> Tensor:
        """Return ``J M⁻¹ Jᵀ`` over the touching contacts, zero elsewhere, shape [*batch, most·3, most·3]; of the first ``count`` alone."""
        on = self.touching[..., :count, None, None].to(self.jacobian)
        rows, columns = ((on * x[..., :count, :, :]).flatten(-3, -2) for x in (self.response, self.jacobian))
        return rows @ columns.mT

    def reshaped(self, batch: torch.Size, like: Tensor) -> Contacts:
        """Return contacts of N worlds as those of a batch, on the device and in the dtype of ``like``."""
        changed: dict[str, Any] = {}
        for name, x in vars(self).items():
            if isinstance(x, Tensor):
                changed[name] = (x.to(like) if x.is_floating_point() else x.to(like.device)).reshape(*batch, *x.shape[1:])
        return replace(self, **changed)

    def pair(self, *index: int) -> str:
        """Return the names of a contact's geoms, "floor/box"."""
        return "/".join(self.names[int(g)] for g in self.geoms[index])
