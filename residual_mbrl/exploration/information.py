"""Excitation by what it says of the physical parameters: by expected information gain (D-optimal) or expected error (A-optimal)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.baselines import Parameter
from residual_mbrl.dynamics import ResidualDynamics, member
from residual_mbrl.exploration.excitation import SearchOptions, search_actions
from residual_mbrl.rollouts import rollout
from residual_mbrl.tasks import Task

Array = NDArray[np.float64]
STEP = 1e-3
"""Of the differences, in units of a parameter and standard deviations of a state's noise."""
FAR = 1e3
"""Below any score of an experiment that stays within its limits."""


@dataclass(frozen=True, kw_only=True)
class InformationOptions:
    """What is to be known, and how well it is measured.

    Args:
        free: Glob patterns of the parameters; None takes those marked free.
        noise: Standard deviation of each measured state entry, [nx] or a number.
        spread: Standard deviation of each parameter before the experiment, in its unit: its ``prior_std`` where there is one, else its
            value in the model, a quarter of its bounds' span where that is zero (state a ``prior_std`` there).
        draws: Values of the parameters, drawn from that within two deviations, over which the gain is averaged.
        first_known: Whether the first state is known; else it is measured with the noise, and estimated with the parameters.
        largest: Largest magnitude of each state entry that an experiment may come to in the model, [nx]; anything where missing.
        checked: Values of the parameters, drawn alike, for which an experiment has to stay within that.
        goal: What is sought: the largest information "gain" on all parameters together, or the smallest mean square "error" of them, each
            counted in its unit, which goes by the one that is known worst.
        search: How actions are found.
    """

    free: Sequence[str] | None = None
    noise: float | Sequence[float] = 1e-3
    spread: float = 0.1
    draws: int = 4
    first_known: bool = False
    largest: Sequence[float] | None = None
    checked: int = 32
    goal: Literal["gain", "error"] = "gain"
    search: SearchOptions = field(default_factory=SearchOptions)


def information_gain(dynamics: ResidualDynamics, state: Tensor, actions: Tensor, options: InformationOptions, seed: int = 0) -> Tensor:
    """Return ``E_θ ½ log det(1 + Σ F(θ))`` [nat] of experiments, shape [*batch].

    Where a state goes too far there is less than none, by the part by which it goes beyond; minus infinity where it is not finite.

    F is the Fisher information of the measured states, ``Σ_t (∂x_t/∂θ)ᵀ R⁻¹ ∂x_t/∂θ``, by central differences of rollouts, less what goes
    into finding the first state (the Schur complement); θ is drawn about the model's own values, within bounds. See e.g. Swevers et al.,
    Optimal robot excitation and identification (1997).

    Args:
        dynamics: The model.
        state: First states, shape [*#batch, nx].
        actions: Shape [*batch, H, nu].
        options: What is to be known.
        seed: Of the draws.
    """
    information = _information(dynamics, state, actions, options, seed)
    eye = torch.eye(information.shape[-1], dtype=torch.float64)
    gain = 0.5 * torch.logdet(eye + options.spread**2 * information).mean(0)
    return _within(gain, dynamics, state, actions, options, seed)


def expected_error(dynamics: ResidualDynamics, state: Tensor, actions: Tensor, options: InformationOptions, seed: int = 0) -> Tensor:
    """Return ``exp E_θ log sqrt(tr (Σ⁻¹ + F(θ))⁻¹ / n)``: about the root mean square error of n parameters after experiments, in units.

    Infinite where a state goes beyond ``largest`` or is not finite. Shape [*batch]; arguments as of ``information_gain``.
    """
    promise = _less_error(dynamics, state, actions, options, seed)
    return torch.where(promise > -FAR, (-promise).exp(), torch.inf)


def _less_error(dynamics: ResidualDynamics, state: Tensor, actions: Tensor, options: InformationOptions, seed: int) -> Tensor:
    """Return minus the mean logarithm of the root mean square error over draws, within limits, shape [*batch]."""
    information = _information(dynamics, state, actions, options, seed)
    eye = torch.eye(information.shape[-1], dtype=torch.float64)
    left = torch.linalg.inv(eye / options.spread**2 + information)
    return _within(-0.5 * left.diagonal(dim1=-2, dim2=-1).mean(-1).log().mean(0), dynamics, state, actions, options, seed)


def _drawn(dynamics: ResidualDynamics, options: InformationOptions, seed: int, count: int) -> tuple[list[Parameter], Tensor]:
    """Return the free parameters, their nominal values those of the model, and values, shape [count, n]; the model's own come first."""
    free = [replace(p, nominal=float(np.clip(dynamics.values[p.name], p.lower, p.upper)))
            for p in dynamics.baseline.parameters.free(options.free)]
    centre, scale, lower, upper = torch.tensor([(p.nominal, p.scale, p.lower, p.upper) for p in free], dtype=torch.float64).T
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.randn(count, len(free), generator=generator, dtype=torch.float64).clamp(-2, 2) * options.spread
    offsets[0] = 0.0
    return free, (centre + scale * offsets).clamp(lower + 2 * STEP * scale, upper - 2 * STEP * scale)


def _within(score: Tensor, dynamics: ResidualDynamics, state: Tensor, actions: Tensor, options: InformationOptions, seed: int) -> Tensor:
    """Return scores [*batch], below any other where states go too far, for whichever values are checked, or are not finite."""
    free, values = _drawn(dynamics, options, seed, max(options.draws, options.checked if options.largest is not None else 1))
    batch = actions.shape[:-2]
    parameters = {p.name: values[:, k].reshape(-1, *(1 for _ in batch)) for k, p in enumerate(free)}
    with torch.no_grad():
        states = rollout(dynamics, state.double().expand(len(values), *batch, state.shape[-1]),
                         actions.double().expand(len(values), *actions.shape), parameters)[..., : dynamics.baseline.space.nx]
    if options.largest is not None:
        beyond = (states.abs() / torch.tensor(options.largest, dtype=torch.float64)).amax((0, -2, -1)) - 1
        score = torch.where(beyond > 0, -FAR - beyond, score)
    return torch.where(torch.isfinite(states).all(-1).all(-1).all(0), score, -torch.inf)


def _information(dynamics: ResidualDynamics, state: Tensor, actions: Tensor, options: InformationOptions, seed: int) -> Tensor:
    """Return the Fisher information on the parameters in their units, shape [draws, *batch, n, n]."""
    free, values = _drawn(dynamics, options, seed, options.draws)
    space, batch, n = dynamics.baseline.space, actions.shape[:-2], len(free)
    noise = torch.as_tensor(options.noise, dtype=torch.float64).expand(space.ndx)
    total = n if options.first_known else n + space.ndx
    # copies: [draws, 2 total], unknown k up and down in copies k and total + k; first states follow the parameters
    moves = STEP * torch.cat([torch.eye(total), -torch.eye(total)]).double()
    parameters = {p.name: (values[:, k, None] + p.scale * moves[:, k]).reshape(options.draws, 2 * total, *(1 for _ in batch))
                  for k, p in enumerate(free)}
    copies = (options.draws, 2 * total)
    x = state.double().expand(*copies, *batch, state.shape[-1])
    if not options.first_known:
        start = (moves[:, n:] * noise).reshape(2 * total, *(1 for _ in batch), space.ndx).expand(*x.shape[:-1], space.ndx)
        x = torch.cat([space.integrate(x[..., : space.nx], start), x[..., space.nx :]], -1)
    with torch.no_grad():
        states = rollout(dynamics, x, actions.double().expand(*copies, *actions.shape), parameters)[..., : space.nx]
    slopes = space.difference(states[:, :total], states[:, total:])[..., 1:, :] / (2 * STEP * noise)  # [draws, total, *batch, H, ndx]
    rows = slopes.flatten(-2).movedim(1, -2)
    found = (rows @ rows.mT).nan_to_num(0.0, 0.0, 0.0)
    if options.first_known:
        return found
    own = found[..., n:, n:] + torch.eye(space.ndx, dtype=torch.float64)  # the first state is measured itself
    left: Tensor = found[..., :n, :n] - found[..., :n, n:] @ torch.linalg.solve(own, found[..., n:, :n])
    return left


def information_excitation(dynamics: ResidualDynamics, task: Task, steps: int, seed: int,
                           options: InformationOptions | None = None) -> Array:
    """Return the actions from the task's start that promise most, shape [steps, nu].

    Args:
        dynamics: The model as far as it is known; of an ensemble, its first member.
        task: Gives start and range.
        steps: Of the experiment.
        seed: Of the search; the task's first state is drawn from it, as ``learn`` draws it.
        options: What is to be known.
    """
    options = options or InformationOptions()
    first = task.starts(seed, 1)[0]
    dynamics = member(dynamics, 0) if dynamics.members else dynamics

    def promise(actions: Tensor) -> Tensor:
        if options.goal == "gain":
            return information_gain(dynamics, first, actions, options, seed)
        return _less_error(dynamics, first, actions, options, seed)

    found: Array = search_actions(promise, task, dynamics.dt, steps, seed, options.search).numpy()
    return found
