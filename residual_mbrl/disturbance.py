"""What samples before a rollout say of the plant: innovations of a model and their recent means, from past samples only.

For any baseline. The means are the context from which residuals with memory start (``residuals.memory``): a force that has been
missing for the last tenth of a second is likely to be missing for the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.physics.rotations import rotate_back
from residual_mbrl.residuals.memory import Remembering
from residual_mbrl.spaces import StateSpace


def innovations(dynamics: ResidualDynamics, states: Float[Tensor, "*batch rows nx"], actions: Float[Tensor, "*batch steps nu"], *,
                body_frame: bool = False) -> Float[Tensor, "*batch steps n"]:
    """Return what one step of a model misses, per second: ``e_k = (x_{k+1} ⊖ step(x_k, u_k)) / dt`` of positions and velocities.

    Velocity entries are accelerations that the model lacks, position entries velocities: what positions did beyond the velocities.

    Args:
        dynamics: The model; residuals with memory see none of the past.
        states: Baseline states of successive rows, shape [*batch, T + 1, nx].
        actions: Commands between them, shape [*batch, T, nu].
        body_frame: Whether the linear entries of a free body are turned into its frame.

    Returns:
        Shape [*batch, T, 2 nv].

    Raises:
        ValueError: if there is not one action for each step.
    """
    if states.shape[-2] != actions.shape[-2] + 1:
        raise ValueError(f"innovations: expected one state more than actions, received {states.shape[-2]} and {actions.shape[-2]}")
    space = dynamics.baseline.space
    before, after = states[..., :-1, :], states[..., 1:, :]
    with torch.no_grad():
        start = dynamics.initial_state(before, actions)
        predicted = dynamics.step(start, actions)[..., : space.nx]
        missed = space.difference(after, predicted)[..., : 2 * space.nv] / dynamics.dt
        return in_body_frame(space, before, missed) if body_frame else missed


def in_body_frame(space: StateSpace, states: Tensor, tangent: Tensor) -> Tensor:
    """Return a tangent of positions and velocities, shape [*batch, 2 nv], with the linear entries of free bodies in their own frames.

    Args:
        space: Of the baseline.
        states: Shape [*batch, nx].
        tangent: Shape [*batch, 2 nv].
    """
    for q0, v0 in sorted(space.quaternions):
        if q0 < 3 or v0 < 3:
            continue
        attitude = states[..., q0 : q0 + 4]
        attitude = attitude / attitude.square().sum(-1, keepdim=True).sqrt()
        for first in (v0 - 3, space.nv + v0 - 3):
            turned = rotate_back(attitude, tangent[..., first : first + 3])
            tangent = torch.cat([tangent[..., :first], turned, tangent[..., first + 3 :]], -1)
    return tangent


def past_means(values: Float[Tensor, "*batch rows k"], lengths: Sequence[int]) -> Float[Tensor, "*batch rows_1 m"]:
    """Return sums of the last L rows over L, for each L, before each row and after the last.

    Entry i knows rows below i alone. Where fewer than L have passed the sum is still divided by L: little is known, so little is said.

    Args:
        values: Shape [*batch, T, k].
        lengths: Each L.

    Returns:
        Shape [*batch, T + 1, len(lengths) k].

    Raises:
        ValueError: if a length is below one.
    """
    if not lengths or min(lengths) < 1:
        raise ValueError(f"past_means: expected lengths of at least one row, received {tuple(lengths)}")
    total = torch.cat([values.new_zeros(*values.shape[:-2], 1, values.shape[-1]), values.cumsum(-2)], -2)
    rows = torch.arange(total.shape[-2], device=values.device)
    return torch.cat([(total - total[..., (rows - n).clamp_min(0), :]) / n for n in lengths], -1)


@dataclass(frozen=True, kw_only=True)
class PastContext:
    """The context of a rollout from every row of a log: means of past innovations, and what the present state and command are.

    Args:
        lengths: Rows that the means go back.
        largest: Bound of a single innovation [per second, in the unit of its entry], against held and lost rows.
        signals: Baseline signals at the row itself.
        velocities: Velocity entries at the row itself.
        change: Rows over which the change of the last command is taken; 0 for none.
        body_frame: As in ``innovations``.
    """

    lengths: Sequence[int] = (4, 10, 20, 40, 150)
    largest: float = 200.0
    signals: Sequence[str] = ()
    velocities: Sequence[str] = ()
    change: int = 0
    body_frame: bool = False

    def of_log(self, dynamics: ResidualDynamics, states: Float[Tensor, "*batch rows nx"],
               actions: Float[Tensor, "*batch rows nu"]) -> Float[Tensor, "*batch rows n"]:
        """Return the context of each row i, from states of rows up to i and commands of rows up to i.

        Args:
            dynamics: The model whose innovations are looked at.
            states: Baseline states, shape [*batch, T, nx].
            actions: Commands, ``actions[i]`` acting from row i on, shape [*batch, T, nu].

        Raises:
            ValueError: if there is not one action a row.
        """
        if states.shape[-2] != actions.shape[-2]:
            raise ValueError(f"PastContext: expected one action a row, received {states.shape[-2]} states and {actions.shape[-2]} actions")
        missed = innovations(dynamics, states, actions[..., :-1, :], body_frame=self.body_frame).clamp(-self.largest, self.largest)
        parts = [past_means(missed, self.lengths)]
        p = dynamics.resolve(None, states)
        known = dynamics.baseline.signals(states, actions, p) if self.signals else {}
        parts += [known[n] for n in self.signals]
        space = dynamics.baseline.space
        parts += [states[..., space.index(n), None] for n in self.velocities]
        if self.change:
            before = torch.cat([actions[..., :1, :].expand(*actions.shape[:-2], self.change, -1), actions], -2)
            parts.append(actions - before[..., : actions.shape[-2], :])
        return torch.cat(parts, -1)


def starting_state(dynamics: ResidualDynamics, state: Float[Tensor, "*batch nx"], lead: Float[Tensor, "*batch lead nu"],
                   context: Float[Tensor, "*batch n"] | None = None) -> Tensor:
    """Return a baseline state with the memory of all residuals, those of ``residuals.memory`` as the context starts them.

    Args:
        dynamics: The model; all its residuals with memory are of that kind.
        state: Baseline state, shape [*batch, nx].
        lead: Commands of the steps before, the latest last, shape [*batch, L, nu].
        context: Shape [*batch, n]; None starts without one.

    Raises:
        ValueError: if another residual has a memory.
    """
    others = [r.name for r in dynamics.corrections if r.memory_names and not isinstance(r, Remembering)]
    if others:
        raise ValueError(f"starting_state: {others} have a memory of their own: let rollout(..., lead=...) start them")
    memories = [r.starting_memory(lead, context) for r in dynamics.corrections if isinstance(r, Remembering)]
    return torch.cat([state, *(m.to(state.dtype) for m in memories)], -1)
