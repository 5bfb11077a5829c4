"""Equations of Gymnasium's double pendulum on a cart and of its reacher, each written once for torch and for the kernels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from residual_mbrl.baselines import Parameter, Parameters, Values
from residual_mbrl.physics.mechanical import MechanicalBaseline
from residual_mbrl.physics.mechanical_warp import WarpTerms
from residual_mbrl.spaces import StateSpace

Named = Callable[[str], Any]
GRAVITY = 9.81


def known(name: str, nominal: float, unit: str, **given: Any) -> Parameter:
    """Return a parameter that may be a tenth to ten times its nominal value, or up to a given upper bound from zero."""
    return Parameter(name=name, nominal=nominal, lower=given.pop("lower", 0.1 * nominal), upper=given.pop("upper", 10 * nominal),
                     unit=unit, **given)


class Equations(MechanicalBaseline):
    """A mechanical system whose terms are functions of scalars, ``ops`` being torch or warp, and p a parameter by name."""

    DISSIPATING: tuple[str, ...] = ()
    RUBBING: tuple[str, ...] = ()

    @abstractmethod
    def mass_of(self, ops: Any, q: Any, p: Named) -> list[Any]:
        """Return the mass matrix by rows."""

    @abstractmethod
    def force_of(self, ops: Any, q: Any, v: Any, u: Any, p: Named) -> list[Any]:
        """Return all forces but friction."""

    @abstractmethod
    def damping_of(self, p: Named) -> list[Any]:
        """Return the damping matrix by rows."""

    @abstractmethod
    def friction_of(self, p: Named) -> list[Any]:
        """Return the limits of dry friction."""

    def mass_matrix(self, q: Tensor, p: Values) -> Tensor:
        """Return M(q), shape [*batch, nv, nv]."""
        return _stack(self.mass_of(torch, q.unbind(-1), p.__getitem__), q).unflatten(-1, (self.space.nv, self.space.nv))

    def smooth_force(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        """Return all forces but friction, shape [*batch, nv]."""
        return _stack(self.force_of(torch, q.unbind(-1), v.unbind(-1), u.unbind(-1), p.__getitem__), q)

    def damping(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        """Return D, shape [*batch, nv, nv]."""
        return _stack(self.damping_of(p.__getitem__), q).unflatten(-1, (self.space.nv, self.space.nv))

    def frictionloss(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        """Return the limits of dry friction, shape [*batch, nv]."""
        return _stack(self.friction_of(p.__getitem__), q)

    def potential_energy(self, q: Tensor, p: Values) -> Tensor:
        """Not needed here."""
        raise NotImplementedError

    def warp_terms(self) -> WarpTerms:
        """Return the same terms on symbols."""
        import warp as wp  # noqa: PLC0415

        nv, index = self.space.nv, self.parameters.names.index
        vector, square = (wp.types.vector(length=n, dtype=wp.float32) for n in (nv, nv * nv))

        def by_name(p: Any) -> Named:
            return lambda name: p[index(name)]

        def mass(q: Any, p: Any) -> Any:
            return square(*self.mass_of(wp, q, by_name(p)))

        def force(q: Any, v: Any, u: Any, p: Any) -> Any:
            return vector(*self.force_of(wp, q, v, u, by_name(p)))

        def damping(q: Any, v: Any, u: Any, p: Any) -> Any:
            return square(*self.damping_of(by_name(p)))

        def friction(q: Any, v: Any, u: Any, p: Any) -> Any:
            return vector(*self.friction_of(by_name(p)))

        return WarpTerms(mass, force, damping, friction, self.DISSIPATING, self.RUBBING)


class DoublePole(Equations):
    """Two poles on a cart, angles from the upright, both absolute; tip of a pole of length l at ``x + l sin φ``."""

    DISSIPATING = ("cart_viscous", "hinge1", "hinge2")
    RUBBING = ("dry",)
    LENGTH = 0.6
    """Of the lower pole [m]."""
    SPACE = StateSpace(position=("cart", "angle1", "angle2"), velocity=("speed", "rate1", "rate2"), action=("force",))
    PARAMETERS = Parameters(
        known("mass", 18.869, "kg", description="cart and poles"),
        known("moment1", 3.779, "kg·m", description="lower pole times its centre, upper pole times the length of the lower"),
        known("moment2", 1.2596, "kg·m", description="upper pole times its centre"),
        known("inertia1", 2.0444, "kg·m²", description="lower pole about its hinge, the upper pole at its end"),
        known("inertia2", 0.53286, "kg·m²", description="upper pole about its hinge"),
        known("cart_viscous", 0.05, "N·s/m", lower=0.0, upper=50.0), known("hinge1", 0.05, "N·m·s/rad", lower=0.0, upper=5.0),
        known("hinge2", 0.05, "N·m·s/rad", lower=0.0, upper=5.0), known("dry", 0.0, "N", lower=0.0, upper=100.0, free=False))

    def __init__(self, *, dt: float) -> None:
        super().__init__(self.SPACE, self.PARAMETERS, dt=dt, substeps=2, integrator="rk4")

    def mass_of(self, ops: Any, q: Any, p: Named) -> list[Any]:
        """Return the mass matrix by rows."""
        a, b, c = p("moment1") * ops.cos(q[1]), p("moment2") * ops.cos(q[2]), p("moment2") * self.LENGTH * ops.cos(q[1] - q[2])
        return [p("mass"), a, b, a, p("inertia1"), c, b, c, p("inertia2")]

    def force_of(self, ops: Any, q: Any, v: Any, u: Any, p: Named) -> list[Any]:
        """Return drive, centrifugal forces and gravity."""
        s1, s2, s = ops.sin(q[1]), ops.sin(q[2]), p("moment2") * self.LENGTH * ops.sin(q[1] - q[2])
        return [u[0] + p("moment1") * s1 * v[1] * v[1] + p("moment2") * s2 * v[2] * v[2],
                p("moment1") * GRAVITY * s1 - s * v[2] * v[2], p("moment2") * GRAVITY * s2 + s * v[1] * v[1]]

    def damping_of(self, p: Named) -> list[Any]:
        """Return damping of cart, lower hinge, and the upper hinge between the poles."""
        h1, h2 = p("hinge1"), p("hinge2")
        return [p("cart_viscous"), 0.0, 0.0, 0.0, h1 + h2, -h2, 0.0, -h2, h2]

    def friction_of(self, p: Named) -> list[Any]:
        """Return that of the cart."""
        return [p("dry"), 0.0, 0.0]


class Reacher(Equations):
    """Two links in a horizontal plane, joint angles; each joint has an armature."""

    DISSIPATING = ("viscous1", "viscous2")
    RUBBING = ("dry1", "dry2")
    SPACE = StateSpace(position=("joint1", "joint2"), velocity=("rate1", "rate2"), action=("torque1", "torque2"))
    PARAMETERS = Parameters(
        known("inertia1", 1.0006, "kg·m²", description="first link, the second at its end, and armature"),
        known("inertia2", 1.0002, "kg·m²", description="second link and armature"),
        known("link2", 0.0002, "kg·m²", lower=0.0, upper=5.0, prior_std=0.3, description="second link about its joint, without armature"),
        known("coupling", 0.00022, "kg·m²", lower=0.0, upper=5.0, prior_std=0.3, description="moment of link 2 times length 1"),
        known("viscous1", 1.0, "N·m·s/rad", lower=0.0, upper=20.0), known("viscous2", 1.0, "N·m·s/rad", lower=0.0, upper=20.0),
        known("dry1", 0.0, "N·m", lower=0.0, upper=100.0, free=False), known("dry2", 0.0, "N·m", lower=0.0, upper=100.0, free=False))

    def __init__(self, *, dt: float) -> None:
        super().__init__(self.SPACE, self.PARAMETERS, dt=dt, substeps=2, integrator="rk4")

    def mass_of(self, ops: Any, q: Any, p: Named) -> list[Any]:
        """Return the mass matrix by rows."""
        c = p("coupling") * ops.cos(q[1])
        off = p("link2") + c
        return [p("inertia1") + 2.0 * c, off, off, p("inertia2")]

    def force_of(self, ops: Any, q: Any, v: Any, u: Any, p: Named) -> list[Any]:
        """Return torques and centrifugal forces."""
        s = p("coupling") * ops.sin(q[1])
        return [u[0] + s * v[1] * (2.0 * v[0] + v[1]), u[1] - s * v[0] * v[0]]

    def damping_of(self, p: Named) -> list[Any]:
        """Return that of the joints."""
        return [p("viscous1"), 0.0, 0.0, p("viscous2")]

    def friction_of(self, p: Named) -> list[Any]:
        """Return that of the joints."""
        return [p("dry1"), p("dry2")]


def _stack(values: list[Any], like: Tensor) -> Tensor:
    found = [torch.as_tensor(x, dtype=like.dtype, device=like.device) for x in values]
    return torch.stack(torch.broadcast_tensors(*found, like[..., 0])[:-1], -1)
