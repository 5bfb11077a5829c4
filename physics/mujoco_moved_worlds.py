"""MuJoCo worlds moved a little from where they are and stepped natively, without a solve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mujoco
import numpy as np
from numpy.typing import NDArray

from residual_mbrl.physics.mujoco_probes import FieldWriter, coordinates, engine_model, make_batch

Array = NDArray[np.float64]

_MOVE = {1: 1e-8, 2: 3e-7}
"""Size of a move to one side and to both, in the units of the state: what is smooth bends little, what a contact does bends within 1e-3."""
_ALL = slice(None)


class Moved:
    """Changes of a step without its solve: the acceleration that the constraint forces follow from is held.

    With no solver iterations, and the solution of the unmoved world as warm start, the engine computes constraint forces at that
    acceleration, and from them the velocity after the step.

    Args:
        model: The model.
        worlds: Number of worlds n.
        groups: What is moved, of "position", "velocity", "activation", "action".
        stepped: Whether the integrator shall run too; otherwise ``velocity`` and ``memory`` are not there.
        factored: Whether to step the unmoved worlds too, and keep the factor of the inertia that their integrator inverts.
        unmoved: Live results of the unmoved worlds, none of which has constraints: differences are taken from them, to one side, and
            constraint forces left out. Empty for centred differences.
        passive: Whether actuators push alike wherever the worlds are moved, and can be left out.
        copies: Worlds in a row that share their model fields.
        threads: Native threads; 0 takes every core.

    Attributes:
        sizes: Number of moves by group.
        width: What a difference has to be divided by for a derivative.
    """

    def __init__(self, model: mujoco.MjModel, worlds: int, groups: Sequence[str], *, stepped: bool, factored: bool,
                 unmoved: Mapping[str, Array], passive: bool, copies: int, threads: int) -> None:
        sides = 1 if unmoved else 2
        changed = engine_model(model)
        changed.opt.iterations, changed.opt.solver = 0, mujoco.mjtSolver.mjSOL_CG  # Newton would factorise first
        disable = mujoco.mjtDisableBit
        changed.opt.disableflags |= int(disable.mjDSBL_ISLAND)  # there is nothing to solve island by island
        if sides == 1:
            changed.opt.disableflags |= int(disable.mjDSBL_CONSTRAINT)
        nq, nv, na = int(model.nq), int(model.nv), int(model.na)
        self.sizes = {g: s for g, s in (("position", nv), ("velocity", nv), ("activation", na), ("action", int(model.nu))) if g in groups}
        self._count = sum(self.sizes.values())
        self._position = self.sizes.get("position", 0)
        self._rows = sides * self._count + factored
        self._stepped, self._unmoved, self._sides, self.width = stepped, unmoved, sides, sides * _MOVE[sides]
        self._stage = int(mujoco.mjtStage.mjSTAGE_VEL if passive else mujoco.mjtStage.mjSTAGE_ACC)
        self._batch = make_batch(changed, worlds * self._rows, threads)
        self._writer = FieldWriter(self._batch, copies * self._rows)
        self._passive = passive
        read = {"qfrc_passive": passive, "qfrc_bias": passive, "qfrc_smooth": not passive, "qfrc_constraint": sides == 2,
                "M": self._position, "act_dot": na and not stepped, "qH": factored}
        self._out = {name: self._batch.bind(name).reshape(worlds, self._rows, -1) for name, needed in read.items() if needed}
        self._quaternions, plain = coordinates(model)
        self._turns = _turns(_MOVE[sides])
        self._moves: dict[str, Array] = {}
        start = 0
        for group, size in self.sizes.items():
            move = np.zeros((self._rows, nq if group == "position" else size))
            k = np.arange(size)
            from_row, column = (start + plain[:, 1], plain[:, 0]) if group == "position" else (start + k, k)
            move[from_row, column] = _MOVE[sides]
            if sides == 2:
                move[self._count + from_row, column] = -_MOVE[sides]
            self._moves[group] = move
            start += size
        names = {"position": "qpos", "velocity": "qvel", "activation": "act", "action": "ctrl"}
        views = {group: self._batch.bind(name) for group, name in names.items()}
        self._shaped = {group: view.reshape(worlds, self._rows, -1) for group, view in views.items() if view.shape[1]}
        self._time, force, warm = (self._batch.bind(n) for n in ("time", "qfrc_applied", "qacc_warmstart"))
        self._force, self._warm = force.reshape(worlds, self._rows, -1), warm.reshape(worlds, self._rows, -1)

    def step(self, parts: Mapping[str, Array], force: Array | None, acceleration: Array, fields: Mapping[str, Array]) -> None:
        """Step all moved worlds.

        Args:
            parts: "position" [n, nq], "velocity", "activation", "action" of the unmoved worlds.
            force: Applied force, shape [n, nv].
            acceleration: The solution of the unmoved worlds, shape [n, nv].
            fields: Model fields by world.
        """
        self._writer.write(fields)
        for group, shaped in self._shaped.items():
            if group in self._moves:
                np.add(parts[group][:, None], self._moves[group], out=shaped)
            else:
                shaped[...] = parts[group][:, None]
        if self._position:
            shaped = self._shaped["position"]
            for q, v in self._quaternions:
                turned = np.einsum("ni,kij->nkj", parts["position"][:, q : q + 4], self._turns)
                for side in range(self._sides):
                    row = side * self._count + v
                    shaped[:, row : row + 3, q : q + 4] = turned[:, 3 * side : 3 * side + 3]
        self._force[...] = 0.0 if force is None else force[:, None]
        if self._sides == 2:
            self._warm[...] = acceleration[:, None]
        if not self._stepped:
            self._batch.forward(stage=self._stage)
            return
        self._time[...] = 0.0
        self._batch.step()

    def velocity(self) -> Array:
        """Return the difference of the next velocity between a move forth and back, shape [n, moves, nv]."""
        return self._stepped_difference("velocity")

    def memory(self) -> Array:
        """Return the difference of the next activation, shape [n, moves, na]."""
        return self._stepped_difference("activation")

    def memory_rate(self, at: slice = _ALL) -> Array:
        """Return the difference of the activation's rate, of some worlds, shape [n, moves, na]."""
        return self._difference("act_dot", self._count, at)

    def force(self, at: slice = _ALL) -> Array:
        """Return the difference of smooth plus constraint force, of some worlds, shape [n, moves, nv]."""
        if self._passive:
            return self._difference("qfrc_passive", self._count, at) - self._difference("qfrc_bias", self._count, at)
        smooth = self._difference("qfrc_smooth", self._count, at)
        return smooth if self._sides == 1 else smooth + self._difference("qfrc_constraint", self._count, at)

    def inertia(self, at: slice = _ALL) -> Array:
        """Return the difference of the inertia's entries, over moves of positions, of some worlds, shape [n, nv, nC]."""
        return self._difference("M", self._position, at)

    def factor(self) -> Array:
        """Return the factor of the inertia that the integrator of the unmoved worlds inverted, shape [n, nC]."""
        factor: Array = self._out["qH"][:, -1]
        return factor

    def split(self, rows: Array) -> dict[str, Array]:
        """Return rows over all moves, shape [n, m, moves], by group."""
        found, start = {}, 0
        for group, size in self.sizes.items():
            found[group] = rows[:, :, start : start + size]
            start += size
        return found

    def _difference(self, name: str, moves: int, at: slice) -> Array:
        values: Array = self._out[name]
        if self._sides == 2:
            return values[at, :moves] - values[at, self._count : self._count + moves]
        return values[at, :moves] - self._unmoved[name][at, None]

    def _stepped_difference(self, group: str) -> Array:
        values: Array = self._shaped[group]
        return values[:, : self._count] - values[:, self._count : 2 * self._count]


def _turns(angle: float) -> Array:
    """Return matrices R with ``q R = q ⊗ exp(±angle e_i)`` for row vectors q, three to one side, three back, shape [6, 4, 4]."""
    axes = np.array([[[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]],
                     [[0, 0, 1, 0], [0, 0, 0, 1], [-1, 0, 0, 0], [0, -1, 0, 0]],
                     [[0, 0, 0, 1], [0, 0, -1, 0], [0, 1, 0, 0], [-1, 0, 0, 0]]], float)
    cosine, sine = np.cos(angle / 2) * np.eye(4), np.sin(angle / 2) * axes
    return np.concatenate([cosine + sine, cosine - sine])
