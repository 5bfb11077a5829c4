"""The step shared by all our own mechanical systems: smooth forces explicitly, dissipation implicitly."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from residual_mbrl.baselines import Baseline, Parameters, Port, Values
from residual_mbrl.physics.mechanical_warp import WarpTerms
from residual_mbrl.spaces import StateSpace

Integrator = Literal["semi_implicit", "rk4"]
HELD = 1e-6
"""Friction holds a body when it leaves less than this fraction of the velocity that the step would have given it."""


class Terms(NamedTuple):
    """The equations of motion at one instant; shapes may broadcast to those named."""

    mass: Tensor
    """M [*batch, nv, nv]."""
    force: Tensor
    """f, all forces but dissipation [*batch, nv]."""
    damping: Tensor | None
    """D [*batch, nv, nv]."""
    frictionloss: Tensor | None
    """F [*batch, nv]."""


class MechanicalBaseline(Baseline):
    """A system ``M(q) dv/dt = f(q, v, u) + force - D v - F sign(v)`` with dry friction that sticks.

    A subclass states ``mass_matrix``, ``smooth_force`` (gravity, Coriolis, actuation), ``potential_energy`` and, where it
    has them, ``damping`` (D, positive semi-definite) and ``frictionloss`` (F >= 0). One substep of h seconds advances the
    smooth part (semi-implicit Euler or RK4) and then solves

        v' = argmin 1/2 |v' - v*|^2_M + h/2 v'^T D v' + h F^T |v'|,

    so dissipation never adds kinetic energy, for any D >= 0, F >= 0 and any h, and friction holds a body at rest.

    Live parameters: every named one, and ``damping`` [*batch, nv, nv], its diagonal alone as ``dof_damping`` [*batch, nv], and
    ``frictionloss`` [*batch, nv], which are added to the system's own; the total friction limit is clamped at zero.

    Args:
        space: Names and units of state and action.
        parameters: Named parameters.
        dt: Seconds per step.
        substeps: Substeps per step.
        integrator: Integrator of the smooth part.
    """

    ports = frozenset(Port)

    def __init__(self, space: StateSpace, parameters: Parameters, *, dt: float, substeps: int = 1,
                 integrator: Integrator = "semi_implicit") -> None:
        if not dt > 0 or substeps < 1:
            raise ValueError(f"{type(self).__name__}: expected dt > 0 and substeps >= 1, received {dt}, {substeps}")
        if integrator not in ("semi_implicit", "rk4"):
            raise ValueError(f"{type(self).__name__}: integrator must be semi_implicit or rk4, received {integrator!r}")
        self.space, self.parameters, self.dt = space, parameters, dt
        self.substeps, self.integrator = substeps, integrator
        self.live = frozenset({*parameters.names, "damping", "dof_damping", "frictionloss"})

    @abstractmethod
    def mass_matrix(self, q: Tensor, p: Values) -> Tensor:
        """Return M(q), symmetric positive definite, shape [*batch, nv, nv]."""

    @abstractmethod
    def smooth_force(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        """Return all forces but dissipation, Coriolis terms included, shape [*batch, nv]."""

    @abstractmethod
    def potential_energy(self, q: Tensor, p: Values) -> Tensor:
        """Return the potential energy [J], shape [*batch]."""

    def damping(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor | None:
        """Return D >= 0, shape [*batch, nv, nv]; None where the system has none."""
        return None

    def frictionloss(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor | None:
        """Return the dry-friction limit F [N or N·m], shape [*batch, nv]; None where the system has none."""
        return None

    def terms(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Terms:
        """Return everything that a step needs at its start; overridden where the parts have much in common."""
        return Terms(self.mass_matrix(q, p), self.smooth_force(q, v, u, p), self.damping(q, v, u, p), self.frictionloss(q, v, u, p))

    def warp_terms(self) -> WarpTerms | None:
        """Return the same terms as Warp functions, for fused rollouts; None where there is only the torch form."""
        return None

    def energy(self, state: Tensor, parameters: Values | None = None) -> Tensor:
        """Return kinetic plus potential energy [J], shape [*batch]."""
        p = self.parameters.resolve(parameters, state)
        q, v, _ = self.space.split(state)
        kinetic = 0.5 * (v * (self.mass_matrix(q, p) @ v.unsqueeze(-1)).squeeze(-1)).sum(-1)
        return kinetic + self.potential_energy(q, p)

    def step(self, state: Tensor, action: Tensor, force: Tensor | None = None, parameters: Values | None = None) -> Tensor:
        """Advance ``dt`` seconds; gradients by torch autograd through every substep."""
        p = self.parameters.resolve(parameters, state)
        q, v, a = self.space.split(state)
        for _ in range(self.substeps):
            q, v = self._substep(q, v, action, force, p, self.dt / self.substeps)
        return torch.cat([q, v, a.expand(*v.shape[:-1], a.shape[-1])], -1)

    def dissipation_power(self, state: Tensor, action: Tensor, parameters: Values | None = None) -> Tensor:
        """Return the kinetic energy that dissipation takes in the first substep, per second [W], shape [*batch]."""
        p = self.parameters.resolve(parameters, state)
        q, v, _ = self.space.split(state)
        h = self.dt / self.substeps
        now = self.terms(q, v, action, p)
        mass, free = now.mass, v + h * solve(now.mass, now.force)
        slowed = dissipate(mass, free, *_with_live(now, p), h)
        # 1/2 |v'|^2 - 1/2 |v*|^2 = 1/2 (v' - v*)^T M (v' + v*): no cancellation of large energies
        return 0.5 / h * ((slowed - free) * (mass @ (slowed + free).unsqueeze(-1)).squeeze(-1)).sum(-1)

    def describe(self) -> dict[str, object]:
        """Return the constructor arguments."""
        return {"dt": self.dt, "substeps": self.substeps, "integrator": self.integrator}

    def _substep(self, q: Tensor, v: Tensor, u: Tensor, force: Tensor | None, p: Values, h: float) -> tuple[Tensor, Tensor]:
        now = self.terms(q, v, u, p)
        mass, (damping, limit) = now.mass, _with_live(now, p)
        k1 = solve(mass, now.force if force is None else now.force + force)
        if self.integrator == "semi_implicit":
            new_v = dissipate(mass, v + h * k1, damping, limit, h)
            return self.space.integrate_position(q, h * new_v), new_v

        def accelerate(q: Tensor, v: Tensor) -> Tensor:
            total = self.smooth_force(q, v, u, p)
            return solve(self.mass_matrix(q, p), total if force is None else total + force)

        move = self.space.integrate_position
        v2 = v + 0.5 * h * k1
        k2 = accelerate(move(q, 0.5 * h * v), v2)
        v3 = v + 0.5 * h * k2
        k3 = accelerate(move(q, 0.5 * h * v2), v3)
        v4 = v + h * k3
        k4 = accelerate(move(q, h * v3), v4)
        free_v = v + h / 6 * (k1 + 2 * (k2 + k3) + k4)
        new_v = dissipate(mass, free_v, damping, limit, h)
        # RK4's displacement less half of what dissipation took from the velocity, which the mean velocity of the step misses
        curvature = h / 12 * (k1 - k4)
        if limit is not None:  # a body that friction holds stays where it is to rounding, instead of creeping by h^4
            held = torch.maximum(v.abs(), new_v.abs()) < HELD * free_v.abs()
            curvature = torch.where(held, torch.zeros_like(curvature), curvature)
        return move(q, h * (0.5 * (v + new_v) + curvature)), new_v


def _with_live(now: Terms, p: Values) -> tuple[Tensor | None, Tensor | None]:
    """Return damping and dry-friction limit with the live additions in ``p``; the limit stays >= 0."""
    damping, limit = now.damping, now.frictionloss
    if "damping" in p:
        damping = p["damping"] if damping is None else damping + p["damping"]
    if "dof_damping" in p:
        own = torch.diag_embed(p["dof_damping"])
        damping = own if damping is None else damping + own
    if "frictionloss" in p:
        limit = (p["frictionloss"] if limit is None else limit + p["frictionloss"]).clamp_min(0.0)
    return damping, limit


def solve(matrix: Tensor, vector: Tensor) -> Tensor:
    """Solve a batch of small symmetric systems, closed form for one and two unknowns; shapes [*, n, n], [*, n]."""
    n = vector.shape[-1]
    if n == 1:
        return vector / matrix[..., 0]
    if n == 2:
        a, b, d = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 1]
        x, y = vector.unbind(-1)
        det = a * d - b * b
        return torch.stack([(d * x - b * y) / det, (a * y - b * x) / det], -1)
    solution: Tensor = torch.linalg.solve(matrix, vector)
    return solution


def dissipate(mass: Tensor, v: Tensor, damping: Tensor | None, limit: Tensor | None, h: float, *, sweeps: int = 8) -> Tensor:
    """Apply viscous damping and dry friction to a velocity over h seconds, implicitly.

    One degree of freedom is exact, and so is sticking; more are solved by projected Gauss-Seidel on the friction impulses,
    each sweep of which lowers the kinetic energy, so the result is passive however many sweeps are made.

    Args:
        mass: Mass matrix, shape [*batch, nv, nv].
        v: Velocity without dissipation, shape [*batch, nv].
        damping: D >= 0 [force per velocity], shape [*batch, nv, nv], or None.
        limit: F >= 0, shape [*batch, nv], or None.
        h: Seconds.
        sweeps: Gauss-Seidel sweeps for more than one degree of freedom.
    """
    if v.shape[-1] == 1:
        return _dissipate_one(mass[..., 0], v, damping, limit, h)
    if damping is not None:
        momentum = (mass @ v.unsqueeze(-1)).squeeze(-1)
        mass = mass + h * damping
        v = solve(mass, momentum)
    if limit is None:
        return v
    # where friction can stop everything, it does, exactly; else the sweeps start from no friction. Both are passive.
    stop = -(mass @ v.unsqueeze(-1)).squeeze(-1)
    held = (stop.abs() <= h * limit).all(-1, keepdim=True)
    zero = torch.zeros_like(stop)
    v, impulse = torch.where(held, zero, v), list(torch.where(held, stop, zero).unbind(-1))
    inverse = torch.linalg.inv(mass)
    columns, weights = inverse.unbind(-1), (1 / torch.diagonal(inverse, dim1=-2, dim2=-1)).unbind(-1)
    bounds = (h * limit).unbind(-1)
    for _ in range(sweeps):
        for i, old in enumerate(impulse):
            impulse[i] = clip(old - v[..., i] * weights[i], bounds[i])
            v = v + columns[i] * (impulse[i] - old).unsqueeze(-1)
    return v


def _dissipate_one(mass: Tensor, v: Tensor, damping: Tensor | None, limit: Tensor | None, h: float) -> Tensor:
    """Solve one degree of freedom in closed form; mass and v of shape [*batch, 1]."""
    if damping is not None:
        momentum = mass * v
        mass = mass + h * damping[..., 0]
        v = momentum / mass
    if limit is None:
        return v
    return v - clip(v, h * limit / mass)


def clip(x: Tensor, bound: Tensor) -> Tensor:
    """Limit x to [-bound, bound]. At a bound of zero its slope by the bound is still sign(x): clamp and minimum lose it for x < 0."""
    return torch.where(x < -bound, -bound, torch.where(x > bound, bound, x))
