"""One step of a model with its derivative by state, chosen parameters and last-layer weights, quick enough for a controller.

A fused rollout takes many worlds, each with weights of its own, back in one launch. So the Jacobian's rows are worlds: all start
alike, and the gradient that each is given picks one row. Models that cannot be fused take the same rows by torch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from residual_mbrl.dynamics import ResidualDynamics, ensemble
from residual_mbrl.residuals.networks import Perceptron
from residual_mbrl.rollouts import rollout

Array = NDArray[np.float64]


class Step(NamedTuple):
    """A step and its derivative on the tangent space."""

    after: Array
    """Next state, shape [nx]."""
    by_state: Array
    """Rows asked for, by the tangent of the state before, shape [rows, ndx]."""
    by_unknowns: Array
    """By parameters [per unit], then weights, shape [rows, n]."""


class StepSensitivity:
    """The step of a model as a function of state, action, parameters and last-layer weights.

    Args:
        dynamics: The model; copied.
        names: Physical parameters to differentiate by.
        weights: Whether last layers (weights and biases) of all networks are differentiated by.
        rows: Tangent entries of the next state that are wanted.
    """

    def __init__(self, dynamics: ResidualDynamics, names: Sequence[str], *, weights: bool, rows: Sequence[int]) -> None:
        self.space, self.rows, self.names = dynamics.space, list(rows), tuple(names)
        unknown = [n for n in names if n not in dynamics.values]
        if unknown or not (names or weights) or not rows:
            raise ValueError(f"StepSensitivity: expected rows and parameters of {sorted(dynamics.values)} or weights, received {unknown}")
        if dynamics.space.ndx <= max(rows):
            raise ValueError(f"StepSensitivity: rows must lie below {dynamics.space.ndx}, received {list(rows)}")
        # alike worlds of one model where no weights are learned; else each its own member, so that its weights' gradient is its own
        plain = copy.deepcopy(dynamics).requires_grad_(False)
        self._dynamics = ensemble([plain] * len(rows)) if weights else plain
        self._dynamics.requires_grad_(False)
        self._layers = _last_layers(self._dynamics) if weights else []
        if weights and not self._layers:
            raise ValueError("StepSensitivity: the model has no network whose last layer could be adapted")
        for w in self._layers:
            w.requires_grad_()
        self._values = torch.tensor([[dynamics.values[n]] * len(rows) for n in names], dtype=torch.float64).reshape(len(names), len(rows))
        self._leaves = [v.requires_grad_() for v in self._values.clone().unbind(0)]

    @property
    def unknowns(self) -> Array:
        """Parameters and weights as they are, shape [n]."""
        parts = [v.detach()[:1] for v in self._leaves] + [w.detach()[0].flatten() for w in self._layers]
        return np.asarray(torch.cat(parts).numpy()).copy()

    def set(self, unknowns: Array) -> None:
        """Set parameters and weights, shape [n]."""
        with torch.no_grad():
            for v, x in zip(self._leaves, unknowns, strict=False):
                v.fill_(float(x))
            i = len(self._leaves)
            for w in self._layers:
                n = w[0].numel()
                w.copy_(torch.from_numpy(unknowns[i : i + n]).view_as(w[0]))
                i += n

    def __call__(self, state: Array, action: Array) -> Step:
        """Advance a step from a whole state [nx], residual memory included, under an action [nu]."""
        r = len(self.rows)
        x = torch.from_numpy(state).expand(r, -1).clone().requires_grad_()
        u = torch.from_numpy(action).expand(r, 1, -1)
        states = rollout(self._dynamics, x, u, dict(zip(self.names, self._leaves, strict=True)))
        after = np.asarray(states.detach()[0, 1].numpy()).copy()
        seeds = torch.zeros_like(states)
        seeds[:, 1] = torch.from_numpy(_chart(self.space.quaternions, after, self.space.ndx)[self.rows])
        found = torch.autograd.grad(states, [x, *self._leaves, *self._layers], seeds, allow_unused=True)
        flat = [np.zeros((r, leaf[0].numel())) if g is None else g.reshape(r, -1).numpy()
                for g, leaf in zip(found[1:], [*self._leaves, *self._layers], strict=True)]
        by_state = _onto_tangent(self.space.quaternions, state, found[0].numpy())
        return Step(after, by_state, np.concatenate(flat, 1))

    def model(self, unknowns: Array, like: ResidualDynamics) -> ResidualDynamics:
        """Return a copy of a model of this structure with these parameters and weights."""
        made = copy.deepcopy(like).with_values({n: float(x) for n, x in zip(self.names, unknowns, strict=False)})
        i = len(self.names)
        with torch.no_grad():
            for w in _last_layers(made) if self._layers else []:
                w.copy_(torch.from_numpy(unknowns[i : i + w.numel()]).view_as(w))
                i += w.numel()
        return made


def _last_layers(dynamics: ResidualDynamics) -> list[nn.Parameter]:
    networks = [m for m in dynamics.modules() if isinstance(m, Perceptron)]
    return [w for network in networks for w in (network.weights[-1], network.biases[-1])]


def _chart(quaternions: Sequence[tuple[int, int]], state: Array, ndx: int) -> Array:
    """Return the derivative of ``x ⊖ state`` by x at the state, shape [ndx, nx]."""
    chart = np.zeros((ndx, len(state)))
    place = _plain(quaternions, len(state))
    chart[place[:, 1], place[:, 0]] = 1.0
    for q0, v0 in quaternions:
        chart[v0 : v0 + 3, q0 : q0 + 4] = 2 * _turning(state[q0 : q0 + 4]).T
    return chart


def _onto_tangent(quaternions: Sequence[tuple[int, int]], state: Array, by_state: Array) -> Array:
    """Return a derivative by the tangent of a state from that by its entries, [rows, nx] to [rows, ndx]."""
    place = _plain(quaternions, len(state))
    out = np.zeros((len(by_state), len(state) - len(quaternions)))
    out[:, place[:, 1]] = by_state[:, place[:, 0]]
    for q0, v0 in quaternions:
        out[:, v0 : v0 + 3] = by_state[:, q0 : q0 + 4] @ (0.5 * _turning(state[q0 : q0 + 4]))
    return out


def _plain(quaternions: Sequence[tuple[int, int]], nx: int) -> NDArray[np.int64]:
    """Return pairs (place in the state, place in the tangent) of all entries that are no quaternion's."""
    inside = [i for q0, _ in quaternions for i in range(q0, q0 + 4)]
    return np.array([(i, i - sum(i > q0 for q0, _ in quaternions)) for i in range(nx) if i not in inside], dtype=np.int64)


def _turning(q: Array) -> Array:
    """Return twice the derivative of ``q exp(r)`` by r at zero, shape [4, 3]; its columns are orthonormal for a unit quaternion."""
    w, x, y, z = q
    return np.array([[-x, -y, -z], [w, -z, y], [z, w, -x], [-y, x, w]])
