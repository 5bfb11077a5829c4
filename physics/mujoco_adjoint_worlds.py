"""The worlds at which a MuJoCo step of one acceleration is differentiated: solved once, moved a little, and joined by linear algebra."""

from __future__ import annotations

from collections.abc import Mapping

import mujoco
import numpy as np
from numpy.typing import NDArray

from residual_mbrl.physics.mujoco_adjoint_plan import Plan
from residual_mbrl.physics.mujoco_probes import quaternions
from residual_mbrl.physics.mujoco_solved_worlds import SolvedWorlds, solve_rows
from residual_mbrl.physics.mujoco_tangent import rotation

Array = NDArray[np.float64]


class AdjointWorlds:
    """Differentiates n worlds at once.

    Args:
        model: The model.
        worlds: Number of worlds n.
        plan: What is exact and what is moved.
        varying: Names of the model fields that vary between worlds.
        threads: Native threads; 0 takes every core.
    """

    def __init__(self, model: mujoco.MjModel, worlds: int, plan: Plan, *, varying: frozenset[str], threads: int) -> None:
        self.plan, self.n, self.h = plan, worlds, float(model.opt.timestep)
        self.nv, self.na = int(model.nv), int(model.na)
        self._solved = SolvedWorlds(model, worlds, plan, varying=varying, threads=threads)
        self._row, self._column = np.repeat(np.arange(self.nv), model.M_rownnz), model.M_colind.astype(int)
        self._quaternions = quaternions(model)
        self._stateful = np.flatnonzero(model.actuator_actadr >= 0)
        self._memory = model.actuator_actadr[self._stateful]
        self._unit = np.eye(self.nv)
        self._damped = self.h * np.diag(model.dof_damping)

    def differentiate(self, state: Array, action: Array, force: Array | None, cotangent: Array | None, wanted: frozenset[str],
                      fields: Mapping[str, Array]) -> dict[str, Array]:
        """Return products of cotangents with a step's Jacobian, by name, each shape [n, m, k].

        Args:
            state: Shape [n, nx], finite.
            action: Shape [n, nu].
            force: Shape [n, nv].
            cotangent: Of the next state, on the tangent space, shape [n, m, ndx]; None for all unit ones, m = ndx.
            wanted: Of "state", "action", "force".
            fields: Model fields that vary between worlds, shape [n, ...].
        """
        nv, solved = self.nv, self._solved
        solved.solve(state, action, force, fields)
        solved.look(state, action, force, wanted, fields)
        inverse, change = self._integration(fields.get("dof_damping"))
        turn, spread = self._turning(change)
        if cotangent is None:
            onto = np.broadcast_to(np.eye(nv + self.na), (self.n, nv + self.na, nv + self.na))
        else:
            through = self.h * _times(cotangent[:, :, :nv], spread)
            onto = cotangent[:, :, nv : 2 * nv] + through
            if self.na:
                onto = np.concatenate([onto, cotangent[:, :, 2 * nv :]], 2)
        found = self._through_velocity(onto, inverse, change, wanted)
        if cotangent is None:
            # the rows of positions follow from those of velocities
            found = {n: np.concatenate([self.h * (x[:, :nv] if spread is None else spread @ x[:, :nv]), x], 1) for n, x in found.items()}
        if "state" in wanted:
            found["state"][:, : (nv if cotangent is None else None), :nv] += (
                _times(np.eye(nv)[None] if cotangent is None else cotangent[:, :, :nv], turn))
        return found

    def _through_velocity(self, onto: Array, inverse: Array | None, change: Array, wanted: frozenset[str]) -> dict[str, Array]:
        """Return products of cotangents of the next velocity and activation, shape [n, m, nv + na]."""
        solved, plan, to_velocity = self._solved, self.plan, self.h * onto[:, :, : self.nv]
        w: Array | None = None
        if inverse is None:
            mu = solve_rows(solved.hessian, to_velocity)
        else:
            w = to_velocity @ inverse
            mu = w if solved.stiff is None else solve_rows(solved.hessian, w @ solved.inertia)
        found = solved.pull_forces(mu, wanted) | solved.pull_contacts(mu, wanted)
        if plan.stepped:
            found |= self._by_steps(onto, -mu if w is None else w - mu)
        elif plan.groups:
            pairs = [(-mu, change)]
            if w is not None and solved.stiff is not None:
                pairs = [(-mu, solved.acceleration), (w, solved.acceleration - change)]
            found |= solved.pull_differences(mu, pairs)
        if "velocity" in found and not (plan.stepped and plan.implicit and not plan.exact_velocity):
            found["velocity"] = found["velocity"] + onto[:, :, : self.nv]
        if solved.actuators is not None and self.na:
            slopes, stateful, at = solved.actuators, self._stateful, self._memory
            to_memory = onto[:, :, self.nv + at]
            found["action"][:, :, stateful] += to_memory * slopes.memory_control[:, None, stateful]
            found["activation"][:, :, at] += to_memory * slopes.memory[:, None, stateful]
        if "state" in wanted:
            found["state"] = np.concatenate([found["position"], found["velocity"], *([found["activation"]] if self.na else [])], 2)
        found.setdefault("action", np.zeros((*onto.shape[:2], 0)))
        return {name: found[name] for name in wanted}

    def _by_steps(self, onto: Array, held: Array) -> dict[str, Array]:
        """Return gradients by group of what was moved and integrated."""
        solved, moved, nv = self._solved, self._solved.moved, self.nv
        if moved is None or not moved.sizes:
            return {}
        rows = -held @ moved.force().transpose(0, 2, 1)
        if self.plan.implicit:
            rows += onto[:, :, :nv] @ moved.velocity().transpose(0, 2, 1)
        if self.na:
            rows += onto[:, :, nv:] @ moved.memory().transpose(0, 2, 1)
        if "position" in moved.sizes:
            rows[:, :, :nv] += solved.pull_inertia(moved.inertia(), [(held, solved.acceleration)])
        rows /= moved.width
        return moved.split(rows)

    def _integration(self, damping: Array | None) -> tuple[Array | None, Array]:
        """Return the inverse of the inertia that the integrator inverts [n, nv, nv], None where it integrates a, and (v' - v) / h."""
        solved = self._solved
        if not self.plan.implicit:
            return None, solved.acceleration
        inverse = _inverse(self._metric(damping))
        return inverse, (inverse @ (solved.inertia @ solved.acceleration[..., None]))[..., 0]

    def _metric(self, damping: Array | None) -> Array:
        """Return the inertia that an implicit integrator inverts, shape [n, nv, nv]; damping [n, nv] where it varies between worlds."""
        solved = self._solved
        if self.plan.damped:
            return np.asarray(solved.inertia + (self._damped if damping is None else self.h * (damping[..., None] * self._unit)))
        if not self.plan.factored or solved.moved is None:
            whole: Array = solved.inertia - self.h * solved.smooth_slope()
            return whole
        i = np.arange(self.nv)
        lower = np.zeros_like(solved.inertia)  # of Lᵀ D L, with D in place of L's unit diagonal
        lower[:, self._row, self._column] = solved.moved.factor()
        scale = lower[:, i, i]
        lower[:, i, i] = 1.0
        metric = lower.transpose(0, 2, 1) @ (scale[:, :, None] * lower)
        if self.plan.lone:
            whole = solved.inertia - self.h * solved.smooth_slope()
            for dofs in self.plan.lone:
                metric[:, dofs[:, None], dofs] = whole[:, dofs[:, None], dofs]
        return metric

    def _turning(self, change: Array) -> tuple[Array | None, Array | None]:
        """Return d q' / d q and d q' / d (h v') on the tangent, shape [n, nv, nv] each; None where both are the identity."""
        if not self._quaternions:
            return None, None
        angle = self.h * (self._solved.parts["velocity"] + self.h * change)
        turn = np.zeros((self.n, self.nv, self.nv))
        turn[:, np.arange(self.nv), np.arange(self.nv)] = 1.0
        spread = turn.copy()
        for _, v in self._quaternions:
            turn[:, v : v + 3, v : v + 3], spread[:, v : v + 3, v : v + 3] = rotation(angle[:, v : v + 3])
        return turn, spread


def _inverse(matrix: Array) -> Array:
    """Return the inverse of positive definite matrices [n, nv, nv]; of two or less in closed form, since LAPACK's call is what counts."""
    size = matrix.shape[1]
    if size == 1:
        return np.asarray(1.0 / matrix)
    if size == 2:
        flat = matrix.reshape(-1, 4)
        determinant = flat[:, 0] * flat[:, 3] - flat[:, 1] * flat[:, 2]
        return np.asarray((flat.take(_ADJUGATE, 1) * _SIGNS / determinant[:, None]).reshape(-1, 2, 2))
    return np.asarray(np.linalg.inv(matrix), np.float64)


_ADJUGATE, _SIGNS = np.array([3, 1, 2, 0]), np.array([1.0, -1.0, -1.0, 1.0])


def _times(rows: Array, matrix: Array | None) -> Array:
    return rows if matrix is None else rows @ matrix
