"""A pole on a driven cart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from residual_mbrl.baselines import Parameter, Parameters, Values
from residual_mbrl.physics.mechanical import Integrator, MechanicalBaseline
from residual_mbrl.physics.mechanical_warp import WarpTerms
from residual_mbrl.spaces import StateSpace

SPACE = StateSpace(position=("cart", "angle"), velocity=("speed", "rate"), action=("force",),
                   units={"cart": "m", "angle": "rad", "speed": "m/s", "rate": "rad/s", "force": "N"})

PARAMETERS = Parameters(
    Parameter(name="cart_mass", nominal=1.0, lower=0.01, upper=100.0, unit="kg"),
    Parameter(name="pole_mass", nominal=0.1, lower=0.001, upper=100.0, unit="kg"),
    Parameter(name="length", nominal=0.5, lower=0.01, upper=10.0, unit="m", description="hinge to the pole's centre of mass"),
    Parameter(name="pole_inertia", nominal=0.0, lower=0.0, upper=10.0, unit="kg·m²", free=False,
              description="about its centre of mass; 0 is a point mass"),
    Parameter(name="gravity", nominal=9.81, lower=0.0, upper=30.0, unit="m/s²", free=False),
    Parameter(name="cart_viscous", nominal=0.0, lower=0.0, upper=50.0, unit="N·s/m"),
    Parameter(name="pole_viscous", nominal=0.0, lower=0.0, upper=5.0, unit="N·m·s/rad"),
)


class CartPole(MechanicalBaseline):
    """A cart on a rail with a free pole, angle from hanging down.

    ``[[m_c + m_p, m_p l cos θ], [m_p l cos θ, J + m_p l²]] [a, α] = [u + m_p l ω² sin θ, -m_p g l sin θ]`` with viscous
    friction of rail and hinge. Source: Tedrake, Underactuated Robotics, ch. 3 (acrobots, cart-poles and quadrotors).
    """

    def __init__(self, parameters: Parameters = PARAMETERS, *, dt: float = 0.02, substeps: int = 1,
                 integrator: Integrator = "semi_implicit") -> None:
        super().__init__(SPACE, parameters, dt=dt, substeps=substeps, integrator=integrator)

    def mass_matrix(self, q: Tensor, p: Values) -> Tensor:
        """Return M(q), shape [*batch, 2, 2]."""
        moment = p["pole_mass"] * p["length"]
        off = moment * torch.cos(q[..., 1])
        one = torch.ones_like(off)
        corner = p["pole_inertia"] + moment * p["length"]
        return torch.stack([(p["cart_mass"] + p["pole_mass"]) * one, off, off, corner * one], -1).reshape(*off.shape, 2, 2)

    def smooth_force(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        """Return drive, centrifugal and gravity forces [N, N·m], shape [*batch, 2]."""
        moment, s = p["pole_mass"] * p["length"], torch.sin(q[..., 1])
        first = u[..., 0] + moment * v[..., 1] ** 2 * s
        return torch.stack(torch.broadcast_tensors(first, -moment * p["gravity"] * s), -1)

    def potential_energy(self, q: Tensor, p: Values) -> Tensor:
        """Return m_p g l (1 - cos θ) [J]."""
        return p["pole_mass"] * p["gravity"] * p["length"] * (1 - torch.cos(q[..., 1]))

    def damping(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        """Return diagonal viscous damping, shape [*batch, 2, 2]."""
        return torch.diag_embed(torch.stack(torch.broadcast_tensors(p["cart_viscous"], p["pole_viscous"]), -1))

    def warp_terms(self) -> WarpTerms:
        """Return the same terms as Warp functions."""
        import warp as wp  # noqa: PLC0415  # only fused rollouts need it

        v2, v4 = (wp.types.vector(length=n, dtype=wp.float32) for n in (2, 4))
        index = self.parameters.names.index
        cart_mass, pole_mass, length, inertia = index("cart_mass"), index("pole_mass"), index("length"), index("pole_inertia")
        gravity, cart_viscous, pole_viscous = index("gravity"), index("cart_viscous"), index("pole_viscous")

        @wp.func
        def mass(q: Any, p: Any) -> Any:
            moment = p[pole_mass] * p[length]
            off = moment * wp.cos(q[1])
            return v4(p[cart_mass] + p[pole_mass], off, off, p[inertia] + moment * p[length])

        @wp.func
        def force(q: Any, v: Any, u: Any, p: Any) -> Any:
            moment = p[pole_mass] * p[length]
            s = wp.sin(q[1])
            return v2(u[0] + moment * v[1] * v[1] * s, -moment * p[gravity] * s)

        @wp.func
        def damping(q: Any, v: Any, u: Any, p: Any) -> Any:
            return v4(p[cart_viscous], 0.0, 0.0, p[pole_viscous])

        return WarpTerms(mass, force, damping, None, ("cart_viscous", "pole_viscous"))
