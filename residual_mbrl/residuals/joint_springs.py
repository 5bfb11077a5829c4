"""A learned spring at every joint: a potential that is a sum over joints, and linear in its weights."""

from __future__ import annotations

import torch
from torch import nn

from residual_mbrl.residuals.conservative import Conservative

STEEPNESS, REACH = 0.3, 2.0
"""Of the fixed ridges, in standard deviations of the joint's travel: so flat that four span a cubic over two of them, and a linear
spring to a thousandth."""


class JointSprings(Conservative):
    """Force ``-∂V/∂q`` of ``V(q) = scale Σ_j Σ_k a_jk log cosh(w z_j + b_k)``, one potential for each joint.

    The ridges ``w, b_k`` are fixed and lie along the joints, so that the force is linear in its weights: least squares find
    in a few iterations what takes ``Conservative`` dozens, which is the one to take where joints share a potential.

    Args:
        nq: Positions (hinges and slides).
        units: Ridges for each joint.
        scale: Typical force [N or N·m].
    """

    def __init__(self, *, nq: int, units: int = 4, scale: float = 1.0) -> None:
        super().__init__(nq=nq, units=nq * units, scale=scale)
        self.each = units
        directions = STEEPNESS * torch.eye(nq, dtype=torch.float64).repeat_interleave(units, 1)
        offsets = torch.linspace(-REACH, REACH, units, dtype=torch.float64).repeat(nq)
        del self.directions, self.offsets
        self.register_buffer("directions", directions, persistent=False)
        self.register_buffer("offsets", offsets, persistent=False)
        self.amplitudes = nn.Parameter(torch.zeros(nq * units, dtype=torch.float64))

    def describe(self) -> dict[str, object]:
        """Return the constructor arguments."""
        return {"nq": self.nq, "units": self.each, "scale": self.scale}
