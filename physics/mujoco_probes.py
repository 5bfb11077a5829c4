"""MuJoCo worlds moved a little to both sides of where they are and stepped natively, without a solve."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import mujoco
import numpy as np
from mujoco.batch import Batch
from numpy.typing import NDArray

Array = NDArray[np.float64]

EPSILON = 3e-7
"""Size of a move, in the units of the state."""

_FEW = 32
"""Worlds that are stepped in less time than it takes to wake a thread."""

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


def make_batch(model: mujoco.MjModel, worlds: int, threads: int, *, persistent: bool = False) -> Batch:
    """Return a batch, with one thread where more would not pay; 0 takes every core."""
    return Batch(model, worlds, nthread=1 if worlds <= _FEW else threads, persistent=persistent)


class FieldWriter:
    """Writes model fields of a batch in which each world of the caller's stands ``copies`` times in a row."""

    def __init__(self, batch: Batch, copies: int = 1) -> None:
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
    """Writes what the worlds of a batch start from."""

    def __init__(self, batch: Batch) -> None:
        self._state = [view for view in (batch.bind(n) for n in ("qpos", "qvel", "act")) if view.size]
        self._action, self._force = batch.bind("ctrl"), batch.bind("qfrc_applied")
        self._zero = batch.bind("time"), batch.bind("qacc_warmstart")

    def write(self, state: Array, action: Array, force: Array | None) -> None:
        """Set state and input of all worlds; the solver starts afresh."""
        start = 0
        for view in self._state:
            view[...] = state[:, start : start + view.shape[1]]
            start += view.shape[1]
        self._action[...], self._force[...] = action, 0.0 if force is None else force
        for view in self._zero:
            view[...] = 0.0


class Moved:
    """Changes of a step without its solve: the acceleration that the constraint forces follow from is held.

    With no solver iterations, and the solution of the unmoved world as warm start, the engine computes constraint forces at that
    acceleration, and from them the velocity after the step.

    Args:
        model: The model.
        worlds: Number of worlds n.
        groups: What is moved, of "position", "velocity", "activation", "action".
        unmoved: Whether to step the unmoved worlds too, and keep the factor of the inertia that their integrator inverts.
        threads: Native threads; 0 takes every core.

    Attributes:
        count: Number K of moves.
        position: Number of those that move positions, the first ones.
    """

    def __init__(self, model: mujoco.MjModel, worlds: int, groups: Sequence[str], *, unmoved: bool, threads: int) -> None:
        changed = engine_model(model)
        changed.opt.iterations, changed.opt.solver = 0, mujoco.mjtSolver.mjSOL_CG  # Newton would factorise first
        nq, nv = int(model.nq), int(model.nv)
        sizes = {"position": nv, "velocity": nv, "activation": int(model.na), "action": int(model.nu)}
        self.groups = tuple(groups)
        self.count = sum(sizes[g] for g in groups)
        self.position = sizes["position"] if "position" in groups else 0
        self._worlds, self._rows = worlds, 2 * self.count + unmoved
        self._batch = make_batch(changed, worlds * self._rows, threads)
        self._writer = FieldWriter(self._batch, self._rows)
        self._out = {name: self._batch.bind(name) for name in ("qfrc_smooth", "qfrc_constraint", *(("M",) if self.position else ()),
                                                               *(("qH",) if unmoved else ()))}
        self._quaternions, plain = _coordinates(model)
        self._moves: dict[str, Array] = {}
        start = 0
        widths = sizes | {"position": nq}
        for group in groups:
            move = np.zeros((self._rows, widths[group]))
            k = np.arange(sizes[group])
            from_row, column = (start + plain[:, 1], plain[:, 0]) if group == "position" else (start + k, k)
            move[from_row, column], move[self.count + from_row, column] = EPSILON, -EPSILON
            self._moves[group] = move
            start += sizes[group]
        names = {"position": "qpos", "velocity": "qvel", "activation": "act", "action": "ctrl"}
        self._parts = {group: self._batch.bind(name) for group, name in names.items()}
        self._time, self._force, self._warm = (self._batch.bind(n) for n in ("time", "qfrc_applied", "qacc_warmstart"))

    def step(self, parts: Mapping[str, Array], force: Array | None, acceleration: Array, fields: Mapping[str, Array]) -> None:
        """Step all moved worlds.

        Args:
            parts: "position" [n, nq], "velocity", "activation", "action" of the unmoved worlds.
            force: Applied force, shape [n, nv].
            acceleration: The solution of the unmoved worlds, shape [n, nv].
            fields: Model fields by world.
        """
        n, rows, K = self._worlds, self._rows, self.count
        self._writer.write(fields)
        for group, view in self._parts.items():
            if not view.shape[1]:
                continue
            shaped, unmoved = view.reshape(n, rows, -1), parts[group][:, None]
            if group in self._moves:
                np.add(unmoved, self._moves[group], out=shaped)
            else:
                shaped[...] = unmoved
        if self.position:
            shaped = self._parts["position"].reshape(n, rows, -1)
            for q, v in self._quaternions:
                turned = np.einsum("ni,kij->nkj", parts["position"][:, q : q + 4], _TURNS)
                shaped[:, v : v + 3, q : q + 4], shaped[:, K + v : K + v + 3, q : q + 4] = turned[:, :3], turned[:, 3:]
        self._time[...] = 0.0
        self._force.reshape(n, rows, -1)[...] = 0.0 if force is None else force[:, None]
        self._warm.reshape(n, rows, -1)[...] = acceleration[:, None]
        self._batch.step()

    def velocity(self) -> Array:
        """Return the difference of the next velocity between a move forth and back, shape [n, K, nv]."""
        return self._difference(self._parts["velocity"], self.count)

    def memory(self) -> Array:
        """Return the difference of the next activation, shape [n, K, na]."""
        return self._difference(self._parts["activation"], self.count)

    def force(self) -> Array:
        """Return the difference of smooth plus constraint force, shape [n, K, nv]."""
        return self._difference(self._out["qfrc_smooth"] + self._out["qfrc_constraint"], self.count)

    def inertia(self) -> Array:
        """Return the difference of the inertia's entries, over moves of positions, shape [n, position, nC]."""
        return self._difference(self._out["M"], self.position)

    def factor(self) -> Array:
        """Return the factor of the inertia that the integrator of the unmoved worlds inverted, shape [n, nC]."""
        factor: Array = self._out["qH"].reshape(self._worlds, self._rows, -1)[:, -1]
        return factor

    def _difference(self, values: Array, moves: int) -> Array:
        shaped = values.reshape(self._worlds, self._rows, values.shape[1])
        return shaped[:, :moves] - shaped[:, self.count : self.count + moves]


def quaternions(model: mujoco.MjModel) -> list[tuple[int, int]]:
    """Return the first entry in q and in v of each quaternion segment."""
    free, ball = int(mujoco.mjtJoint.mjJNT_FREE), int(mujoco.mjtJoint.mjJNT_BALL)
    shift = {free: 3, ball: 0}
    return [(int(q) + shift[int(kind)], int(v) + shift[int(kind)])
            for kind, q, v in zip(model.jnt_type, model.jnt_qposadr, model.jnt_dofadr, strict=True) if int(kind) in shift]


def _coordinates(model: mujoco.MjModel) -> tuple[list[tuple[int, int]], NDArray[np.int64]]:
    """Return the quaternion segments, and (entry in q, entry in v) of every other coordinate."""
    turning = quaternions(model)
    in_q = np.setdiff1d(np.arange(int(model.nq)), [q + i for q, _ in turning for i in range(4)])
    in_v = np.setdiff1d(np.arange(int(model.nv)), [v + i for _, v in turning for i in range(3)])
    return turning, np.stack([in_q, in_v], 1).astype(np.int64)


def _turns() -> Array:
    """Return matrices R with ``q R = q ⊗ exp(±EPSILON e_i)`` for row vectors q, three to one side, three back, shape [6, 4, 4]."""
    axes = np.array([[[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]],
                     [[0, 0, 1, 0], [0, 0, 0, 1], [-1, 0, 0, 0], [0, -1, 0, 0]],
                     [[0, 0, 0, 1], [0, 0, -1, 0], [0, 1, 0, 0], [-1, 0, 0, 0]]], float)
    half = EPSILON / 2
    return np.concatenate([np.cos(half) * np.eye(4) + np.sin(half) * axes, np.cos(half) * np.eye(4) - np.sin(half) * axes])


_TURNS = _turns()
