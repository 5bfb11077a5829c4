"""Gradients of a MuJoCo step at its switches: of the step's mean over small random moves of the state that cross them.

Next to a switch, where a contact opens or starts to slide, the gradient of a step says nothing of what lies behind. A contact that opens
is more than a kink: it starts with a force, so that the next velocity jumps, and the mean of gradients is not the gradient of the mean
(Suh et al. 2022, Do differentiable simulators give better policy gradients?). With moves δ = σ ε, ε ~ N(0, 1), in pairs ±δ, and g the
mean of the gradients at the moved states,

    ∇ E f(x ⊞ δ) = g + E (½ (f(x ⊞ δ) ⊖ f(x ⊞ -δ)) - g δ) ε / σ

counts the jumps too, and varies by what is not linear alone. By action, force and parameters it is the mean of the gradients. All this
holds where the moved worlds' constraints differ from one another in which there are and how they act: whether a row acts, holds or
slides. Everywhere else the gradient stays that of the state itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from residual_mbrl.physics.mujoco_adjoint import StepAdjoint
from residual_mbrl.physics.numeric_step import Gradients, Inputs
from residual_mbrl.spaces import StateSpace

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """How far the state is moved.

    Args:
        position: Standard deviation of moves of positions [m or rad].
        velocity: Of velocities [m/s or rad/s].
        samples: Moved states of each world, an even number.
        seed: Seed of the moves, which are the same in every step.
    """

    position: float = 1e-4
    velocity: float = 1e-2
    samples: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not (self.position >= 0 and self.velocity >= 0 and self.samples > 0 and self.samples % 2 == 0):
            raise ValueError(f"Smoothing: expected position, velocity >= 0 and an even number of samples, received {self.position}, "
                             f"{self.velocity}, {self.samples}")


class SmoothedAdjoint:
    """``StepAdjoint`` with smoothing; arguments of its methods as there.

    Args:
        adjoint: Of the single states.
        step: The step itself, from inputs to next states [N, nx].
        space: Manifold of the state.
        smoothing: How far to move.

    Attributes:
        smoothed: Worlds of the last call whose gradient is a mean, shape [N].
    """

    def __init__(self, adjoint: StepAdjoint, step: Callable[[Inputs], Array], space: StateSpace, smoothing: Smoothing) -> None:
        self._adjoint, self._step, self._space, self._count = adjoint, step, space, smoothing.samples
        rng = np.random.default_rng(smoothing.seed)
        half = rng.standard_normal((smoothing.samples // 2, 2 * space.nv))
        moves = np.zeros((smoothing.samples, space.ndx))
        moves[:, : 2 * space.nv] = np.concatenate([half, -half]) * np.repeat([smoothing.position, smoothing.velocity], space.nv)
        self._moves, self._ahead = torch.from_numpy(moves), moves[: smoothing.samples // 2]
        size = np.square([*np.repeat([smoothing.position, smoothing.velocity], space.nv), *np.zeros(space.ndx - 2 * space.nv)])
        self._scores = np.divide(moves, size, out=np.zeros_like(moves), where=size > 0)[: smoothing.samples // 2]
        self.smoothed: NDArray[np.bool_] = np.zeros(0, bool)

    def pull_back(self, inputs: Inputs, cotangent: Array, wanted: Collection[str], *, substeps: int = 1,
                  fields: Mapping[str, Array] | None = None) -> Gradients:
        """Return the vector-Jacobian product of a step."""
        found = self._adjoint.pull_back(inputs, cotangent, wanted, substeps=substeps, fields=fields)
        at = self.find(inputs, substeps=substeps, fields=fields)
        if not len(at):
            return found
        moved, own = self._moved(inputs, fields or {}, at)
        means = self._adjoint.pull_back(moved, np.repeat(cotangent[at], self._count, 0), wanted, substeps=substeps, fields=own)
        parts = {n: self._put(x, getattr(means, n), at) for n in ("state", "action", "force") if (x := getattr(found, n)) is not None}
        if "state" in parts:
            along = np.einsum("nki,ni->nk", self._across(moved), cotangent[at])
            parts["state"][at] += (along - parts["state"][at] @ self._ahead.T) @ self._scores * (2 / self._count)
        return replace(found, **parts, values={n: self._put(x, means.values[n], at) for n, x in found.values.items()})

    def jacobian(self, inputs: Inputs, wanted: Collection[str], *, substeps: int = 1,
                 fields: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Return Jacobians by name."""
        found = self._adjoint.jacobian(inputs, wanted, substeps=substeps, fields=fields)
        at = self.find(inputs, substeps=substeps, fields=fields)
        if not len(at):
            return found
        moved, own = self._moved(inputs, fields or {}, at)
        means = self._adjoint.jacobian(moved, wanted, substeps=substeps, fields=own)
        placed = {n: self._put(x, means[n], at) for n, x in found.items()}
        if "state" in placed:
            rest = self._across(moved).transpose(0, 2, 1) - placed["state"][at] @ self._ahead.T
            placed["state"][at] += rest @ self._scores * (2 / self._count)
        return placed

    def _across(self, moved: Inputs) -> Array:
        """Return half of what lies between the next states of each pair of samples, shape [worlds, pairs, ndx]."""
        after = torch.from_numpy(self._step(moved)).unflatten(0, (-1, 2, self._count // 2))
        return 0.5 * self._space.difference(after[:, 0], after[:, 1]).numpy()

    def find(self, inputs: Inputs, *, substeps: int = 1, fields: Mapping[str, Array] | None = None) -> NDArray[np.intp]:
        """Return the worlds that moves take across a switch."""
        every = np.arange(len(inputs.state))
        moved, own = self._moved(inputs, fields or {}, every)
        signs = self._adjoint.signatures(moved, substeps=substeps, fields=own).reshape(len(every), self._count)
        self.smoothed = (signs != signs[:, :1]).any(1) & np.isfinite(inputs.state).all(1)
        return np.flatnonzero(self.smoothed)

    def _moved(self, inputs: Inputs, fields: Mapping[str, Array], at: NDArray[np.intp]) -> tuple[Inputs, dict[str, Array]]:
        """Return all samples of some worlds, those of a world in a row, and their model fields."""
        state = self._space.integrate(torch.from_numpy(inputs.state[at])[:, None].expand(-1, self._count, -1),
                                      self._moves.expand(len(at), -1, -1)).flatten(0, 1).numpy()
        action, force = (None if x is None else np.repeat(x[at], self._count, 0) for x in (inputs.action, inputs.force))
        assert action is not None  # noqa: S101  # of every input
        values = {n: np.repeat(x[at], self._count, 0) for n, x in inputs.values.items()}
        own = {n: np.repeat(x[at], self._count, 0) for n, x in fields.items()}
        return Inputs(state=state, action=action, force=force, values=values), own

    def _put(self, single: Array, moved: Array, at: NDArray[np.intp]) -> Array:
        """Return gradients of which those of some worlds are means over their samples."""
        placed = single.copy()
        placed[at] = moved.reshape(len(at), self._count, *moved.shape[1:]).mean(1)
        return placed
