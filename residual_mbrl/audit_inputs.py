"""The inputs that a gradient audit moves: names, sizes and places of state, actions and parameters on the tangent space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from residual_mbrl.baselines import Parameter
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.rollouts import Backend, rollout
from residual_mbrl.spaces import StateSpace


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The rollout whose gradients are audited.

    Args:
        states: Visited states in float64, shape [*batch, H + 1, nx], the residuals' memory included.
        actions: Shape [*batch, H, nu].
        free: The parameters by which derivatives are taken.
    """

    states: Float[Tensor, "*batch horizon_1 nx"]
    actions: Float[Tensor, "*batch horizon nu"]
    free: tuple[Parameter, ...]

    @property
    def finite(self) -> Tensor:
        """Whether state and next state are finite, shape [*batch, H]."""
        finite = self.states.isfinite().all(-1)
        return finite[..., :-1] & finite[..., 1:]

    def action_sizes(self) -> Tensor:
        """Typical size of each action, at least 1 of its unit, shape [nu]."""
        return self.actions.flatten(0, -2).square().mean(0).sqrt().clamp_min(1.0)

    def parameter_sizes(self) -> Tensor:
        """Typical change of each free parameter, shape [np]."""
        return self.actions.new_tensor([p.scale for p in self.free])


def tangent_names(space: StateSpace) -> list[str]:
    """Return a name for every entry of a tangent vector: the state's, and for a rotation about a body axis "q.qx (rotation)"."""
    names: list[str] = []
    starts = [q0 for q0, _ in space.quaternions]
    turning = {i for q0 in starts for i in range(q0, q0 + 4)}
    for i, name in enumerate(space.position):
        if i not in turning:
            names.append(name)
        elif i not in starts:
            names.append(f"{name} (rotation)")
    return [*names, *space.velocity, *space.activation]


class MovedStep:
    """One step from every visited state as a function of moves ``(δx, δu, δp)``; worlds of no finite result are stepped elsewhere.

    Args:
        dynamics: The model.
        trial: Where to step.
        backend: What computes the step.
        dtype: In which precision.
    """

    def __init__(self, dynamics: ResidualDynamics, trial: Trial, *, backend: Backend, dtype: torch.dtype) -> None:
        self._dynamics, self._backend, self.dtype = dynamics, backend, dtype
        self.free = trial.free
        finite = trial.finite.unsqueeze(-1)
        states = torch.where(finite, trial.states[..., :-1, :], trial.states[..., :1, :])
        actions = torch.where(finite, trial.actions, trial.actions[..., :1, :])
        self._state, self._action = states.to(dtype).unsqueeze(-2), actions.to(dtype).unsqueeze(-2)
        with torch.no_grad():
            self._after = self._step(self._state, self._action, {})

    def __call__(self, moves: Float[Tensor, "*batch horizon moves n"]) -> Float[Tensor, "*batch horizon moves ndx"]:
        """Return how far each move takes the next state, on the tangent space."""
        space = self._dynamics.space
        dx, du, dp = moves.to(self.dtype).split([space.ndx, space.nu, len(self.free)], -1)
        state = space.integrate(self._state.expand(*dx.shape[:-1], space.nx), dx)
        values = {p.name: self._dynamics.values[p.name] + dp[..., i] for i, p in enumerate(self.free)}
        return space.difference(self._step(state, self._action + du, values), self._after)

    def _step(self, state: Tensor, action: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Step worlds of shape [*batch, H, R]; an ensemble's members stay the first dimension."""
        shape = state.shape[-3:-1]
        after = rollout(self._dynamics, state.flatten(-3, -2), action.flatten(-3, -2).unsqueeze(-2),
                        {n: v.flatten(-2) for n, v in values.items()}, backend=self._backend)
        stepped: Tensor = after[..., 1, :].unflatten(-2, shape)
        return stepped


class MovedRollout:
    """The rollout as a function of moves ``(δx of the first state, δu of every step, δp)``.

    Args:
        dynamics: The model.
        trial: Where to start, and with what actions; all worlds finite.
        backend: What computes the rollout.
        dtype: In which precision.
    """

    def __init__(self, dynamics: ResidualDynamics, trial: Trial, *, backend: Backend, dtype: torch.dtype) -> None:
        self._dynamics, self._backend, self.dtype = dynamics, backend, dtype
        self.free = trial.free
        self._state, self._actions = trial.states[..., None, 0, :].to(dtype), trial.actions.to(dtype).unsqueeze(-3)
        with torch.no_grad():
            self._after = self._roll(self._state, self._actions, {})

    def __call__(self, moves: Float[Tensor, "*batch moves n"]) -> Float[Tensor, "*batch moves horizon ndx"]:
        """Return how far each move takes each later state, on the tangent space."""
        space, (horizon, nu) = self._dynamics.space, self._actions.shape[-2:]
        dx, du, dp = moves.to(self.dtype).split([space.ndx, horizon * nu, len(self.free)], -1)
        state = space.integrate(self._state.expand(*dx.shape[:-1], space.nx), dx)
        values = {p.name: self._dynamics.values[p.name] + dp[..., i] for i, p in enumerate(self.free)}
        return space.difference(self._roll(state, self._actions + du.unflatten(-1, (horizon, nu)), values), self._after)

    def _roll(self, state: Tensor, actions: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        return rollout(self._dynamics, state, actions, values, backend=self._backend)[..., 1:, :]
