"""Batches of MuJoCo worlds for derivatives: how they are made and written, and where their quaternions are."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import mujoco
import numpy as np
from mujoco.batch import Batch
from numpy.typing import NDArray

from residual_mbrl.physics.mujoco_native import NativeBatch

Array = NDArray[np.float64]

_FEW = 32
"""Worlds that are stepped in less time than it takes to wake a thread."""

_TOLERANCE = 1e-13
"""Of the solve at which derivatives are taken: accelerations are then right to 1e-5 of their unit at worst, mostly to rounding."""
_OWN = frozenset({f"opt.{n}" for n in ("solver", "iterations", "tolerance", "ls_iterations", "ls_tolerance", "jacobian", "integrator",
                                       "disableflags", "enableflags")})
"""Options that derivatives choose themselves."""
_ALIVE = 1e-300
"""Damping that changes no number, but makes the engine integrate a world without damping as it does one with it."""


def engine_model(model: mujoco.MjModel, integrator: mujoco.mjtIntegrator | None = None) -> mujoco.MjModel:
    """Return a copy that computes no sensors or energies, never resets a state, and holds Jacobians dense."""
    changed = copy.copy(model)
    option = changed.opt
    disable = mujoco.mjtDisableBit
    option.disableflags |= int(disable.mjDSBL_SENSOR) | int(disable.mjDSBL_AUTORESET)
    option.disableflags &= ~int(disable.mjDSBL_WARMSTART)
    enable = mujoco.mjtEnableBit
    option.enableflags &= ~(int(enable.mjENBL_ENERGY) | int(enable.mjENBL_FWDINV))
    option.jacobian = mujoco.mjtJacobian.mjJAC_DENSE
    if integrator is not None:
        option.integrator = integrator
    return changed


def solving_model(model: mujoco.MjModel) -> mujoco.MjModel:
    """Return a copy that solves to rounding and integrates so as to leave the derivative of smooth forces behind."""
    solved = engine_model(model, mujoco.mjtIntegrator.mjINT_IMPLICIT)
    option = solved.opt
    option.solver, option.iterations = mujoco.mjtSolver.mjSOL_NEWTON, max(100, option.iterations)
    option.tolerance, option.ls_iterations = min(_TOLERANCE, option.tolerance), max(50, option.ls_iterations)
    return solved


def make_batch(model: mujoco.MjModel, worlds: int, threads: int, *, at_once: int | None = None, persistent: bool = False) -> Batch:
    """Return a batch, with one thread where more would not pay for the worlds that are stepped at once; 0 takes every core."""
    return Batch(model, worlds, nthread=1 if (at_once or worlds) <= _FEW else threads, persistent=persistent)


def make_native_batch(model: mujoco.MjModel, worlds: int, threads: int, *, at_once: int | None = None,
                      persistent: bool = False) -> NativeBatch:
    """Return the same with compiled functions; arguments as in ``make_batch``."""
    return NativeBatch(model, worlds, 1 if (at_once or worlds) <= _FEW else threads, persistent=persistent)


class FieldWriter:
    """Writes model fields of a batch in which each world of the caller's stands ``copies`` times in a row."""

    def __init__(self, batch: Batch | NativeBatch, copies: int = 1) -> None:
        self._batch, self._copies = batch, copies
        self._written: dict[str, Array] = {}

    def write(self, fields: Mapping[str, Array]) -> None:
        """Set fields, each shape [n, ...], derived ones included; nothing is done for those that have not changed."""
        for name, values in fields.items():
            if name in _OWN or (name in self._written and np.array_equal(self._written[name], values)):
                continue
            self._written[name] = values.copy()
            alive = np.maximum(values, _ALIVE) if name == "dof_damping" else values
            self._batch.expand(name)[...] = np.repeat(alive, self._copies, 0)


class InputWriter:
    """Writes what the worlds of a batch start from, in which each of the caller's stands ``copies`` times in a row."""

    def __init__(self, batch: Batch | NativeBatch, copies: int = 1) -> None:
        self._copies = copies
        self._state = [view for view in (batch.bind(n) for n in ("qpos", "qvel", "act")) if view.size]
        self._action, self._force = batch.bind("ctrl"), batch.bind("qfrc_applied")
        self._zero = batch.bind("time"), batch.bind("qacc_warmstart")

    def write(self, state: Array, action: Array, force: Array | None, copy: int = 0) -> None:
        """Set state and input of all worlds, or of one copy of each; the solver starts afresh."""
        start, at = 0, slice(copy, None, self._copies)
        for view in self._state:
            view[at] = state[:, start : start + view.shape[1]]
            start += view.shape[1]
        self._action[at], self._force[at] = action, 0.0 if force is None else force
        for view in self._zero:
            view[at] = 0.0


def quaternions(model: mujoco.MjModel) -> list[tuple[int, int]]:
    """Return the first entry in q and in v of each quaternion segment."""
    free, ball = int(mujoco.mjtJoint.mjJNT_FREE), int(mujoco.mjtJoint.mjJNT_BALL)
    shift = {free: 3, ball: 0}
    return [(int(q) + shift[int(kind)], int(v) + shift[int(kind)])
            for kind, q, v in zip(model.jnt_type, model.jnt_qposadr, model.jnt_dofadr, strict=True) if int(kind) in shift]


def coordinates(model: mujoco.MjModel) -> tuple[list[tuple[int, int]], NDArray[np.int64]]:
    """Return the quaternion segments, and (entry in q, entry in v) of every other coordinate."""
    turning = quaternions(model)
    in_q = np.setdiff1d(np.arange(int(model.nq)), [q + i for q, _ in turning for i in range(4)])
    in_v = np.setdiff1d(np.arange(int(model.nv)), [v + i for _, v in turning for i in range(3)])
    return turning, np.stack([in_q, in_v], 1).astype(np.int64)
