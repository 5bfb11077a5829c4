"""The worlds at which a MuJoCo step by Runge and Kutta's method is differentiated: four accelerations, chained.

From q, v and activation w, stage i is at ``q ⊞ φᵢ, v + h cᵢ aᵢ₋₁, w + h cᵢ ẇᵢ₋₁`` with ``φᵢ = h cᵢ kᵢ₋₁``, c = 0, 1/2, 1/2, 1. Its
kᵢ is its velocity, for a quaternion the rate of the rotation vector φᵢ that belongs to it (Munthe-Kaas). The step ends at

    q' = q ⊞ h Σ bᵢ kᵢ,   v' = v + h Σ bᵢ aᵢ,   w' = w + h Σ bᵢ ẇᵢ,   b = 1/6, 1/3, 1/3, 1/6

up to the limits of activations and the exponential of exact filters. The derivative goes through this from the end to the start.
"""

from __future__ import annotations

from collections.abc import Mapping

import mujoco
import numpy as np
from numpy.typing import NDArray

from residual_mbrl.physics.mujoco_actuation import memory_slopes
from residual_mbrl.physics.mujoco_adjoint_plan import Plan
from residual_mbrl.physics.mujoco_probes import coordinates
from residual_mbrl.physics.mujoco_solved_worlds import SolvedWorlds, solve_rows
from residual_mbrl.physics.mujoco_tangent import angle_rate, rotation, turned

Array = NDArray[np.float64]

_C = (0.0, 0.5, 0.5, 1.0)
_B = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
_FEW = 8
"""Degrees of freedom up to which the accelerations' Jacobians take less time than a product with each."""


class RungeKuttaWorlds:
    """Differentiates n worlds at once; arguments as of ``AdjointWorlds``."""

    def __init__(self, model: mujoco.MjModel, worlds: int, plan: Plan, *, varying: frozenset[str], threads: int) -> None:
        self.model, self.plan, self.n, self.h = model, plan, worlds, float(model.opt.timestep)
        self.nq, self.nv, self.na = int(model.nq), int(model.nv), int(model.na)
        self._solved = SolvedWorlds(model, worlds, plan, varying=varying, threads=threads)
        self._quaternions, plain = coordinates(model)
        self._in_q, self._in_v = plain.T

    def differentiate(self, state: Array, action: Array, force: Array | None, cotangent: Array | None, wanted: frozenset[str],
                      fields: Mapping[str, Array]) -> dict[str, Array]:
        """Return products of cotangents with a step's Jacobian; see ``AdjointWorlds.differentiate``."""
        states, angles = self._stages(state, action, force, fields)
        stages = self.plan.stages
        # all stages depend on the state, so that every slope by it is needed whatever is wanted
        self._solved.look(states.reshape(-1, states.shape[2]), action.repeat(stages, 0), None if force is None else force.repeat(stages, 0),
                          wanted | {"state"}, fields)
        blocks, size = None, self.nv + self.na
        if cotangent is None or self.nv <= _FEW:
            blocks = self._pull(np.broadcast_to(np.eye(size), (self.n * stages, size, size)), wanted, slice(None))
        if cotangent is None:
            cotangent = np.broadcast_to(np.eye(self.nv + size), (self.n, self.nv + size, self.nv + size))
        return self._chain(cotangent, blocks, states, angles, wanted, fields)

    def _stages(self, state: Array, action: Array, force: Array | None, fields: Mapping[str, Array]) -> tuple[Array, Array]:
        """Solve all stages; return their states [n, 4, nx], and the changes φ of position that lead there and to the end [n, 5, nv]."""
        n, nq, nv, solved = self.n, self.nq, self.nv, self._solved
        q, v, w = state[:, :nq], state[:, nq : nq + nv], state[:, nq + nv :]
        states, angles = np.empty((n, 4, state.shape[1])), np.zeros((n, 5, nv))
        rates = np.empty((4, n, nv))
        for i, c in enumerate(_C):
            if i:
                a, w_rate = solved.acceleration[i - 1 :: 4], solved.memory_rate[i - 1 :: 4]
                angles[:, i] = self.h * c * rates[i - 1]
                states[:, i] = np.concatenate([self._moved(q, angles[:, i]), v + self.h * c * a, w + self.h * c * w_rate], 1)
            else:
                states[:, 0] = state
            rates[i] = states[:, i, nq : nq + nv]
            for _, first in self._quaternions if i else ():
                at = slice(first, first + 3)
                rates[i, :, at] = angle_rate(angles[:, i, at], rates[i, :, at])[0]
            solved.solve(states[:, i], action, force, fields, i)
        angles[:, 4] = self.h * _mean(rates)
        return states, angles

    def _chain(self, cotangent: Array, blocks: dict[str, Array] | None, states: Array, angles: Array, wanted: frozenset[str],
               fields: Mapping[str, Array]) -> dict[str, Array]:
        """Pull cotangents [n, m, ndx] back, stage by stage; velocity and activation go together as y."""
        h, nq, nv = self.h, self.nq, self.nv
        turn, spread = self._turning(angles[:, 4])
        to_angle, start_q, start_y = h * spread(cotangent[:, :, :nv]), turn(cotangent[:, :, :nv]), cotangent[:, :, nv:]
        to_rate: Array = h * start_y
        if self.na:
            rate = _mean(self._solved.memory_rate.reshape(self.n, 4, self.na).transpose(1, 0, 2))
            kept, by_rate = memory_slopes(self.model, states[:, 0, nq + nv :], rate, fields)
            to_rate[:, :, nv:] = start_y[:, :, nv:] * by_rate[:, None]
            start_y = np.concatenate([start_y[:, :, :nv], start_y[:, :, nv:] * kept[:, None]], 2)
        total: dict[str, Array] = {}
        later_k: Array | float = 0.0  # what the next stage asks of this one's
        later_rate: Array | float = 0.0
        for i in reversed(range(4)):
            to_k, onto = _B[i] * to_angle + later_k, _B[i] * to_rate + later_rate
            found = self._pull(onto, wanted, slice(i, None, 4)) if blocks is None else {n: onto @ x[i::4] for n, x in blocks.items()}
            for name in wanted & found.keys():
                total[name] = total[name] + found[name] if name in total else found[name]
            by_velocity, by_angle = self._rates(angles[:, i], states[:, i, nq : nq + nv])
            to_q, to_y = found["position"], found["y"]
            to_y[:, :, :nv] += by_velocity(to_k)
            start_y = start_y + to_y
            if i:
                turn, spread = self._turning(angles[:, i])
                later_k, later_rate = h * _C[i] * (spread(to_q) + by_angle(to_k)), h * _C[i] * to_y
            start_q = start_q + (turn(to_q) if i else to_q)
        total["state"] = np.concatenate([start_q, start_y], 2)
        total.setdefault("action", np.zeros((*cotangent.shape[:2], 0)))
        return {name: total[name] for name in wanted}

    def _pull(self, onto: Array, wanted: frozenset[str], at: slice) -> dict[str, Array]:
        """Return products of cotangents [n, m, nv + na] of acceleration and rate of activation, by all that these depend on."""
        solved, nv = self._solved, self.nv
        mu = solve_rows(solved.hessian[at], onto[:, :, :nv])
        found = solved.pull_forces(mu, wanted | {"state"}, at) | solved.pull_contacts(mu, wanted, at)
        found |= solved.pull_differences(mu, [(-mu, solved.acceleration[at])], onto[:, :, nv:], at)
        found["y"] = np.concatenate([found["velocity"], found["activation"]], 2) if self.na else found["velocity"]
        return {name: x for name, x in found.items() if name in wanted or name in ("position", "y")}

    def _moved(self, q: Array, angle: Array) -> Array:
        """Return q ⊞ φ, shape [n, nq]."""
        moved = np.empty_like(q)
        moved[:, self._in_q] = q[:, self._in_q] + angle[:, self._in_v]
        for first, v in self._quaternions:
            moved[:, first : first + 4] = turned(q[:, first : first + 4], angle[:, v : v + 3])
        return moved

    def _turning(self, angle: Array) -> tuple[_Blocks, _Blocks]:
        """Return d (q ⊞ φ) / d q and / d φ, on the tangent."""
        pairs = [rotation(angle[:, v : v + 3]) for _, v in self._quaternions]
        return self._blocks([x for x, _ in pairs]), self._blocks([x for _, x in pairs])

    def _rates(self, angle: Array, velocity: Array) -> tuple[_Blocks, _Blocks]:
        """Return d k / d v and d k / d φ."""
        pairs = [angle_rate(angle[:, v : v + 3], velocity[:, v : v + 3])[1:] for _, v in self._quaternions]
        return self._blocks([x for x, _ in pairs]), self._blocks([x for _, x in pairs], rest=0.0)

    def _blocks(self, blocks: list[Array], rest: float = 1.0) -> _Blocks:
        return _Blocks([v for _, v in self._quaternions], blocks, rest)


class _Blocks:
    """A matrix that is a multiple of the identity but for blocks on its diagonal, one a quaternion."""

    def __init__(self, places: list[int], blocks: list[Array], rest: float) -> None:
        self._places, self._matrices, self._rest = places, blocks, rest

    def __call__(self, rows: Array) -> Array:
        """Return rows [n, m, nv] times it."""
        if not self._places and self._rest == 1.0:
            return rows
        product = self._rest * rows
        for v, block in zip(self._places, self._matrices, strict=True):
            product[:, :, v : v + 3] = rows[:, :, v : v + 3] @ block
        return product


def _mean(rates: Array) -> Array:
    """Return the mean over the stages, the first axis."""
    return np.asarray((rates[0] + 2 * (rates[1] + rates[2]) + rates[3]) / 6)
