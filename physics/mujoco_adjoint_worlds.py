"""The worlds at which a MuJoCo step is differentiated: solved once, moved a little, and joined by linear algebra."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import mujoco
import numpy as np
from numpy.typing import NDArray

from residual_mbrl.physics.mujoco_actuation import SimpleActuators
from residual_mbrl.physics.mujoco_adjoint_plan import Plan
from residual_mbrl.physics.mujoco_contact_hessian import constraint_slopes, read_rows
from residual_mbrl.physics.mujoco_probes import EPSILON, FieldWriter, InputWriter, Moved, engine_model, make_batch, quaternions

Array = NDArray[np.float64]

_LARGE = float(mujoco.mjMAXVAL)
"""Where the engine gives a state up."""
_TOLERANCE = 1e-16
"""Of the solve at which derivatives are taken: on the way there Newton's last iterations cost next to nothing."""


class _Solution(NamedTuple):
    """The unmoved worlds, solved."""

    parts: Mapping[str, Array]
    """"position" [n, nq], "velocity", "activation" and "action"."""
    acceleration: Array
    """Shape [n, nv]."""
    inertia: Array
    """M, shape [n, nv, nv]."""
    metric: Array
    """M̂, the inertia that the integrator inverts, shape [n, nv, nv]."""


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
        self.model, self.plan = model, plan
        self.n, self.h = worlds, float(model.opt.timestep)
        self.nq, self.nv, self.na, self.nu = (int(s) for s in (model.nq, model.nv, model.na, model.nu))
        solved = engine_model(model, mujoco.mjtIntegrator.mjINT_IMPLICIT)  # the integrator that leaves the smooth forces' derivative behind
        option = solved.opt
        option.solver, option.iterations = mujoco.mjtSolver.mjSOL_NEWTON, max(100, option.iterations)
        option.tolerance, option.ls_iterations = min(_TOLERANCE, option.tolerance), max(50, option.ls_iterations)
        self._batch = make_batch(solved, worlds, threads, persistent=True)
        self._writer, self._inputs = FieldWriter(self._batch), InputWriter(self._batch)
        self._out = {name: self._batch.bind(name) for name in ("M", "qacc", "qDeriv", "nefc")}
        self._data = mujoco.MjData(solved)
        self._actuators = SimpleActuators(model, self._batch, varying) if self.nu and plan.exact_action else None
        self._moved = Moved(model, worlds, plan.groups, unmoved=plan.factored, threads=threads) if plan.rows else None
        self._row, self._column = np.repeat(np.arange(self.nv), model.M_rownnz), model.M_colind.astype(int)
        self._twice = np.where(self._row == self._column, 0.0, 1.0)
        self._place = np.repeat(np.arange(self.nv), model.D_rownnz), model.D_colind.astype(int)
        self._quaternions = quaternions(model)
        self._stateful = np.flatnonzero(model.actuator_actadr >= 0)
        self._memory = model.actuator_actadr[self._stateful]
        self._damping = model.dof_damping.copy()

    def differentiate(self, state: Array, action: Array, force: Array | None, cotangent: Array | None, wanted: frozenset[str],
                      fields: Mapping[str, Array]) -> dict[str, Array]:
        """Return products of cotangents with a step's Jacobian, by name, each shape [n, m, k].

        Args:
            state: Shape [n, nx]; one that is not finite gives NaN.
            action: Shape [n, nu].
            force: Shape [n, nv].
            cotangent: Of the next state, on the tangent space, shape [n, m, ndx]; None for all unit ones, m = ndx.
            wanted: Of "state", "action", "force".
            fields: Model fields that vary between worlds, shape [n, ...].
        """
        bad: NDArray[np.bool_] | None = None
        if not (np.abs(state) < _LARGE).all():  # NaN is not small either
            bad = np.logical_not((np.abs(state) < _LARGE).all(axis=1))
            state = np.where(bad[:, None], np.concatenate([self.model.qpos0, np.zeros(self.nv + self.na)]), state)
        solution = self._step(state, action, force, fields)
        turn, spread = self._turning(solution)
        nv = self.nv
        if cotangent is None:
            onto = np.broadcast_to(np.eye(nv + self.na), (self.n, nv + self.na, nv + self.na))
        else:
            onto = cotangent[:, :, nv:].copy()
            onto[:, :, :nv] += self.h * _times(cotangent[:, :, :nv], spread)
        found = self._through_velocity(onto, solution, wanted, fields)
        if cotangent is None:
            # the rows of positions follow from those of velocities
            found = {n: np.concatenate([self.h * (x[:, :nv] if spread is None else spread @ x[:, :nv]), x], 1) for n, x in found.items()}
        if "state" in wanted:
            found["state"][:, : (nv if cotangent is None else None), :nv] += (
                _times(np.eye(nv)[None] if cotangent is None else cotangent[:, :, :nv], turn))
        if bad is not None:
            for x in found.values():
                x[bad] = np.nan
        return found

    def _step(self, state: Array, action: Array, force: Array | None, fields: Mapping[str, Array]) -> _Solution:
        """Step the worlds, then what is moved of them."""
        nq, nv = self.nq, self.nv
        parts = {"position": state[:, :nq], "velocity": state[:, nq : nq + nv], "activation": state[:, nq + nv :], "action": action}
        self._writer.write(fields)
        self._inputs.write(state, action, force)
        self._batch.step()
        if self._moved is not None:
            self._moved.step(parts, force, self._out["qacc"], fields)
        inertia = np.zeros((self.n, nv, nv))
        inertia[:, self._row, self._column] = inertia[:, self._column, self._row] = self._out["M"]
        return _Solution(parts, self._out["qacc"], inertia, self._metric(inertia, fields.get("dof_damping", self._damping)))

    def _through_velocity(self, onto: Array, solution: _Solution, wanted: frozenset[str], fields: Mapping[str, Array]) -> dict[str, Array]:
        """Return products of cotangents of the next velocity and activation, shape [n, m, nv + na]."""
        plan, to_velocity = self.plan, onto[:, :, : self.nv]
        hessian, stiff = self._hessian(solution)
        held: Array | None = None  # w - mu: nothing where no world has constraints
        if plan.implicit:
            w = self.h * _solve(solution.metric.transpose(0, 2, 1), to_velocity.transpose(0, 2, 1))
            mu = w.transpose(0, 2, 1)
            if stiff is not None:
                mu = _solve(hessian, solution.inertia @ w).transpose(0, 2, 1)
                held = w.transpose(0, 2, 1) - mu
        else:
            mu = self.h * _solve(hessian, to_velocity.transpose(0, 2, 1)).transpose(0, 2, 1)
            held = -mu
        found = self._by_differences(onto, held, solution.acceleration) | {"force": mu}
        if "state" in wanted and plan.exact_velocity:
            smooth = self._smooth_slope()
            found["velocity"] = to_velocity + mu @ (smooth if stiff is None else smooth - stiff)
        if self._actuators is not None and wanted & {"action", "state" if self.na else "action"}:
            found |= self._through_actuators(self._actuators, onto, mu, solution.parts, fields)
        if "state" in wanted:
            found["state"] = np.concatenate([found["position"], found["velocity"], *([found["activation"]] if self.na else [])], 2)
        found.setdefault("action", np.zeros((*onto.shape[:2], 0)))
        return {name: found[name] for name in wanted}

    def _through_actuators(self, actuators: SimpleActuators, onto: Array, mu: Array, parts: Mapping[str, Array],
                           fields: Mapping[str, Array]) -> dict[str, Array]:
        """Return exact products by controls and activations."""
        slopes = actuators.slopes(parts["action"], parts["activation"], fields)
        through = mu @ slopes.moment.transpose(0, 2, 1)
        action = through * slopes.force_control[:, None]
        if not self.na:
            return {"action": action}
        stateful, at = self._stateful, self._memory
        to_memory = onto[:, :, self.nv + at]
        action[:, :, stateful] += to_memory * slopes.memory_control[:, None, stateful]
        memory = np.zeros((*onto.shape[:2], self.na))
        memory[:, :, at] = (through * slopes.force_memory[:, None])[:, :, stateful] + to_memory * slopes.memory[:, None, stateful]
        return {"action": action, "activation": memory}

    def _by_differences(self, onto: Array, held: Array | None, a: Array) -> dict[str, Array]:
        """Return gradients of what was moved, by group."""
        moved, nv = self._moved, self.nv
        if moved is None or not moved.count:
            return {}
        if self.plan.implicit:
            rows = onto[:, :, :nv] @ moved.velocity().transpose(0, 2, 1)
        else:
            rows = np.zeros((*onto.shape[:2], moved.count))
        if self.na:
            rows += onto[:, :, nv:] @ moved.memory().transpose(0, 2, 1)
        if held is not None:
            rows -= held @ moved.force().transpose(0, 2, 1)
            if moved.position:
                row, column, at = self._row, self._column, a[:, None]
                weight = held[:, :, row] * at[:, :, column] + held[:, :, column] * (at[:, :, row] * self._twice)
                rows[:, :, : moved.position] += weight @ moved.inertia().transpose(0, 2, 1)
        rows *= 0.5 / EPSILON
        found, start = {}, 0
        for group in moved.groups:
            size = {"position": nv, "velocity": nv, "activation": self.na, "action": self.nu}[group]
            found[group] = rows[:, :, start : start + size]
            start += size
        if "velocity" in found and not self.plan.implicit:
            found["velocity"] = found["velocity"] + onto[:, :, :nv]
        return found

    def _smooth_slope(self) -> Array:
        """Return the engine's derivative of smooth forces by velocity, shape [n, nv, nv]."""
        slope = np.zeros((self.n, self.nv, self.nv))
        slope[:, self._place[0], self._place[1]] = self._out["qDeriv"]
        return slope

    def _metric(self, inertia: Array, damping: Array) -> Array:
        """Return the inertia that the integrator inverts, shape [n, nv, nv]."""
        if not self.plan.implicit:
            return inertia
        i = np.arange(self.nv)
        if self.plan.damped:
            metric = inertia.copy()
            metric[:, i, i] += self.h * damping
            return metric
        if not self.plan.factored or self._moved is None:
            whole: Array = inertia - self.h * self._smooth_slope()
            return whole
        lower = np.zeros_like(inertia)  # of Lᵀ D L, with D in place of L's unit diagonal
        lower[:, self._row, self._column] = self._moved.factor()
        scale = lower[:, i, i]
        lower[:, i, i] = 1.0
        metric = lower.transpose(0, 2, 1) @ (scale[:, :, None] * lower)
        if self.plan.lone:
            whole = inertia - self.h * self._smooth_slope()
            for dofs in self.plan.lone:
                metric[:, dofs[:, None], dofs] = whole[:, dofs[:, None], dofs]
        return metric

    def _hessian(self, solution: _Solution) -> tuple[Array, Array | None]:
        """Return M + Jᵀ S J and, where worlds have constraints, Jᵀ S B J, shape [n, nv, nv] each."""
        inertia, counts = solution.inertia, self._out["nefc"].reshape(-1)
        worlds = np.flatnonzero(counts)
        if not len(worlds):
            return inertia, None
        rows = read_rows(self._batch, self._data, worlds, counts[worlds], self.nv)
        by_acceleration, by_velocity = constraint_slopes(rows, solution.acceleration[worlds])
        if len(worlds) == self.n:
            return inertia + by_acceleration, by_velocity
        hessian, stiff = inertia.copy(), np.zeros_like(inertia)
        hessian[worlds] += by_acceleration
        stiff[worlds] = by_velocity
        return hessian, stiff

    def _turning(self, solution: _Solution) -> tuple[Array | None, Array | None]:
        """Return d q' / d q and d q' / d (h v') on the tangent, shape [n, nv, nv] each; None where both are the identity."""
        if not self._quaternions:
            return None, None
        change: Array = solution.acceleration
        if self.plan.implicit:
            change = _solve(solution.metric, solution.inertia @ change[..., None])[..., 0]
        angle = self.h * (solution.parts["velocity"] + self.h * change)
        turn = np.zeros((self.n, self.nv, self.nv))
        turn[:, np.arange(self.nv), np.arange(self.nv)] = 1.0
        spread = turn.copy()
        for _, v in self._quaternions:
            turn[:, v : v + 3, v : v + 3], spread[:, v : v + 3, v : v + 3] = _rotation(angle[:, v : v + 3])
        return turn, spread


def _solve(matrix: Array, right: Array) -> Array:
    return np.asarray(np.linalg.solve(matrix, right), np.float64)


def _times(rows: Array, matrix: Array | None) -> Array:
    return rows if matrix is None else rows @ matrix


def _rotation(angle: Array) -> tuple[Array, Array]:
    """Return ``R(φ)ᵀ`` and the right Jacobian of the exponential map at rotation vectors φ [n, 3], shape [n, 3, 3] each."""
    norm = np.linalg.norm(angle, axis=1)[:, None, None]
    K = np.zeros((len(angle), 3, 3))
    K[:, 2, 1], K[:, 0, 2], K[:, 1, 0] = angle.T
    K -= K.transpose(0, 2, 1)
    half = np.sinc(norm / (2 * np.pi))
    sine, cosine = np.sinc(norm / np.pi), 0.5 * half * half
    with np.errstate(divide="ignore", invalid="ignore"):
        third = np.where(norm < 1e-3, 1 / 6 - norm**2 / 120, (1 - sine) / norm**2)
    square = K @ K
    return np.eye(3) - sine * K + cosine * square, np.eye(3) - cosine * K + third * square

