"""A chain of hinges as equations, from its rigid bodies, and the cost of bringing its tool to a pose: crocoddyl's arm in one kernel.

Every function here is written once, on scalars: tensors for the torch form, symbols for the kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from residual_mbrl.baselines import Parameters, Values
from residual_mbrl.costs import Cost, CostParts, WarpCost
from residual_mbrl.physics.mechanical import MechanicalBaseline
from residual_mbrl.physics.mechanical_warp import WarpTerms
from residual_mbrl.spaces import StateSpace

Vector = list[Any]
ZERO = 1e-9
"""Entries of rotations below this are zero: a chain of right angles has few terms."""


class Chain:
    """Geometry and inertia of the hinges, each about its own z.

    Args:
        bodies: Each with "place" (rotation and translation in the parent at zero angle), "mass", "centre", "inertia" about it,
            and whether its hinge is "endless", so that angles a turn apart are the same.
        tool: Rotation and translation in the last body.
        gravity: Of the world [m/s²], shape [3].
    """

    def __init__(self, bodies: Sequence[Mapping[str, Any]], tool: Mapping[str, Any], gravity: Sequence[float]) -> None:
        self.n = len(bodies)
        self.turns = tuple(_clean(b["place"]["rotation"]) for b in bodies)
        self.offsets = tuple(tuple(float(x) for x in b["place"]["translation"]) for b in bodies)
        self.masses = tuple(float(b["mass"]) for b in bodies)
        self.centres = tuple(tuple(float(x) for x in b["centre"]) for b in bodies)
        self.inertias = tuple(tuple(tuple(float(x) for x in row) for row in b["inertia"]) for b in bodies)
        self.endless = tuple(bool(b["endless"]) for b in bodies)
        self.tool = _clean(tool["rotation"]), tuple(float(x) for x in tool["translation"])
        self.gravity = tuple(float(g) for g in gravity)

    def rotations(self, ops: Any, q: Any) -> list[list[Vector]]:
        """Return each hinge's rotation, child to parent."""
        found = []
        for j in range(self.n):
            s, c, r = ops.sin(q[j]), ops.cos(q[j]), self.turns[j]
            found.append([[_sum(_by(row[0], c), _by(row[1], s)), _sum(_by(row[1], c), _by(-row[0], s)), row[2]] for row in r])
        return found

    def bias(self, ops: Any, q: Any, v: Any) -> Vector:
        """Return Coriolis, centrifugal and gravity torques [N·m] by the recursive Newton-Euler equations."""
        turns, zero = self.rotations(ops, q), [0.0, 0.0, 0.0]
        w, dw, a = zero, zero, [-g for g in self.gravity]
        forces, torques = [], []
        for j in range(self.n):
            p, c, m = self.offsets[j], self.centres[j], self.masses[j]
            a = _back(turns[j], _add(a, _cross(dw, p), _cross(w, _cross(w, p))))
            w, dw = _back(turns[j], w), _back(turns[j], dw)
            dw = [_sum(dw[0], _by(w[1], v[j])), _sum(dw[1], _by(_neg(w[0]), v[j])), dw[2]]
            w = [w[0], w[1], _sum(w[2], v[j])]
            forces.append(_scale(m, _add(a, _cross(dw, c), _cross(w, _cross(w, c)))))
            torques.append(_add(_times(self.inertias[j], dw), _cross(w, _times(self.inertias[j], w))))
        out: Vector = [0.0] * self.n
        f, t = zero, zero
        for j in reversed(range(self.n)):
            f, t = _add(forces[j], f), _add(torques[j], _cross(self.centres[j], forces[j]), t)
            out[j] = t[2]
            f = _times(turns[j], f)
            t = _add(_times(turns[j], t), _cross(self.offsets[j], f))
        return out

    def mass(self, ops: Any, q: Any) -> Vector:
        """Return the mass matrix by rows, from composite bodies."""
        turns, n = self.rotations(ops, q), self.n
        rows: list[Vector] = [[0.0] * n for _ in range(n)]
        m: Any = 0.0
        h: Vector = [0.0, 0.0, 0.0]
        inertia: list[Vector] = [[0.0] * 3 for _ in range(3)]
        for j in reversed(range(n)):
            own, c = self.masses[j], self.centres[j]
            m, h = m + own, _add(h, [own * x for x in c])
            square = sum(x * x for x in c)
            inertia = [[_sum(inertia[i][k], self.inertias[j][i][k] + own * ((square if i == k else 0.0) - c[i] * c[k])) for k in range(3)]
                       for i in range(3)]
            f: Vector = [_neg(h[1]), h[0], 0.0]  # z × h
            t = [inertia[0][2], inertia[1][2], inertia[2][2]]
            rows[j][j] = t[2]
            for i in reversed(range(j)):
                f = _times(turns[i + 1], f)
                t = _add(_times(turns[i + 1], t), _cross(self.offsets[i + 1], f))
                rows[i][j] = rows[j][i] = t[2]
            if j:
                p, r = self.offsets[j], turns[j]
                turned = [_times(r, [inertia[k][i] for k in range(3)]) for i in range(3)]  # columns of R I
                inertia = [_times(r, [turned[k][i] for k in range(3)]) for i in range(3)]
                h = _times(r, h)
                hp = sum((_by(2.0 * p[k], h[k]) for k in range(3)), 0.0)
                pp = sum(x * x for x in p)
                shift = [[m * ((pp if i == k else 0.0) - p[i] * p[k]) for k in range(3)] for i in range(3)]
                inertia = [[_sum(inertia[i][k], _by(-p[i], h[k]), _by(-p[k], h[i]), shift[i][k], hp if i == k else 0.0)
                            for k in range(3)] for i in range(3)]
                h = _add(h, [m * x for x in p])
        return [x for row in rows for x in row]

    def away(self, ops: Any, x: Any, start: Any) -> Vector:
        """Return the difference of two states, the shorter way round where a hinge is endless."""
        found = [x[i] - start[i] for i in range(2 * self.n)]
        return [ops.atan2(ops.sin(d), ops.cos(d)) if i < self.n and self.endless[i] else d for i, d in enumerate(found)]

    def reach(self, ops: Any, q: Any, goal: Sequence[float]) -> Vector:
        """Return the logarithm of the tool's pose in a frame at the goal that is parallel to the world's: translation, then rotation."""
        turns = self.rotations(ops, q)
        p, r = list(self.tool[1]), [list(row) for row in self.tool[0]]
        for j in reversed(range(self.n)):
            p = _add(self.offsets[j], _times(turns[j], p))
            columns = [_times(turns[j], [r[k][i] for k in range(3)]) for i in range(3)]
            r = [[columns[i][k] for i in range(3)] for k in range(3)]
        p = [x - g for x, g in zip(p, goal, strict=True)]
        axis = [0.5 * (r[2][1] - r[1][2]), 0.5 * (r[0][2] - r[2][0]), 0.5 * (r[1][0] - r[0][1])]
        s = ops.sqrt(axis[0] * axis[0] + axis[1] * axis[1] + axis[2] * axis[2] + 1e-10)
        c = 0.5 * (r[0][0] + r[1][1] + r[2][2] - 1.0)
        angle = ops.atan2(s, c)
        w = [angle / s * x for x in axis]
        large = angle > 0.03
        safe = ops.where(large, angle, angle * 0.0 + 1.0)
        k = ops.where(large, 1.0 / (safe * safe) - (1.0 + ops.cos(safe)) / (2.0 * safe * ops.sin(safe)), angle * angle / 720.0 + 1.0 / 12.0)
        wp = _cross(w, p)
        return [*(_sum(a, -0.5 * b, k * d) for a, b, d in zip(p, wp, _cross(w, wp), strict=True)), *w]


class SerialArm(MechanicalBaseline):
    """A chain of hinges with a torque at each."""

    def __init__(self, chain: Chain, *, dt: float) -> None:
        names = range(1, chain.n + 1)
        super().__init__(StateSpace(position=tuple(f"joint{i}" for i in names), velocity=tuple(f"rate{i}" for i in names),
                                    action=tuple(f"torque{i}" for i in names)), Parameters(), dt=dt)
        self.chain = chain

    def mass_matrix(self, q: Tensor, p: Values) -> Tensor:
        """Return M(q), shape [*batch, n, n]."""
        return _stack(self.chain.mass(torch, q.unbind(-1)), q).unflatten(-1, (self.chain.n, self.chain.n))

    def smooth_force(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        """Return torques less bias, shape [*batch, n]."""
        return u - _stack(self.chain.bias(torch, q.unbind(-1), v.unbind(-1)), q)

    def potential_energy(self, q: Tensor, p: Values) -> Tensor:
        """Not needed here."""
        raise NotImplementedError

    def warp_terms(self) -> WarpTerms:
        """Return the same terms on symbols."""
        import warp as wp  # noqa: PLC0415

        chain = self.chain
        vector, square = (wp.types.vector(length=n, dtype=wp.float32) for n in (chain.n, chain.n**2))

        def mass(q: Any, p: Any) -> Any:
            return square(*chain.mass(wp, q))

        def force(q: Any, v: Any, u: Any, p: Any) -> Any:
            return vector(*[u[i] - b for i, b in enumerate(chain.bias(wp, q, v))])

        return WarpTerms(mass, force)


class ReachCost(Cost):
    """``½ dt (|e|² + 0.1 |x - x_0|² + 0.1 |u|²)`` a step and ``500 |e|²`` at the end, e = log(goal⁻¹ tool), as in crocoddyl's example."""

    def __init__(self, arm: SerialArm, start: Tensor, goal: Sequence[float]) -> None:
        self.chain, self.goal, n = arm.chain, tuple(goal), arm.chain.n
        weight = 0.5 * arm.dt
        weights = [weight] * 6 + [0.1 * weight] * 3 * n
        last = [500.0] * 6 + [0.0] * 3 * n
        self._references = torch.stack([torch.cat([start, torch.tensor(w, dtype=start.dtype)]) for w in (weights, last)])

    @property
    def references(self) -> Tensor:
        """First state and weights, shape [2, nr]."""
        return self._references

    def running(self, state: Tensor, action: Tensor, reference: Tensor) -> Tensor:
        """Return the cost of a step."""
        return self._total(self.parts(state, action, reference))

    def terminal(self, state: Tensor, reference: Tensor) -> Tensor:
        """Return the cost of the last state."""
        return self._total(self.parts(state, None, reference))

    def parts(self, state: Tensor, action: Tensor | None, reference: Tensor) -> CostParts:
        """Return errors and weights."""
        n = self.chain.n
        d = _stack(self.chain.reach(torch, state.unbind(-1), self.goal), state)
        if action is not None:
            d = torch.cat([d, _stack(self.chain.away(torch, state.unbind(-1), reference.unbind(-1)), state), action], -1)
        return CostParts(d, reference[..., 2 * n : 2 * n + d.shape[-1]], None)

    def warp_form(self) -> WarpCost:
        """Return the same on symbols."""
        import warp as wp  # noqa: PLC0415

        chain, goal, n = self.chain, self.goal, self.chain.n

        def terminal_squares(x: Any, r: Any) -> Any:
            return [*chain.reach(wp, x, goal), *(r[2 * n + i] for i in range(6))]

        def squares(x: Any, u: Any, r: Any) -> Any:
            d = [*chain.reach(wp, x, goal), *chain.away(wp, x, r), *(u[i] for i in range(n))]
            return [*d, *(r[2 * n + i] for i in range(len(d)))]

        def total(found: list[Any]) -> Any:
            half, out = len(found) // 2, 0.0
            for d, w in zip(found[:half], found[half:], strict=True):
                out = w * d * d + out
            return out

        def running(x: Any, u: Any, r: Any) -> Any:
            return total(squares(x, u, r))

        def terminal(x: Any, r: Any) -> Any:
            return total(terminal_squares(x, r))

        key = "reach", n, goal, chain.turns, chain.offsets, chain.endless, chain.tool
        return WarpCost(key, running, terminal, squares, terminal_squares=terminal_squares)

    @staticmethod
    def _total(parts: CostParts) -> Tensor:
        assert parts.values is not None and parts.weights is not None
        total: Tensor = (parts.weights * parts.values.square()).sum(-1)
        return total


def _clean(matrix: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(round(x)) if abs(x - round(x)) < ZERO else float(x) for x in row) for row in matrix)


def _stack(values: Vector, like: Tensor) -> Tensor:
    return torch.stack([torch.as_tensor(v, dtype=like.dtype, device=like.device).expand(like.shape[:-1]) for v in values], -1)


def _none(x: Any) -> bool:
    return isinstance(x, float | int) and x == 0


def _by(a: Any, b: Any) -> Any:
    """Multiply, without the terms that are zero."""
    if _none(a) or _none(b):
        return 0.0
    if isinstance(a, float | int) and a == 1:
        return b
    return a * b


def _neg(a: Any) -> Any:
    return 0.0 if _none(a) else -a


def _sum(*terms: Any) -> Any:
    total: Any = 0.0
    for t in terms:
        total = total if _none(t) else t if _none(total) else total + t
    return total


def _add(*vectors: Sequence[Any]) -> Vector:
    return [_sum(*entries) for entries in zip(*vectors, strict=True)]


def _scale(a: Any, b: Sequence[Any]) -> Vector:
    return [_by(a, x) for x in b]


def _cross(a: Sequence[Any], b: Sequence[Any]) -> Vector:
    return [_sum(_by(a[i], b[k]), _neg(_by(a[k], b[i]))) for i, k in ((1, 2), (2, 0), (0, 1))]


def _times(m: Sequence[Sequence[Any]], x: Sequence[Any]) -> Vector:
    return [_sum(*(_by(a, b) for a, b in zip(row, x, strict=True))) for row in m]


def _back(m: Sequence[Sequence[Any]], x: Sequence[Any]) -> Vector:
    return [_sum(*(_by(m[k][i], x[k]) for k in range(3))) for i in range(3)]
