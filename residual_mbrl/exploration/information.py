"""Excitation by what it says of the physical parameters: expected information gain, D-optimal over the Fisher information."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.exploration.excitation import SearchOptions, search_actions
from residual_mbrl.rollouts import rollout
from residual_mbrl.tasks import Task

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class InformationOptions:
    """What is to be known, and how well it is measured.

    Args:
        free: Glob patterns of the parameters; None takes those marked free.
        noise: Standard deviation of each measured state entry, [nx] or a number.
        spread: Standard deviation of each parameter before the experiment, in its ``scale``.
        draws: Values of the parameters, drawn from that, over which the gain is averaged.
        largest: Largest magnitude of each state entry that an experiment may come to in the model, [nx]; anything where missing.
        search: How actions are found.
    """

    free: Sequence[str] | None = None
    noise: float | Sequence[float] = 1e-3
    spread: float = 0.1
    draws: int = 4
    largest: Sequence[float] | None = None
    search: SearchOptions = field(default_factory=SearchOptions)


def information_gain(dynamics: ResidualDynamics, state: Tensor, actions: Tensor, options: InformationOptions, seed: int = 0) -> Tensor:
    """Return ``E_θ ½ log det(1 + Σ F(θ))`` [nat] of experiments, shape [*batch].

    Where a state goes too far there is less than none: minus the part by which it goes beyond, minus infinity where it is not finite.

    F is the Fisher information of the measured states, ``Σ_t (∂x_t/∂θ)ᵀ R⁻¹ ∂x_t/∂θ``, by central differences of rollouts; θ is drawn
    about the model's own values, within bounds. See e.g. Swevers et al., Optimal robot excitation and identification (1997).

    Args:
        dynamics: The model.
        state: First states, shape [*#batch, nx].
        actions: Shape [*batch, H, nu].
        options: What is to be known.
        seed: Of the draws.
    """
    free, step = dynamics.baseline.parameters.free(options.free), 1e-3
    space, batch = dynamics.baseline.space, actions.shape[:-2]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.as_tensor(options.noise, dtype=torch.float64).expand(space.ndx)
    offsets = torch.randn(options.draws, len(free), generator=generator, dtype=torch.float64) * options.spread
    offsets[0] = 0.0
    # copies: [draws, 2 n], parameter k up and down in copies k and n + k
    moves = torch.cat([step * torch.eye(len(free)), -step * torch.eye(len(free))]).double()
    parameters, scales = {}, []
    for k, p in enumerate(free):
        nominal = dynamics.values[p.name]
        centre = (nominal + p.scale * offsets[:, k, None]).clamp(p.lower + 2 * step * p.scale, p.upper - 2 * step * p.scale)
        parameters[p.name] = (centre + p.scale * moves[:, k]).reshape(options.draws, 2 * len(free), *(1 for _ in batch))
        scales.append(p.scale)
    copies = (options.draws, 2 * len(free))
    x = state.double().expand(*copies, *batch, state.shape[-1])
    with torch.no_grad():
        states = rollout(dynamics, x, actions.double().expand(*copies, *actions.shape), parameters)[..., : space.nx]
    up, down = states[:, : len(free)], states[:, len(free) :]
    slopes = space.difference(up, down)[..., 1:, :] / (2 * step * noise)  # [draws, n, *batch, H, ndx] a scaled unit
    rows = slopes.flatten(-2).movedim(1, -2)
    information = rows @ rows.mT
    eye = torch.eye(len(free), dtype=torch.float64)
    gain = 0.5 * torch.logdet(eye + options.spread**2 * information.nan_to_num(0.0)).mean(0)
    if options.largest is not None:
        beyond = (states.abs() / torch.tensor(options.largest, dtype=torch.float64)).amax((0, 1, -2, -1)) - 1
        gain = torch.where(beyond > 0, -beyond, gain)
    return torch.where(torch.isfinite(states).all(-1).all(-1).all(0).all(0), gain, -torch.inf)


def information_excitation(dynamics: ResidualDynamics, task: Task, steps: int, seed: int,
                           options: InformationOptions | None = None) -> Array:
    """Return the actions from the task's start that promise the largest gain, shape [steps, nu].

    Args:
        dynamics: The model as far as it is known.
        task: Gives start and range.
        steps: Of the experiment.
        seed: Of the search; the task's first state is drawn from it, as ``learn`` draws it.
        options: What is to be known.
    """
    options = options or InformationOptions()
    first = task.starts(seed, 1)[0]
    found: Array = search_actions(lambda u: information_gain(dynamics, first, u, options, seed), task, dynamics.dt, steps, seed,
                                  options.search).numpy()
    return found
