"""The gradients of single steps by the residuals' weights, along random directions of each tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from residual_mbrl.audit_inputs import MovedStep, Trial
from residual_mbrl.audit_method import FLOOR, KINDS, Method, against_any
from residual_mbrl.audit_result import Finding
from residual_mbrl.difference_quotients import FINER, Comparison, Quotients, Verdict, compare
from residual_mbrl.dynamics import ResidualDynamics


@dataclass(frozen=True, kw_only=True)
class WeightAudit:
    """Comparisons of one scalar for each tensor of weights and direction, and findings for the tensors that fail."""

    comparisons: list[Comparison]
    findings: list[Finding]


class _Samples:
    """Single steps in a row, so that some of them can be taken: of all worlds, or, where weights carry members, of all members."""

    def __init__(self, trial: Trial, reference: ResidualDynamics) -> None:
        pairs = torch.stack([trial.states[..., :-1, :], trial.states[..., 1:, :]], -2)
        self.has_members = _has_members(reference, trial)
        actions, finite = trial.actions.unsqueeze(-2), trial.finite
        self._horizon, self._batch = finite.shape[-1], finite.shape[:-1]
        if self.has_members:
            self.places = finite.flatten(0, -2).all(0).nonzero().flatten() if finite.ndim > 1 else finite.nonzero().flatten()
        else:
            pairs, actions = pairs.reshape(-1, *pairs.shape[-2:]), actions.reshape(-1, *actions.shape[-2:])
            self.places = finite.flatten().nonzero().flatten()
        self._all = replace(trial, states=pairs.index_select(-3, self.places), actions=actions.index_select(-3, self.places))

    def __len__(self) -> int:
        return len(self.places)

    def part(self, start: int, stop: int) -> Trial:
        """Return the samples from ``start`` to ``stop``, rollouts of one step."""
        return replace(self._all, states=self._all.states[..., start:stop, :, :], actions=self._all.actions[..., start:stop, :, :])

    def place(self, sample: int) -> tuple[tuple[int, ...], int]:
        """Return world and step of a sample."""
        place = int(self.places[sample])
        if self.has_members:
            return (), place
        world, step = divmod(place, self._horizon)
        return tuple(int(i) for i in torch.unravel_index(torch.tensor(world), self._batch)) if self._batch else (), step


def _has_members(dynamics: ResidualDynamics, trial: Trial) -> bool:
    """Tell whether the weights are those of an ensemble, which takes no single state."""
    state, action = trial.states.flatten(0, -2)[:1], trial.actions.flatten(0, -2)[:1]
    try:
        with torch.no_grad():
            return dynamics.step(state, action).shape != state.shape
    except RuntimeError:  # torch's, of shapes that do not fit
        return True


def audit_weights(method: Method, trial: Trial, generator: torch.Generator) -> WeightAudit:
    """Compare the gradient of a random sum over all next states with differences, one tensor of weights and direction at a time.

    Where one fails, halving the samples leads to the first world and step that does.
    """
    weights = trainable(method.references[0])
    if not weights:
        return WeightAudit(comparisons=[], findings=[])
    samples = _Samples(trial, method.references[0])
    comparisons: list[Comparison] = []
    findings: dict[str, Finding] = {}
    for _ in range(method.directions if len(samples) else 0):
        directions = {n: random_direction(w, generator) for n, w in weights.items()}
        seed = int(torch.randint(1 << 31, (), generator=generator))
        for name, comparison in _compare(method, samples.part(0, len(samples)), directions, seed).items():
            comparisons.append(comparison)
            if int(comparison.verdict) >= Verdict.WRONG and name not in findings:
                findings[name] = _locate(method, samples, name, directions[name], seed)
    return WeightAudit(comparisons=comparisons, findings=list(findings.values()))


def trainable(dynamics: ResidualDynamics) -> dict[str, nn.Parameter]:
    """Return the weights that a fit would change, by name."""
    return {n: w for n, w in dynamics.named_parameters() if w.requires_grad and w.numel()}


def random_direction(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random direction of about unit length in float64."""
    direction: Tensor = torch.randn(weight.shape, generator=generator, dtype=torch.float64) / weight.numel() ** 0.5
    return direction


@contextmanager
def moved_weights(weights: dict[str, nn.Parameter], directions: dict[str, Tensor], size: float) -> Iterator[None]:
    """Move weights along directions by some size, and put them back."""
    kept = {n: weights[n].detach().clone() for n in directions}
    with torch.no_grad():
        for n, d in directions.items():
            weights[n].add_(d, alpha=size)
        try:
            yield
        finally:
            for n, w in kept.items():
                weights[n].copy_(w)


def _compare(method: Method, trial: Trial, directions: dict[str, Tensor], seed: int) -> dict[str, Comparison]:
    """Compare the derivative along one direction of each tensor, of one random sum that leaves out what is not smooth."""
    audited = MovedStep(method.audited, trial, backend=method.backend, dtype=method.dtype)
    still = _still(method.audited, trial)
    moved = audited(still).squeeze(-2)
    rounding = method.rounding * trial.states[..., 1:, :].abs().amax(-1, keepdim=True).clamp_min(1.0)

    def against(dynamics: ResidualDynamics) -> dict[str, Comparison]:
        reference = MovedStep(dynamics, trial, backend="torch", dtype=torch.float64)
        found = {n: weight_quotients(dynamics, lambda: reference(still).squeeze(-2), {n: d}, method.step) for n, d in directions.items()}
        share = torch.randn(moved.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for q in found.values():
            steady = q.steady(method.tolerance * (q.magnitude + FLOOR * q.magnitude.amax(-1, keepdim=True)) + rounding)
            share = torch.where(steady.all(-1, keepdim=True), share, 0.0)
        slopes = weight_slopes(method.audited, (moved * share).sum(), directions)
        noise = (rounding * share.abs()).square().sum().sqrt()
        result = {}
        for n, q in found.items():
            total = Quotients(*(x.sum().reshape(1) for x in q.projected(share)))
            spread = torch.where(share != 0, q.centred * share, 0.0).square().sum().sqrt()
            result[n] = compare(slopes[n], total, tolerance=method.tolerance, size=spread, rounding=noise)
        return result

    return against_any(method.references, against)


def weight_slopes(dynamics: ResidualDynamics, scalar: Tensor, directions: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the derivative of a scalar along a direction of each tensor of weights by reverse mode, each of shape [1]."""
    weights = trainable(dynamics)
    if not scalar.requires_grad:
        return {n: torch.zeros(1, dtype=torch.float64) for n in directions}
    gradients = torch.autograd.grad(scalar, [weights[n] for n in directions], retain_graph=True, allow_unused=True)
    return {n: torch.zeros(1, dtype=torch.float64) if g is None else (g.double() * d).sum().reshape(1)
            for (n, d), g in zip(directions.items(), gradients, strict=True)}


def weight_quotients(dynamics: ResidualDynamics, evaluate: Callable[[], Tensor], directions: dict[str, Tensor], step: float) -> Quotients:
    """Return the difference quotients along directions of weights of what is zero where they are."""
    weights, slopes = trainable(dynamics), []
    for size in (step / FINER, -step / FINER, step, -step):
        with moved_weights(weights, directions, size):
            slopes.append(evaluate() / size)
    return Quotients(*slopes)


def _still(dynamics: ResidualDynamics, trial: Trial) -> Tensor:
    n = dynamics.space.ndx + dynamics.space.nu + len(trial.free)
    return torch.zeros(*trial.actions.shape[:-1], 1, n, dtype=torch.float64)


def _locate(method: Method, samples: _Samples, name: str, direction: Tensor, seed: int) -> Finding:
    """Return the finding at the first sample that fails by itself."""
    def at(start: int, stop: int) -> Comparison:
        return _compare(method, samples.part(start, stop), {name: direction}, seed)[name]

    start, stop = 0, len(samples)
    while stop - start > 1:
        middle = (start + stop) // 2
        start, stop = (start, middle) if int(at(start, middle).verdict) >= Verdict.WRONG else (middle, stop)
    alone = at(start, stop)
    if int(alone.verdict) < Verdict.WRONG:  # it takes many samples to tell
        alone = at(0, len(samples))
    world, step = samples.place(start)
    kind = KINDS[Verdict(int(alone.verdict))]
    return Finding(kind=kind, world=world, step=step, steps=(step,), input=name, output="", expected=float(alone.expected),
                   received=float(alone.received), error=float(alone.error), note="along a random direction")
