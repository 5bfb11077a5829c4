"""Parameters from the balance of forces: a first estimate for plants whose measured commands are noisy and whose rollouts are unstable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from residual_mbrl.baselines import Baseline, Parameter, Values
from residual_mbrl.errors import ModelError


class HasMass(Protocol):
    """A baseline that knows its mass matrix."""

    def mass_matrix(self, q: Tensor, p: Values) -> Tensor:
        """Return M, shape [*batch, nv, nv]."""


@dataclass(frozen=True, kw_only=True)
class BalanceOptions:
    """How to balance.

    Args:
        scales: Steps over which missing forces are averaged. Short ones weigh gains; long ones, that what acts slowly cancels.
        steps: Steps of Adam, on ``segments`` random segments each.
        segments: Segments a step.
        rate: Learning rate, in ``Parameter.scale``; it falls to zero along a cosine.
        seed: Of the segments.
    """

    scales: Sequence[int] = (1, 10, 50)
    steps: int = 200
    segments: int = 32
    rate: float = 0.06
    seed: int = 0


def missing_force(baseline: Baseline, states: Float[Tensor, "*batch rows nx"], actions: Float[Tensor, "*batch steps nu"],
                  parameters: Values | None = None) -> Float[Tensor, "*batch steps nv"]:
    """Return the generalised force that each step lacks, ``M (v_{k+1} - step(x_k, u_k).v) / dt``.

    Args:
        baseline: With a ``mass_matrix``.
        states: Successive states, shape [*batch, T + 1, nx].
        actions: Shape [*batch, T, nu].
        parameters: Physical values by name.

    Raises:
        ModelError: if the baseline has no mass matrix.
    """
    if not hasattr(baseline, "mass_matrix"):
        raise ModelError(f"missing_force: {type(baseline).__name__} has no mass_matrix")
    before, after = states[..., :-1, :], states[..., 1:, :]
    p = baseline.parameters.resolve(parameters, states)
    predicted = baseline.step(before, actions, None, p)
    q, v, _ = baseline.space.split(predicted)
    change = (baseline.space.split(after)[1] - v) / baseline.dt
    force: Tensor = (baseline.mass_matrix(q, p) @ change.unsqueeze(-1)).squeeze(-1)
    return force


def balance(baseline: Baseline, states: Float[Tensor, "segments rows nx"], actions: Float[Tensor, "segments steps nu"],
            free: Sequence[Parameter], spread: Sequence[float], options: BalanceOptions | None = None) -> dict[str, float]:
    """Estimate parameters by least absolute missing force, averaged over several numbers of steps.

    Where commands are measured with noise, as rotor speeds by telemetry, a regression of accelerations on them underestimates every gain:
    noise in what explains attenuates. In forces the noise stands in what is explained, and gains and inertias come out unbiased.

    Args:
        baseline: With a ``mass_matrix``; its nominal values are the start.
        states: Segments of successive states, shape [S, T + 1, nx].
        actions: Shape [S, T, nu].
        free: Parameters to estimate. What only scales forces and inertia together must not be free.
        spread: Size of each generalised force that counts as one [N or N·m], shape [nv].
        options: How to search.

    Returns:
        The estimates by name.

    Raises:
        ValueError: if segments are shorter than the longest scale or nothing is free.
    """
    options = options or BalanceOptions()
    if not free or actions.shape[-2] < max(options.scales) or len(spread) != baseline.space.nv:
        raise ValueError(f"balance: expected free parameters, segments of at least {max(options.scales)} steps and {baseline.space.nv} "
                         f"spreads, received {len(free)}, {actions.shape[-2]} and {len(spread)}")
    generator = torch.Generator().manual_seed(options.seed)
    z = torch.zeros(len(free), dtype=states.dtype, requires_grad=True)
    optimiser = torch.optim.Adam([z], lr=options.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.steps)
    size = states.new_tensor(spread)
    for _ in range(options.steps):
        rows = torch.randint(len(states), (options.segments,), generator=generator)
        error = missing_force(baseline, states[rows], actions[rows], _values(free, z)) / size
        total = torch.cat([torch.zeros_like(error[:, :1]), error.cumsum(1)], 1)
        # an average over n steps counts sqrt(n) times: white noise then weighs alike at all scales
        cost = sum((((total[:, n:] - total[:, :-n]) / n**0.5).abs().mean() for n in options.scales), start=z.new_zeros(()))
        optimiser.zero_grad()
        cost.backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            for i, p in enumerate(free):
                z[i].clamp_((p.lower - p.nominal) / p.scale, (p.upper - p.nominal) / p.scale)
    return {n: float(x.detach()) for n, x in _values(free, z).items()}


def _values(free: Sequence[Parameter], z: Tensor) -> dict[str, Tensor]:
    return {p.name: p.nominal + p.scale * z[i] for i, p in enumerate(free)}
