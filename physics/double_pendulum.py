"""A compound double pendulum in absolute angles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from residual_mbrl.baselines import Parameter, Parameters, Values
from residual_mbrl.physics.mechanical import Integrator, MechanicalBaseline
from residual_mbrl.physics.mechanical_warp import WarpTerms
from residual_mbrl.spaces import StateSpace

SPACE = StateSpace(position=("angle1", "angle2"), velocity=("rate1", "rate2"), action=("torque1", "torque2"),
                   units={"angle1": "rad", "angle2": "rad", "rate1": "rad/s", "rate2": "rad/s", "torque1": "N·m",
                          "torque2": "N·m"})

PARAMETERS = Parameters(
    Parameter(name="inertia1", nominal=1.0, lower=0.01, upper=100.0, unit="kg·m²",
              description="link 1 about its joint, mass of link 2 at its end included"),
    Parameter(name="inertia2", nominal=0.3, lower=0.005, upper=100.0, unit="kg·m²", description="link 2 about its joint"),
    Parameter(name="coupling", nominal=0.35, lower=0.0, upper=100.0, unit="kg·m²", description="m2 l1 times centre of link 2"),
    Parameter(name="gravity_moment1", nominal=60.0, lower=0.0, upper=1e4, unit="N·m", description="link 1, link 2 at its end"),
    Parameter(name="gravity_moment2", nominal=22.0, lower=0.0, upper=1e4, unit="N·m", description="link 2"),
    Parameter(name="viscous1", nominal=0.0, lower=0.0, upper=10.0, unit="N·m·s/rad", description="joint 1"),
    Parameter(name="viscous2", nominal=0.0, lower=0.0, upper=10.0, unit="N·m·s/rad", description="joint 2"),
    Parameter(name="coulomb1", nominal=0.0, lower=0.0, upper=10.0, unit="N·m", free=False, description="joint 1"),
    Parameter(name="coulomb2", nominal=0.0, lower=0.0, upper=10.0, unit="N·m", free=False, description="joint 2"),
)


class DoublePendulum(MechanicalBaseline):
    """A compound double pendulum, both angles from the vertical.

    With d = θ1 - θ2 and the coupling h = m2 l1 c2,

        J1 α1 + h cos d α2 = -h sin d ω2² - G1 sin θ1 + u1 - u2
        h cos d α1 + J2 α2 =  h sin d ω1² - G2 sin θ2 + u2

    Joint torques u1 (frame to link 1) and u2 (link 1 to link 2). Viscous friction acts in the joints, on ω1 and on
    ω2 - ω1. Dry friction acts on ω1 and, as a limit of the second absolute rate, on ω2. Only ratios of the inertias, the
    coupling and the moments show in free motion: fix one (``inertia1``) when there is no measured torque.
    Source: Lagrange's equations; the form of Schmidt & Lipson, Science 324 (2009), supplement.
    """

    def __init__(self, parameters: Parameters = PARAMETERS, *, dt: float = 0.01, substeps: int = 1,
                 integrator: Integrator = "rk4") -> None:
        super().__init__(SPACE, parameters, dt=dt, substeps=substeps, integrator=integrator)

    def mass_matrix(self, q: Tensor, p: Values) -> Tensor:
        """Return M(q) [kg·m²], shape [*batch, 2, 2]."""
        off = p["coupling"] * torch.cos(q[..., 0] - q[..., 1])
        one = torch.ones_like(off)
        return torch.stack([p["inertia1"] * one, off, off, p["inertia2"] * one], -1).reshape(*off.shape, 2, 2)

    def smooth_force(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        """Return Coriolis, gravity and joint torques [N·m], shape [*batch, 2]."""
        s = p["coupling"] * torch.sin(q[..., 0] - q[..., 1])
        gravity = torch.sin(q)
        first = u[..., 0] - u[..., 1] - s * v[..., 1] ** 2 - p["gravity_moment1"] * gravity[..., 0]
        second = u[..., 1] + s * v[..., 0] ** 2 - p["gravity_moment2"] * gravity[..., 1]
        return torch.stack([first, second], -1)

    def potential_energy(self, q: Tensor, p: Values) -> Tensor:
        """Return the gravity potential [J], zero hanging down."""
        return p["gravity_moment1"] * (1 - torch.cos(q[..., 0])) + p["gravity_moment2"] * (1 - torch.cos(q[..., 1]))

    def damping(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        """Return joint damping in absolute rates, shape [*batch, 2, 2]."""
        b1, b2 = torch.broadcast_tensors(p["viscous1"], p["viscous2"])
        return torch.stack([b1 + b2, -b2, -b2, b2], -1).reshape(*b1.shape, 2, 2)

    def frictionloss(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor | None:
        """Return the dry-friction limits [N·m], shape [*batch, 2]; None while both are zero and nobody asks a gradient."""
        limits = torch.broadcast_tensors(p["coulomb1"], p["coulomb2"])
        if not any(x.requires_grad for x in limits) and not any(bool(x.any()) for x in limits):
            return None
        return torch.stack(limits, -1)

    def warp_terms(self) -> WarpTerms:
        """Return the same terms as Warp functions."""
        import warp as wp  # noqa: PLC0415  # only fused rollouts need it

        v2, v4 = (wp.types.vector(length=n, dtype=wp.float32) for n in (2, 4))
        index = self.parameters.names.index
        inertia1, inertia2, coupling = index("inertia1"), index("inertia2"), index("coupling")
        gravity1, gravity2 = index("gravity_moment1"), index("gravity_moment2")
        viscous1, viscous2, coulomb1, coulomb2 = index("viscous1"), index("viscous2"), index("coulomb1"), index("coulomb2")

        @wp.func
        def mass(q: Any, p: Any) -> Any:
            off = p[coupling] * wp.cos(q[0] - q[1])
            return v4(p[inertia1], off, off, p[inertia2])

        @wp.func
        def force(q: Any, v: Any, u: Any, p: Any) -> Any:
            s = p[coupling] * wp.sin(q[0] - q[1])
            first = u[0] - u[1] - s * v[1] * v[1] - p[gravity1] * wp.sin(q[0])
            return v2(first, u[1] + s * v[0] * v[0] - p[gravity2] * wp.sin(q[1]))

        @wp.func
        def damping(q: Any, v: Any, u: Any, p: Any) -> Any:
            b1 = p[viscous1]
            b2 = p[viscous2]
            return v4(b1 + b2, -b2, -b2, b2)

        @wp.func
        def friction(q: Any, v: Any, u: Any, p: Any) -> Any:
            return v2(p[coulomb1], p[coulomb2])

        return WarpTerms(mass, force, damping, friction, ("viscous1", "viscous2"), ("coulomb1", "coulomb2"))
