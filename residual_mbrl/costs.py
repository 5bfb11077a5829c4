"""Costs of a rollout: what a planner minimises, summed over the steps of each world."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from residual_mbrl.baselines import WarpFunction
from residual_mbrl.physics.tangent_warp import difference_form
from residual_mbrl.spaces import StateSpace


class WarpCost(NamedTuple):
    """A cost as Warp functions of one world: state x, action u and reference r."""

    key: tuple[object, ...]
    """Tells this cost from others: equal keys share compiled code."""
    running: WarpFunction
    """``running(x, u, r) -> float``."""
    terminal: WarpFunction
    """``terminal(x, r) -> float``."""
    squares: WarpFunction | None = None
    """``squares(x, u, r) -> (d, w)``, one after another: ``Σ w d²`` is ``running``, or with ``curved`` a part of it, for Gauss-Newton."""
    curved: WarpFunction | None = None
    """``curved(x, u, r) -> float``: what there is besides squares."""
    terminal_squares: WarpFunction | None = None
    """``terminal_squares(x, r) -> (d, w)``."""
    terminal_curved: WarpFunction | None = None
    """``terminal_curved(x, r) -> float``."""


class CostParts(NamedTuple):
    """A cost as ``Σ w d² + rest``, for second-order methods: of the squares only first derivatives of d are taken (Gauss-Newton)."""

    values: Tensor | None
    """d, shape [*batch, m]; None where there are no squares."""
    weights: Tensor | None
    """w, shape [*batch, m]."""
    rest: Tensor | None
    """Shape [*batch]; None where the squares are all."""


class Cost(ABC):
    """``Σ_t running(x_t, u_t, r_t) + terminal(x_H, r_H)``, with references r that may change from step to step and from world to world.

    Whatever a controller changes from tick to tick (a target, a weight) belongs into the references: they are data, and the cost's
    functions are compiled once.
    """

    @property
    @abstractmethod
    def references(self) -> Float[Tensor, "*batch horizon_1 nr"]:
        """Reference of every step and of the end, [*#batch, H + 1, nr]; or one for all steps and one for the end, [*#batch, 2, nr]."""

    @abstractmethod
    def running(self, state: Float[Tensor, "*batch nx"], action: Float[Tensor, "*batch nu"], reference: Tensor) -> Float[Tensor, "*batch"]:
        """Return the cost of a step, shape [*batch]."""

    @abstractmethod
    def terminal(self, state: Float[Tensor, "*batch nx"], reference: Tensor) -> Float[Tensor, "*batch"]:
        """Return the cost of the last state, shape [*batch]."""

    def parts(self, state: Float[Tensor, "*batch nx"], action: Float[Tensor, "*batch nu"] | None, reference: Tensor) -> CostParts:
        """Return the cost of a step, or without an action that of the last state, in parts."""
        return CostParts(None, None, self.terminal(state, reference) if action is None else self.running(state, action, reference))

    def total(self, states: Float[Tensor, "*batch horizon_1 nx"], actions: Float[Tensor, "*batch horizon nu"],
              references: Tensor | None = None) -> Float[Tensor, "*batch"]:
        """Return the cost of whole trajectories, shape [*batch], under its own references unless others are given."""
        references = (self.references if references is None else references).to(states)
        running = self.running(states[..., :-1, :], actions, references[..., :-1, :]).sum(-1)
        return running + self.terminal(states[..., -1, :], references[..., -1, :])

    def warp_form(self) -> WarpCost | None:
        """Return the same functions in Warp; None where there is only the torch form."""
        return None


class QuadraticCost(Cost):
    """``Σ_t q·(x_t ⊖ g_t)² + r·u_t² + q_H·(x_H ⊖ g_H)²`` with diagonal weights, differences on the tangent space.

    Weights and targets may be of positions and velocities alone; what else the state holds then has no weight.

    Args:
        space: Of the model, residual memory included.
        state: Weights q, shape [*#batch, ndx].
        action: Weights r, shape [*#batch, nu].
        terminal: Weights q_H, shape [*#batch, ndx]; q where missing.
        target: States g, shape [*#batch, nx], or [*#batch, H + 1, nx] with ``trajectory``; zero where missing.
        trajectory: Whether the target changes from step to step.

    Raises:
        ValueError: if a shape does not fit, or quaternions have no target.
    """

    def __init__(self, *, space: StateSpace, state: Tensor, action: Tensor, terminal: Tensor | None = None, target: Tensor | None = None,
                 trajectory: bool = False) -> None:
        state, terminal = (_filled(x, 2 * space.nv, space.ndx) for x in (state, terminal))
        target = _filled(target, space.nq + space.nv, space.nx)
        for name, x, n in (("state", state, space.ndx), ("action", action, space.nu), ("terminal", terminal, space.ndx),
                           ("target", target, space.nx)):
            if x is not None and x.shape[-1:] != (n,):
                raise ValueError(f"QuadraticCost: {name} must have shape [..., {n}], received {tuple(x.shape)}")
        if target is None and space.quaternions:
            raise ValueError("QuadraticCost: a state with quaternions needs a target")
        self.space = space
        goal = torch.zeros(space.nx, dtype=state.dtype, device=state.device) if target is None else target
        if not trajectory:
            goal = goal.unsqueeze(-2)
        weights = _joined(state, action)
        last = state if terminal is None else terminal
        end = _joined(goal[..., -1:, :], torch.cat([last, last.new_zeros(*last.shape[:-1], space.nu)], -1).unsqueeze(-2))
        steps = _joined(goal[..., :-1, :] if trajectory else goal, weights.unsqueeze(-2))
        batch = torch.broadcast_shapes(steps.shape[:-2], end.shape[:-2])
        self._references = torch.cat([steps.expand(*batch, *steps.shape[-2:]), end.expand(*batch, *end.shape[-2:])], -2)

    @property
    def references(self) -> Tensor:
        """Targets and weights, the last row those of the end, shape [*#batch, 2 or H + 1, nr]."""
        return self._references

    def running(self, state: Tensor, action: Tensor, reference: Tensor) -> Tensor:
        """Return ``q·(x ⊖ g)² + r·u²``, shape [*batch]."""
        target, q, r = reference.split([self.space.nx, self.space.ndx, self.space.nu], -1)
        total: Tensor = (q * self.space.difference(state, target).square()).sum(-1) + (r * action.square()).sum(-1)
        return total

    def terminal(self, state: Tensor, reference: Tensor) -> Tensor:
        """Return ``q_H·(x ⊖ g)²``, shape [*batch]."""
        target, q, _ = reference.split([self.space.nx, self.space.ndx, self.space.nu], -1)
        total: Tensor = (q * self.space.difference(state, target).square()).sum(-1)
        return total

    def parts(self, state: Tensor, action: Tensor | None, reference: Tensor) -> CostParts:
        """Return squares alone; for a subclass that has changed the functions, their value."""
        if any(getattr(type(self), n) is not getattr(QuadraticCost, n) for n in ("running", "terminal")):
            return super().parts(state, action, reference)
        target, q, r = reference.split([self.space.nx, self.space.ndx, self.space.nu], -1)
        d = self.space.difference(state, target)
        return CostParts(d, q, None) if action is None else CostParts(torch.cat([d, action], -1), torch.cat([q, r], -1), None)

    def warp_form(self) -> WarpCost | None:
        """Return the same functions in Warp; None for a subclass that has changed the torch form."""
        if any(getattr(type(self), n) is not getattr(QuadraticCost, n) for n in ("running", "terminal")):
            return None
        nx, ndx, nu, difference = self.space.nx, self.space.ndx, self.space.nu, difference_form(self.space)

        def terminal(x: Any, r: Any) -> Any:
            total: Any = 0.0
            for i, d in enumerate(difference(x, r[0:nx])):
                total = total + r[nx + i] * d * d
            return total

        def running(x: Any, u: Any, r: Any) -> Any:
            total = terminal(x, r)
            for i in range(nu):
                total = total + r[nx + ndx + i] * u[i] * u[i]
            return total

        def squares(x: Any, u: Any, r: Any) -> Any:
            return [*difference(x, r[0:nx]), *(u[i] for i in range(nu)), *(r[nx + i] for i in range(ndx + nu))]

        def terminal_squares(x: Any, r: Any) -> Any:
            return [*difference(x, r[0:nx]), *(r[nx + i] for i in range(ndx))]

        return WarpCost(("quadratic", nx, nu, self.space.nv, self.space.quaternions), running, terminal, squares,
                        terminal_squares=terminal_squares)


def _filled(x: Any, known: int, size: int) -> Any:
    """Return entries of positions and velocities with zeros for the rest; anything else as it is."""
    return x if x is None or x.shape[-1:] != (known,) else torch.cat([x, x.new_zeros(*x.shape[:-1], size - known)], -1)


def _joined(a: Tensor, b: Tensor) -> Tensor:
    batch = torch.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    return torch.cat([a.expand(*batch, a.shape[-1]), b.expand(*batch, b.shape[-1])], -1)
