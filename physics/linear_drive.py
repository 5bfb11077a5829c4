"""A motor-driven linear axis with friction that differs by direction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from residual_mbrl.baselines import Parameter, Parameters, Values
from residual_mbrl.physics.mechanical import Integrator, MechanicalBaseline
from residual_mbrl.physics.mechanical_warp import WarpTerms
from residual_mbrl.spaces import StateSpace

SPACE = StateSpace(position=("position",), velocity=("speed",), action=("force",),
                   units={"position": "m", "speed": "m/s", "force": "N"})

PARAMETERS = Parameters(
    Parameter(name="mass", nominal=95.1089, lower=50.0, upper=150.0, unit="kg", prior_std=10.0, description="all moving parts"),
    Parameter(name="viscous_forward", nominal=203.5034, lower=0.0, upper=600.0, unit="N·s/m", prior_std=100.0),
    Parameter(name="viscous_backward", nominal=203.5034, lower=0.0, upper=600.0, unit="N·s/m", prior_std=100.0),
    Parameter(name="coulomb_forward", nominal=20.3935, lower=0.0, upper=60.0, unit="N", prior_std=10.0),
    Parameter(name="coulomb_backward", nominal=20.3935, lower=0.0, upper=60.0, unit="N", prior_std=10.0),
    Parameter(name="force_offset", nominal=-3.1648, lower=-20.0, upper=20.0, unit="N", prior_std=5.0,
              description="lost from the drive's force"),
)


class LinearDrive(MechanicalBaseline):
    """A carriage on a driven ball screw.

    ``M dv/dt = F - o - c± v - F± sign(v)`` with drive force F, offset o, and viscous c and dry F for either direction of
    travel. Nominal values: Janot, Gautier, Brunot, "Data set and reference models of EMPS", Workshop on Nonlinear System
    Identification Benchmarks, 2019 (one value for both directions there).
    """

    def __init__(self, parameters: Parameters = PARAMETERS, *, dt: float = 0.001, substeps: int = 1,
                 integrator: Integrator = "semi_implicit") -> None:
        super().__init__(SPACE, parameters, dt=dt, substeps=substeps, integrator=integrator)

    def mass_matrix(self, q: Tensor, p: Values) -> Tensor:
        """Return M [kg], shape [*batch, 1, 1]."""
        return p["mass"].expand(q.shape[:-1])[..., None, None]

    def smooth_force(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        """Return drive force less the offset [N]."""
        return u - p["force_offset"].unsqueeze(-1)

    def potential_energy(self, q: Tensor, p: Values) -> Tensor:
        """Return zero: the axis is level."""
        return torch.zeros_like(q[..., 0])

    def damping(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        """Return the viscous coefficient of the present direction, shape [*batch, 1, 1]."""
        return torch.where(v[..., 0] >= 0, p["viscous_forward"], p["viscous_backward"])[..., None, None]

    def frictionloss(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        """Return the dry-friction limit [N] of the present direction; at rest, of the direction that the force pushes to."""
        push = torch.where(v == 0, u - p["force_offset"].unsqueeze(-1), v)[..., 0]
        return torch.where(push >= 0, p["coulomb_forward"], p["coulomb_backward"]).unsqueeze(-1)

    def warp_terms(self) -> WarpTerms:
        """Return the same terms as Warp functions."""
        import warp as wp  # noqa: PLC0415  # only fused rollouts need it

        v1 = wp.types.vector(length=1, dtype=wp.float32)
        index = self.parameters.names.index
        moving, offset = index("mass"), index("force_offset")
        viscous_forward, viscous_backward = index("viscous_forward"), index("viscous_backward")
        coulomb_forward, coulomb_backward = index("coulomb_forward"), index("coulomb_backward")

        @wp.func
        def mass(q: Any, p: Any) -> Any:
            return v1(p[moving])

        @wp.func
        def force(q: Any, v: Any, u: Any, p: Any) -> Any:
            return v1(u[0] - p[offset])

        @wp.func
        def damping(q: Any, v: Any, u: Any, p: Any) -> Any:
            return v1(wp.where(v[0] >= 0.0, p[viscous_forward], p[viscous_backward]))

        @wp.func
        def friction(q: Any, v: Any, u: Any, p: Any) -> Any:
            push = wp.where(v[0] == 0.0, u[0] - p[offset], v[0])
            return v1(wp.where(push >= 0.0, p[coulomb_forward], p[coulomb_backward]))

        return WarpTerms(mass, force, damping, friction, ("viscous_forward", "viscous_backward"),
                         ("coulomb_forward", "coulomb_backward"))
