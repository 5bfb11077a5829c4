"""A plant of which nothing is known but that positions are the integrals of velocities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from residual_mbrl.baselines import Parameters, Values
from residual_mbrl.physics.mechanical import Integrator, MechanicalBaseline
from residual_mbrl.physics.mechanical_warp import WarpTerms
from residual_mbrl.spaces import StateSpace


class FreeBody(MechanicalBaseline):
    """``dv/dt = force``, unit mass and nothing else: the ablation "no baseline", to carry a network alone.

    Args:
        space: Layout of state and action, usually that of the baseline it stands in for.
        dt: Seconds per step.
        substeps: Substeps per step.
        integrator: Integrator of the smooth part.
    """

    def __init__(self, space: StateSpace, *, dt: float, substeps: int = 1, integrator: Integrator = "semi_implicit") -> None:
        super().__init__(space, Parameters(), dt=dt, substeps=substeps, integrator=integrator)

    def mass_matrix(self, q: Tensor, p: Values) -> Tensor:
        """Return the unit matrix, shape [*batch, nv, nv]."""
        nv = self.space.nv
        return torch.eye(nv, dtype=q.dtype, device=q.device).expand(*q.shape[:-1], nv, nv)

    def smooth_force(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        """Return zero."""
        return torch.zeros_like(v)

    def potential_energy(self, q: Tensor, p: Values) -> Tensor:
        """Return zero."""
        return torch.zeros_like(q[..., 0])

    def warp_terms(self) -> WarpTerms:
        """Return the same terms on symbols."""
        import warp as wp  # noqa: PLC0415  # only fused rollouts need it

        nv = self.space.nv
        vector, square = (wp.types.vector(length=n, dtype=wp.float32) for n in (nv, nv * nv))

        def mass(q: Any, p: Any) -> Any:
            return square(*[float(i % (nv + 1) == 0) for i in range(nv * nv)])

        def force(q: Any, v: Any, u: Any, p: Any) -> Any:
            return vector(*[0.0] * nv)

        return WarpTerms(mass, force)
