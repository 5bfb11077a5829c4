"""Fitting residuals with memory, and parameters with them, on the errors of whole rollouts in the units that are scored."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from residual_mbrl.baselines import Parameter
from residual_mbrl.disturbance import starting_state
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.residuals.memory import Remembering
from residual_mbrl.rollouts import rollout
from residual_mbrl.spaces import StateSpace

log = logging.getLogger(__name__)
LARGEST = 30.0
"""Bound of one error in units of its weight, against windows that no model follows."""


@dataclass(frozen=True, kw_only=True)
class StartedWindows:
    """B windows with what is known before each: commands of the steps before, and a context from past samples.

    Args:
        states: First baseline states, shape [B, nx].
        lead: Commands of the L steps before, the latest last, shape [B, L, nu].
        actions: Shape [B, H, nu].
        context: Shape [B, n]; n may be 0.
        truth: Positions and velocities that were measured, shape [B, H + 1, nq + nv].
        unit: What counts as an error of one, in each group, shape [B, groups].
    """

    states: Tensor
    lead: Tensor
    actions: Tensor
    context: Tensor
    truth: Tensor
    unit: Tensor

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.states)

    def take(self, rows: Tensor | slice) -> StartedWindows:
        """Return some of the windows."""
        return StartedWindows(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def first(self, horizon: int) -> StartedWindows:
        """Return the windows cut to their first steps."""
        kept = {f.name: getattr(self, f.name) for f in fields(self)}
        return StartedWindows(**{**kept, "actions": self.actions[:, :horizon], "truth": self.truth[:, : horizon + 1]})

    @classmethod
    def joined(cls, parts: Sequence[StartedWindows]) -> StartedWindows:
        """Concatenate windows of one shape."""
        return cls(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)})

    @classmethod
    def cut(cls, states: Tensor, actions: Tensor, context: Tensor, unit: Tensor, *, known: int, horizon: int, lead: int, stride: int,
            skip: int = 0, dtype: torch.dtype = torch.float32) -> StartedWindows:
        """Cut one log into windows.

        Args:
            states: Baseline state of each row, shape [T, nx].
            actions: Commands from each row on, shape [T, nu].
            context: Of a rollout from each row, shape [T, n].
            unit: Shape [groups].
            known: Entries of a state that were measured, nq + nv.
            horizon: Steps of a window.
            lead: Steps before a window.
            stride: Rows between the starts of windows.
            skip: Rows at the beginning that no window starts in.
            dtype: Of the windows.
        """
        starts = torch.arange(skip, len(states) - horizon, stride)
        padded = torch.cat([actions[:1].expand(lead, -1), actions])
        after, before = torch.arange(horizon + 1), torch.arange(lead)
        return cls(states=states[starts].to(dtype), lead=padded[starts[:, None] + before].to(dtype),
                   actions=actions[starts[:, None] + after[:-1]].to(dtype), context=context[starts].to(dtype),
                   truth=states[starts[:, None] + after][..., :known].to(dtype), unit=unit.to(dtype).expand(len(starts), -1))


@dataclass(frozen=True, kw_only=True)
class HorizonOptions:
    """How to train.

    Args:
        stages: Pairs (horizon [steps], share of the steps spent on it), in order.
        steps: Steps of Adam in all.
        batch: Windows a step.
        rate: Learning rate; it rises over the first 50 steps and falls to zero along a cosine.
        ridge: Penalty on the squared weights of the residuals' networks.
        ridge_recall: The same for what starts their traces.
        seed: Of the batches.
    """

    stages: Sequence[tuple[int, float]] = ((10, 0.15), (25, 0.15), (50, 0.7))
    steps: int = 1200
    batch: int = 512
    rate: float = 4e-3
    ridge: float = 1e-2
    ridge_recall: float = 1e-2
    seed: int = 0


def grouped_errors(space: StateSpace, states: Float[Tensor, "*batch nx"], truth: Float[Tensor, "*batch n"],
                   groups: Sequence[Sequence[int]]) -> Float[Tensor, "*batch groups"]:
    """Return the length of each group of entries of ``truth ⊖ states``: distances, angles between attitudes, and so on.

    Args:
        space: Of the baseline.
        states: Predicted; entries beyond nq + nv are not looked at.
        truth: Measured positions and velocities.
        groups: Places in the tangent of positions and velocities.
    """
    known = space.nq + space.nv
    idle = truth.new_zeros(*truth.shape[:-1], space.na)
    tangent = space.difference(torch.cat([truth, idle], -1), torch.cat([states[..., :known], idle], -1))
    return torch.stack([(tangent[..., list(g)].square().sum(-1) + 1e-10).sqrt() for g in groups], -1)


def predict(dynamics: ResidualDynamics, windows: StartedWindows, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
    """Roll every window out from what was known before it, shape [B, H + 1, nx]; differentiable."""
    context = windows.context if windows.context.shape[-1] else None
    state = starting_state(dynamics, windows.states, windows.lead, context) if dynamics.residuals else windows.states
    return rollout(dynamics, state, windows.actions, parameters)


def mean_errors(dynamics: ResidualDynamics, windows: StartedWindows, groups: Sequence[Sequence[int]], chunk: int = 2048) -> Tensor:
    """Return the mean error of each step and group over the windows, shape [H, groups]."""
    space, found = dynamics.baseline.space, []
    with torch.no_grad():
        for i in range(0, len(windows), chunk):
            part = windows.take(slice(i, i + chunk))
            found.append(grouped_errors(space, predict(dynamics, part)[:, 1:], part.truth[:, 1:], groups).sum(0))
    return sum(found[1:], start=found[0]) / len(windows)


def fit_over_horizon(dynamics: ResidualDynamics, windows: StartedWindows, groups: Sequence[Sequence[int]], free: Sequence[Parameter] = (),
                     options: HorizonOptions | None = None, progress: Callable[[int, float], None] | None = None) -> ResidualDynamics:
    """Train residuals and refine parameters on the mean error of all steps and groups, each in its unit, over growing horizons.

    Args:
        dynamics: The model; it is not changed. Without residuals its parameters alone are fitted.
        windows: What to fit.
        groups: As ``grouped_errors`` takes them.
        free: Parameters that are refined; they move by about ``rate`` scales a step.
        options: How to train.
        progress: Called with the step and the cost, every hundredth step.

    Raises:
        ValueError: if a stage is longer than the windows, or there is nothing to fit.
    """
    options = options or HorizonOptions()
    fitted = copy.deepcopy(dynamics)
    memories = [r for r in fitted.corrections if isinstance(r, Remembering)]
    if max(h for h, _ in options.stages) > windows.actions.shape[1] or not (memories or free):
        raise ValueError(f"fit_over_horizon: expected stages within {windows.actions.shape[1]} steps and something to fit, received "
                         f"{options.stages} and {len(memories)} residuals, {len(free)} parameters")
    if memories:
        with torch.no_grad():
            first = windows.actions[:, 0]
            fitted.normalise(fitted.initial_state(windows.states, first), first)
        for residual in memories:
            if residual.context:
                residual.normalise_context(windows.context[..., : residual.context])
    z = torch.tensor([(fitted.values[p.name] - p.nominal) / p.scale for p in free], dtype=windows.states.dtype, requires_grad=True)
    lower, upper = (torch.tensor([(b - p.nominal) / p.scale for p, b in zip(free, bounds, strict=True)], dtype=z.dtype)
                    for bounds in ([p.lower for p in free], [p.upper for p in free]))

    def values() -> dict[str, Tensor]:
        return {p.name: p.nominal + p.scale * z[i] for i, p in enumerate(free)}

    weights = list(fitted.parameters())
    optimiser = torch.optim.Adam([{"params": weights, "lr": options.rate}, {"params": [z], "lr": 2 * options.rate}], betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda k: min(1.0, (k + 1) / 50) * 0.5 * (1 + math.cos(math.pi * k / options.steps)))
    generator = torch.Generator().manual_seed(options.seed)
    horizons = [h for h, share in options.stages for _ in range(round(share * options.steps))]
    for step, horizon in enumerate(horizons[: options.steps]):
        part = windows.take(torch.randint(len(windows), (min(options.batch, len(windows)),), generator=generator)).first(horizon)
        states = predict(fitted, part, values() if free else None)
        error = grouped_errors(fitted.baseline.space, states[:, 1:], part.truth[:, 1:], groups)
        cost = (error / part.unit[:, None, :]).clamp(max=LARGEST).mean()
        optimiser.zero_grad()
        (cost + _penalty(memories, options)).backward()
        if weights:
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            z.clamp_(lower, upper)
        if progress is not None and (step + 1) % 100 == 0:
            progress(step + 1, float(cost.detach()))
    with torch.no_grad():
        return fitted.with_values({n: float(x) for n, x in values().items()})


def _penalty(memories: Sequence[Remembering], options: HorizonOptions) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for residual in memories:
        total = total + options.ridge * sum(w.square().sum() for w in residual.network.weights)
        if residual.context:
            starts = (*residual.linear.weights, *residual.encoder.weights)
            total = total + options.ridge_recall * sum(w.square().sum() for w in starts)
    return total
