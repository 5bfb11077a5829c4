"""Excitation by what it says of the physical parameters: by expected information gain (D-optimal) or expected error (A-optimal)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.exploration.excitation import SearchOptions, search_actions
from residual_mbrl.rollouts import rollout
from residual_mbrl.tasks import Task

Array = NDArray[np.float64]
FAR = 1e3
"""Below any score of an experiment that stays within its limits."""


@dataclass(frozen=True, kw_only=True)
class InformationOptions:
    """What is to be known, and how well it is measured.

    Args:
        free: Glob patterns of the parameters; None takes those marked free.
        noise: Standard deviation of each measured state entry, [nx] or a number.
        spread: Standard deviation of each parameter before the experiment, in its ``scale``.
        draws: Values of the parameters, drawn from that, over which the gain is averaged.
        largest: Largest magnitude of each state entry that an experiment may come to in the model, [nx]; anything where missing.
        goal: What is sought: the largest information "gain" on all parameters together, or the smallest mean square "error" of them, each
            counted in its ``scale``, which goes by the one that is known worst.
        search: How actions are found.
    """

    free: Sequence[str] | None = None
    noise: float | Sequence[float] = 1e-3
    spread: float = 0.1
    draws: int = 4
    largest: Sequence[float] | None = None
    goal: Literal["gain", "error"] = "gain"
    search: SearchOptions = field(default_factory=SearchOptions)


def information_gain(dynamics: ResidualDynamics, state: Tensor, actions: Tensor, options: InformationOptions, seed: int = 0) -> Tensor:
    """Return ``E_θ ½ log det(1 + Σ F(θ))`` [nat] of experiments, shape [*batch].

    Where a state goes too far there is less than none, by the part by which it goes beyond; minus infinity where it is not finite.

    F is the Fisher information of the measured states, ``Σ_t (∂x_t/∂θ)ᵀ R⁻¹ ∂x_t/∂θ``, by central differences of rollouts; θ is drawn
    about the model's own values, within bounds. See e.g. Swevers et al., Optimal robot excitation and identification (1997).

    Args:
        dynamics: The model.
        state: First states, shape [*#batch, nx].
        actions: Shape [*batch, H, nu].
        options: What is to be known.
        seed: Of the draws.
    """
    information, states = _information(dynamics, state, actions, options, seed)
    eye = torch.eye(information.shape[-1], dtype=torch.float64)
    return _within(0.5 * torch.logdet(eye + options.spread**2 * information).mean(0), states, options)


def expected_error(dynamics: ResidualDynamics, state: Tensor, actions: Tensor, options: InformationOptions, seed: int = 0) -> Tensor:
    """Return ``exp E_θ log sqrt(tr (Σ⁻¹ + F(θ))⁻¹ / n)``: about the root mean square error of n parameters after experiments, in scales.

    Infinite where a state goes beyond ``largest`` or is not finite. Shape [*batch]; arguments as of ``information_gain``.
    """
    information, states = _information(dynamics, state, actions, options, seed)
    allowed = _within(torch.ones(information.shape[1:-2], dtype=torch.float64), states, options) > 0
    return torch.where(allowed, _log_error(information, options).exp(), torch.inf)


def _log_error(information: Tensor, options: InformationOptions) -> Tensor:
    """Return the mean logarithm of the root mean square error over draws, shape [*batch]."""
    eye = torch.eye(information.shape[-1], dtype=torch.float64)
    left = torch.linalg.inv(eye / options.spread**2 + information)
    found: Tensor = 0.5 * left.diagonal(dim1=-2, dim2=-1).mean(-1).log().mean(0)
    return found


def _within(score: Tensor, states: Tensor, options: InformationOptions) -> Tensor:
    """Return scores [*batch], below any other where states [draws, copies, *batch, H + 1, nx] go too far or are not finite."""
    if options.largest is not None:
        beyond = (states.abs() / torch.tensor(options.largest, dtype=torch.float64)).amax((0, 1, -2, -1)) - 1
        score = torch.where(beyond > 0, -FAR - beyond, score)
    return torch.where(torch.isfinite(states).all(-1).all(-1).all(0).all(0), score, -torch.inf)


def _information(dynamics: ResidualDynamics, state: Tensor, actions: Tensor, options: InformationOptions,
                 seed: int) -> tuple[Tensor, Tensor]:
    """Return the Fisher information in scaled units, shape [draws, *batch, n, n], and all states that were simulated for it."""
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
    return (rows @ rows.mT).nan_to_num(0.0, 0.0, 0.0), states


def information_excitation(dynamics: ResidualDynamics, task: Task, steps: int, seed: int,
                           options: InformationOptions | None = None) -> Array:
    """Return the actions from the task's start that promise most, shape [steps, nu].

    Args:
        dynamics: The model as far as it is known.
        task: Gives start and range.
        steps: Of the experiment.
        seed: Of the search; the task's first state is drawn from it, as ``learn`` draws it.
        options: What is to be known.
    """
    options = options or InformationOptions()
    first = task.starts(seed, 1)[0]

    def promise(actions: Tensor) -> Tensor:
        if options.goal == "gain":
            return information_gain(dynamics, first, actions, options, seed)
        information, states = _information(dynamics, first, actions, options, seed)
        return _within(-_log_error(information, options), states, options)

    found: Array = search_actions(promise, task, dynamics.dt, steps, seed, options.search).numpy()
    return found
