"""Accelerations of MuJoCo worlds, solved, and how they answer to what acts on them.

The acceleration a solves ``g = M a - r = 0``, r smooth plus constraint force, so that ``δa = -H⁻¹ δg``, δg the change of g with a
held; see ``mujoco_adjoint``. A world may be solved at several stages of a step: these stand in a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mujoco
import numpy as np
from numpy.typing import NDArray

from residual_mbrl.physics.mujoco_actuation import ActuatorSlopes, SimpleActuators
from residual_mbrl.physics.mujoco_adjoint_plan import Plan
from residual_mbrl.physics.mujoco_adjoint_text import ARGUMENTS, ENGINE, FIELDS, NAMES, TEXT
from residual_mbrl.physics.mujoco_contact_hessian import constraint_slopes, read_rows
from residual_mbrl.physics.mujoco_moved_worlds import Moved
from residual_mbrl.physics.mujoco_native import Arguments, compile_functions, engine_function
from residual_mbrl.physics.mujoco_probes import FieldWriter, InputWriter, make_native_batch, solving_model

Array = NDArray[np.float64]

_ALL = slice(None)
_SMALL = 8
"""Degrees of freedom up to which a product with a matrix of zeros and ones is quicker than indices."""


class SolvedWorlds:
    """n worlds, each at every stage of a step: N = n · stages accelerations.

    Args:
        model: The model.
        worlds: Number of worlds n.
        plan: What is exact and what is moved.
        varying: Names of the model fields that vary between worlds.
        threads: Native threads; 0 takes every core.

    Attributes:
        acceleration: Shape [N, nv].
        memory_rate: Rate of activations, shape [N, na].
        parts: "position" [N, nq], "velocity", "activation" and "action" that they were solved for.
        inertia: M, shape [N, nv, nv].
        hessian: H = M + Jᵀ S J, shape [N, nv, nv].
        stiff: Jᵀ S B J, shape [N, nv, nv]; None where no world has constraints, in which case H is M.
        actuators: Slopes of the actuators; None where those were not wanted or are not exact.
        moved: Differences with the acceleration held; None where nothing is moved.
    """

    parts: Mapping[str, Array]
    inertia: Array
    hessian: Array
    stiff: Array | None
    actuators: ActuatorSlopes | None
    moved: Moved | None
    _by_velocity: Array

    def __init__(self, model: mujoco.MjModel, worlds: int, plan: Plan, *, varying: frozenset[str], threads: int) -> None:
        self.model, self._plan, self._threads, self._worlds = model, plan, threads, worlds * plan.stages
        self._nq, self._nv, self._na = int(model.nq), int(model.nv), int(model.na)
        solved = solving_model(model)
        self._batch = make_native_batch(solved, self._worlds, threads, at_once=worlds, persistent=True)
        self._writer, self._inputs = FieldWriter(self._batch, plan.stages), InputWriter(self._batch, plan.stages)
        names = ("M", "qacc", "qDeriv", "nefc", "act_dot", "qfrc_smooth", "qfrc_passive", "qfrc_bias")
        self._out = {name: self._batch.bind(name) for name in names}
        self.acceleration, self.memory_rate = self._out["qacc"], self._out["act_dot"]
        self._data = mujoco.MjData(solved)
        self._actuators = SimpleActuators(model, self._batch, varying, plan.stages) if model.nu and plan.exact_action else None
        self._moved: dict[bool, Moved] = {}
        every = [np.arange(stage, self._worlds, plan.stages, dtype=np.int32) for stage in range(plan.stages)]
        self._ids = every if plan.stages > 1 else [None]
        self._row, self._column = np.repeat(np.arange(self._nv), model.M_rownnz), model.M_colind.astype(int)
        self._entry, self._mirror = self._row * self._nv + self._column, self._column * self._nv + self._row
        self._twice = np.where(self._row == self._column, 0.0, 1.0)
        self._gather: Array | None = None
        self._arguments: Arguments | None = None
        if self._nv <= _SMALL:  # the same as a product, which is one call
            self._gather = np.zeros((self._nv**2, len(self._row)))
            self._gather[self._entry, np.arange(len(self._row))] += 1.0
            self._gather[self._mirror, np.arange(len(self._row))] += self._twice
        slope = np.repeat(np.arange(self._nv), model.D_rownnz), model.D_colind.astype(int)
        self._full_inertia = _Dense(self._nv, (self._row, self._column), (self._column, self._row))  # the engine keeps one half
        self._full_slope = _Dense(self._nv, slope)
        self._stateful = np.flatnonzero(model.actuator_actadr >= 0)
        self._memory = model.actuator_actadr[self._stateful]

    def solve(self, state: Array, action: Array, force: Array | None, fields: Mapping[str, Array], stage: int = 0) -> None:
        """Solve one stage of all worlds; arguments as in ``AdjointWorlds.differentiate``."""
        self._writer.write(fields)
        self._inputs.write(state, action, force, stage)
        self._batch.step(self._ids[stage])

    def look(self, state: Array, action: Array, force: Array | None, wanted: frozenset[str], fields: Mapping[str, Array]) -> None:
        """Gather what derivatives need; all stages have been solved at these states and inputs, shape [N, ...] each."""
        nq, nv = self._nq, self._nv
        self.parts = {"position": state[:, :nq], "velocity": state[:, nq : nq + nv], "activation": state[:, nq + nv :], "action": action}
        self.inertia = self._full_inertia(self._out["M"])
        self.hessian, self.stiff = self._curvature()
        if "state" in wanted and self._plan.exact_velocity:
            slope = self.smooth_slope()
            self._by_velocity = slope if self.stiff is None else slope - self.stiff
        self.actuators = None
        if self._actuators is not None and wanted & {"action", "state" if self._na else "action"}:
            self.actuators = self._actuators.slopes(action, self.parts["activation"], fields)
        self.moved = self._move(force, fields) if self._plan.rows else None

    def smooth_slope(self) -> Array:
        """Return the engine's derivative of smooth forces by velocity, shape [N, nv, nv]."""
        return self._full_slope(self._out["qDeriv"])

    def pull_forces(self, mu: Array, wanted: frozenset[str], at: slice = _ALL) -> dict[str, Array]:
        """Return what is exact of ``mu · δr``, by name.

        Args:
            mu: Shape [n, m, nv].
            wanted: Of "state", "action", "force".
            at: Which of the worlds.
        """
        found = {"force": mu}
        if "state" in wanted and self._plan.exact_velocity:
            found["velocity"] = mu @ self._by_velocity[at]
        if self.actuators is not None:
            slopes = self.actuators
            moment = slopes.moment if len(slopes.moment) == 1 else slopes.moment[at]
            through = mu @ moment.transpose(0, 2, 1)
            found["action"] = through * slopes.force_control[at, None]
            if self._na:
                found["activation"] = np.zeros((*mu.shape[:2], self._na))
                found["activation"][:, :, self._memory] = (through * slopes.force_memory[at, None])[:, :, self._stateful]
        return found

    def pull_differences(self, mu: Array, pairs: Sequence[tuple[Array, Array]], to_rate: Array | None = None,
                         at: slice = _ALL) -> dict[str, Array]:
        """Return ``mu · δr + Σ x · δM y + ρ · δ(rate of activation)`` over what was moved, by group.

        Args:
            mu: Shape [n, m, nv].
            pairs: x [n, m, nv] and y [n, nv].
            to_rate: ρ, shape [n, m, na].
            at: Which of the worlds.
        """
        moved = self.moved
        if moved is None or not moved.sizes:
            return {}
        rows = mu @ moved.force(at).transpose(0, 2, 1)
        if to_rate is not None and to_rate.shape[2]:
            rows += to_rate @ moved.memory_rate(at).transpose(0, 2, 1)
        if "position" in moved.sizes:
            rows[:, :, : self._nv] += self.pull_inertia(moved.inertia(at), pairs)
        rows /= moved.width
        return moved.split(rows)

    def pull_contacts(self, mu: Array, wanted: frozenset[str], at: slice = _ALL) -> dict[str, Array]:
        """Return ``mu · δr`` by the model fields of contacts that are wanted, each shape [n, m, numbers of the field]."""
        fields = [name for name in FIELDS if name in wanted]
        if not fields:
            return {}
        if self._arguments is None:
            self._arguments = Arguments(ARGUMENTS)
            self._arguments.set(**{name: engine_function(name) for name in ENGINE})
        worlds, m = np.arange(self._worlds, dtype=np.int32)[at], mu.shape[1]
        rows = np.zeros((self._worlds, m, self._nv))
        rows[at] = mu
        found = {name: np.zeros((self._worlds, m, getattr(self.model, name).size)) for name in fields}
        self._arguments.set(mu=rows, acceleration=self.acceleration, rows=m, **{name: found.get(name) for name in FIELDS})
        self._batch.apply(compile_functions(TEXT, NAMES)["contacts"], self._arguments.address, np.ascontiguousarray(worlds))
        return {name: x[at] for name, x in found.items()}

    def pull_inertia(self, change: Array, pairs: Sequence[tuple[Array, Array]]) -> Array:
        """Return ``Σ x · δM y``, shape [n, m, moves]; the entries of δM are [n, moves, nC]."""
        row, column = self._row, self._column
        if pairs[0][0].shape[1] == 1:  # one row: the entries' weights are cheaper than δM y
            (x, y), *others = pairs
            outer = x.transpose(0, 2, 1) @ y[:, None]
            for x, y in others:
                outer += x.transpose(0, 2, 1) @ y[:, None]
            flat = outer.reshape(len(outer), -1)
            if self._gather is None:
                weight = flat.take(self._entry, 1) + flat.take(self._mirror, 1) * self._twice
            else:
                weight = flat @ self._gather
            return np.asarray(weight[:, None] @ change.transpose(0, 2, 1))
        entry, total = np.arange(len(row)), np.zeros((*pairs[0][0].shape[:2], change.shape[1]))
        for x, y in pairs:
            spread = np.zeros((len(y), len(row), self._nv))
            spread[:, entry, column] = y[:, row]
            spread[:, entry, row] = y[:, column]
            total += x @ (change @ spread).transpose(0, 2, 1)
        return total

    def _move(self, force: Array | None, fields: Mapping[str, Array]) -> Moved:
        plan = self._plan
        centred = plan.stepped or self.stiff is not None
        if centred not in self._moved:
            self._moved[centred] = Moved(self.model, self._worlds, plan.groups, stepped=plan.stepped, factored=plan.factored,
                                         unmoved={} if centred else self._out, passive=plan.passive and not centred,
                                         copies=plan.stages, threads=self._threads)
        moved = self._moved[centred]
        moved.step(self.parts, force, self.acceleration, fields)
        return moved

    def _curvature(self) -> tuple[Array, Array | None]:
        """Return M + Jᵀ S J and, where worlds have constraints, Jᵀ S B J, shape [N, nv, nv] each."""
        inertia, counts = self.inertia, self._out["nefc"].reshape(-1)
        if not counts.any():
            return inertia, None
        worlds = np.flatnonzero(counts)
        rows = read_rows(self._batch, self._data, worlds, counts[worlds], self._nv)
        by_acceleration, by_velocity = constraint_slopes(rows, self.acceleration[worlds])
        if len(worlds) == self._worlds:
            return inertia + by_acceleration, by_velocity
        hessian, stiff = inertia.copy(), np.zeros_like(inertia)
        hessian[worlds] += by_acceleration
        stiff[worlds] = by_velocity
        return hessian, stiff


def solve_rows(matrix: Array, rows: Array) -> Array:
    """Return rows [n, m, nv] times the inverse of symmetric matrices [n, nv, nv]."""
    return np.asarray(np.linalg.solve(matrix, rows.transpose(0, 2, 1)), np.float64).transpose(0, 2, 1)


class _Dense:
    """Spreads the entries of sparse matrices [n, entries] over full ones [n, nv, nv].

    Args:
        size: nv.
        places: Rows and columns of the entries; several for entries that stand in several places.
    """

    def __init__(self, size: int, *places: tuple[NDArray[np.intp], NDArray[np.intp]]) -> None:
        self._size, self._entry, there = size, np.zeros((size, size), np.intp), np.zeros((size, size))
        for row, column in places:
            self._entry[row, column], there[row, column] = np.arange(len(row)), 1.0
        self._there = None if there.all() else there

    def __call__(self, entries: Array) -> Array:
        if not self._size:
            return np.zeros((len(entries), 0, 0))
        full = entries.take(self._entry, 1)
        if self._there is not None:
            full *= self._there
        return full
