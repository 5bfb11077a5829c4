"""A rigid pendulum on a torque-driven joint."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from residual_mbrl.baselines import Parameter, Parameters, Values
from residual_mbrl.physics.mechanical import Integrator, MechanicalBaseline
from residual_mbrl.physics.mechanical_warp import WarpTerms
from residual_mbrl.spaces import StateSpace

SPACE = StateSpace(position=("angle",), velocity=("rate",), action=("torque",),
                   units={"angle": "rad", "rate": "rad/s", "torque": "N·m"})

PARAMETERS = Parameters(
    Parameter(name="inertia", nominal=1.0, lower=1e-4, upper=100.0, unit="kg·m²", description="about the joint"),
    Parameter(name="gravity_moment", nominal=9.81, lower=0.0, upper=1000.0, unit="N·m", description="m g l"),
    Parameter(name="viscous", nominal=0.0, lower=0.0, upper=10.0, unit="N·m·s/rad", description="viscous friction"),
    Parameter(name="coulomb", nominal=0.0, lower=0.0, upper=10.0, unit="N·m", description="dry friction"),
    Parameter(name="torque_offset", nominal=0.0, lower=-10.0, upper=10.0, unit="N·m", description="constant torque"),
)


class Pendulum(MechanicalBaseline):
    """A pendulum, angle from hanging down.

    ``J dω/dt = -G sin(θ) - d ω - F_c sign(ω) + u + o`` with inertia J, gravity moment G = m g l, viscous d, dry F_c and a
    constant torque o (a tilted or biased rig). Any textbook, e.g. Goldstein, Classical Mechanics, ch. 1.
    """

    def __init__(self, parameters: Parameters = PARAMETERS, *, dt: float = 0.01, substeps: int = 1,
                 integrator: Integrator = "rk4") -> None:
        super().__init__(SPACE, parameters, dt=dt, substeps=substeps, integrator=integrator)

    def mass_matrix(self, q: Tensor, p: Values) -> Tensor:
        """Return J, shape [*batch, 1, 1]."""
        return p["inertia"].expand(q.shape[:-1])[..., None, None]

    def smooth_force(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        """Return gravity, drive and constant torque [N·m]."""
        return u + (p["torque_offset"] - p["gravity_moment"] * torch.sin(q[..., 0])).unsqueeze(-1)

    def potential_energy(self, q: Tensor, p: Values) -> Tensor:
        """Return G (1 - cos θ) [J]; the constant torque is counted as external."""
        return p["gravity_moment"] * (1 - torch.cos(q[..., 0]))

    def damping(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        """Return the viscous coefficient, shape [*batch, 1, 1]."""
        return p["viscous"][..., None, None]

    def frictionloss(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        """Return the dry-friction limit [N·m]."""
        return p["coulomb"].unsqueeze(-1)

    def warp_terms(self) -> WarpTerms:
        """Return the same terms as Warp functions."""
        import warp as wp  # noqa: PLC0415  # only fused rollouts need it

        v1 = wp.types.vector(length=1, dtype=wp.float32)
        index = self.parameters.names.index
        inertia, gravity, offset = index("inertia"), index("gravity_moment"), index("torque_offset")
        viscous, coulomb = index("viscous"), index("coulomb")

        @wp.func
        def mass(q: Any, p: Any) -> Any:
            return v1(p[inertia])

        @wp.func
        def force(q: Any, v: Any, u: Any, p: Any) -> Any:
            return v1(u[0] + (p[offset] - p[gravity] * wp.sin(q[0])))

        @wp.func
        def damping(q: Any, v: Any, u: Any, p: Any) -> Any:
            return v1(p[viscous])

        @wp.func
        def friction(q: Any, v: Any, u: Any, p: Any) -> Any:
            return v1(p[coulomb])

        return WarpTerms(mass, force, damping, friction, ("viscous",), ("coulomb",))
