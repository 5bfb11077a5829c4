"""The gradient of a whole rollout along random directions of all that enters it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from residual_mbrl.audit_inputs import MovedRollout, Trial
from residual_mbrl.audit_method import FLOOR, KINDS, Method, against_any
from residual_mbrl.audit_result import Finding, FindingKind
from residual_mbrl.difference_quotients import Comparison, Quotients, Verdict, compare, quotients
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.sensitivity import Sensitivity
from residual_mbrl.step_audit import StepAudit
from residual_mbrl.weight_audit import random_direction, trainable, weight_quotients, weight_slopes


@dataclass(frozen=True, kw_only=True)
class RolloutAudit:
    """Comparisons of one scalar for each group of inputs and direction, and findings that no single step explains."""

    comparisons: list[Comparison]
    findings: list[Finding]


class _Direction(NamedTuple):
    """A later state to look at, and the rollout that leads to it."""

    trial: Trial
    """Up to that state; worlds that do not reach it have another's place."""
    counts: Tensor
    """Worlds that do, shape [*batch]."""
    cotangent: Tensor
    """Of that state, zero in worlds that do not count, shape [*batch, ndx]."""
    groups: list[slice]
    """Entries of state, actions and parameters among all inputs, without empty ones."""
    moves: Tensor
    """Of each group by itself, shape [*batch, groups, n]."""
    sizes: Tensor
    """Typical change of each input, shape [n]."""
    rounding: Tensor
    """Of differences of that state, shape [*batch, 1]."""


def audit_rollout(method: Method, trial: Trial, steps: StepAudit, sensitivity: Sensitivity, generator: torch.Generator) -> RolloutAudit:
    """Compare reverse mode through the whole rollout with differences of it; each direction looks at a later state of its own.

    Worlds count as far as their states are finite and their sensitivity stays below its threshold. Those in which single steps
    are wrong give no finding: the steps say more.
    """
    horizon = trial.actions.shape[-2]
    blamed = (steps.comparison.verdict >= Verdict.WRONG).flatten(-3).any(-1)
    comparisons: list[Comparison] = []
    findings: dict[tuple[tuple[int, ...], int], Finding] = {}
    for k in range(method.directions):
        time = -(-(k + 1) * horizon // method.directions) - 1
        direction = _direction(trial, sensitivity, time, method, generator)
        if direction is None:
            continue
        audited = MovedRollout(method.audited, direction.trial, backend=method.backend, dtype=method.dtype)
        gradient = _reverse(audited, direction)
        comparison = _compare_inputs(method, direction, gradient)
        wrong = (comparison.verdict >= Verdict.WRONG) & (direction.counts & ~blamed)[..., None]
        for *world, group in wrong.nonzero().tolist():
            finding = _located(direction, gradient, steps, tuple(world), group)
            if finding.error <= method.tolerance:  # the product of the single steps: a switch on the way has falsified the differences
                comparison.verdict[(*world, group)] = int(Verdict.SWITCH)
            else:
                findings.setdefault((tuple(world), group), finding)
        comparisons.append(Comparison(*(x[direction.counts] for x in comparison)))
        smooth = ~steps.near_switch[..., : time + 1].any(-1)
        weights = {n: random_direction(w, generator) for n, w in trainable(method.references[0]).items()}
        if weights:
            found = _compare_weights(method, audited, direction, smooth, {"": weights})
            comparisons += found.values()
            if int(found[""].verdict) >= Verdict.WRONG and not blamed.any() and ((), -1) not in findings:
                each = {n: {n: d} for n, d in weights.items()}
                findings[(), -1] = _blamed_weights(_compare_weights(method, audited, direction, smooth, each), time)
    return RolloutAudit(comparisons=comparisons, findings=list(findings.values()))


def _direction(trial: Trial, sensitivity: Sensitivity, time: int, method: Method, generator: torch.Generator) -> _Direction | None:
    space, batch = method.audited.space, trial.actions.shape[:-2]
    counts = sensitivity.horizon > time
    if not bool(counts.any()):
        return None
    other = tuple(counts.nonzero()[0].tolist())
    states, actions = trial.states[..., : time + 2, :], trial.actions[..., : time + 1, :]
    here = counts[..., None, None]
    cut = replace(trial, states=torch.where(here, states, states[other]), actions=torch.where(here, actions, actions[other]))
    sizes = torch.cat([torch.ones(space.ndx, dtype=torch.float64), trial.action_sizes().repeat(time + 1), trial.parameter_sizes()])
    ends = [0, space.ndx, space.ndx + (time + 1) * space.nu, len(sizes)]
    groups = [slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True) if b > a]
    moves = torch.zeros(*batch, len(groups), len(sizes), dtype=torch.float64)
    for i, group in enumerate(groups):
        count = group.stop - group.start
        moves[..., i, group] = torch.randn(*batch, count, generator=generator, dtype=torch.float64) * sizes[group] / count**0.5
    cotangent = torch.randn(*batch, space.ndx, generator=generator, dtype=torch.float64)
    largest = cut.states.abs().amax((-1, -2)).clamp_min(1.0) * sensitivity.growth[..., : time + 1].amax(-1).clamp_min(1.0)
    largest = torch.where(counts, largest, 1.0)
    return _Direction(cut, counts, torch.where(counts.unsqueeze(-1), cotangent, 0.0), groups, moves, sizes,
                       (method.rounding * largest).unsqueeze(-1))


def _reverse(audited: MovedRollout, direction: _Direction) -> Tensor:
    """Return the gradient of the state times its cotangent by all inputs, shape [*batch, n]; zero where nothing is differentiated."""
    moves = torch.zeros(*direction.moves.shape[:-2], 1, direction.moves.shape[-1], dtype=torch.float64, requires_grad=True)
    moved = audited(moves)[..., 0, -1, :]
    gradient = torch.autograd.grad((moved * direction.cotangent).sum(), moves, allow_unused=True)[0] if moved.requires_grad else None
    return (torch.zeros_like(moves) if gradient is None else gradient).squeeze(-2)


def _compare_inputs(method: Method, direction: _Direction, gradient: Tensor) -> Comparison:
    """Compare along the move of each group; each of shape [*batch, groups]."""
    received = torch.where(direction.moves != 0, gradient.unsqueeze(-2) * direction.moves, 0.0).sum(-1, keepdim=True)

    def against(dynamics: ResidualDynamics) -> dict[str, Comparison]:
        reference = MovedRollout(dynamics, direction.trial, backend="torch", dtype=torch.float64)
        found = quotients(lambda moves: reference(moves)[..., -1, :], direction.moves, method.step)
        return {"": _compare(method, received, found, direction.cotangent.unsqueeze(-2), direction.rounding.unsqueeze(-1))}

    return Comparison(*(x.squeeze(-1) for x in against_any(method.references, against)[""]))


def _compare_weights(method: Method, audited: MovedRollout, direction: _Direction, smooth: Tensor,
                     groups: dict[str, dict[str, Tensor]]) -> dict[str, Comparison]:
    """Compare along a direction of each group of tensors of weights, summed over the ``smooth`` worlds, whose rollouts meet no switch."""
    still = torch.zeros_like(direction.moves[..., :1, :])
    moved = audited(still)[..., 0, -1, :]

    def against(dynamics: ResidualDynamics) -> dict[str, Comparison]:
        reference = MovedRollout(dynamics, direction.trial, backend="torch", dtype=torch.float64)
        share = torch.where(smooth.unsqueeze(-1), direction.cotangent, 0.0)
        found = {n: weight_quotients(dynamics, lambda: reference(still)[..., 0, -1, :], moves, method.step) for n, moves in groups.items()}
        for q in found.values():
            steady = q.steady(method.tolerance * (q.magnitude + q.magnitude.amax(-1, keepdim=True)) + direction.rounding)
            share = torch.where(steady.all(-1, keepdim=True), share, 0.0)
        slopes = weight_slopes(method.audited, (moved * share).sum(), {m: d for moves in groups.values() for m, d in moves.items()})
        received = {n: torch.stack([slopes[m] for m in moves]).sum(0) for n, moves in groups.items()}
        rows = {n: Quotients(*(x.reshape(1, -1) for x in q)) for n, q in found.items()}
        largest = direction.rounding.max().reshape(1, 1)
        return {n: _compare(method, received[n], rows[n], share.reshape(1, -1), largest) for n in groups}

    return {n: Comparison(*(x.squeeze(-1) for x in c)) for n, c in against_any(method.references, against).items()}


def _blamed_weights(found: dict[str, Comparison], time: int) -> Finding:
    """Return the finding of the tensor that differs most."""
    name = max(found, key=lambda n: (int(found[n].verdict), float(found[n].error.nan_to_num(0.0))))
    worst = found[name]
    kind = KINDS[Verdict(max(int(worst.verdict), int(Verdict.WRONG)))]
    return Finding(kind=kind, world=(), step=time, steps=(time,), input=name, output="", expected=float(worst.expected),
                   received=float(worst.received), error=float(worst.error),
                   note=f"in the rollout to step {time} alone, along a random direction")


def _compare(method: Method, received: Tensor, found: Quotients, share: Tensor, rounding: Tensor) -> Comparison:
    """Compare the derivative of a sum of outputs, ``share`` of each; errors are relative to the sum of absolute values."""
    whole = share.abs().sum(-1, keepdim=True)
    size = torch.where(share != 0, found.centred * share, 0.0).abs().nan_to_num(0.0, 0.0).sum(-1, keepdim=True) + FLOOR * whole
    return compare(received.reshape(size.shape), found.projected(share), tolerance=method.tolerance, size=size, rounding=rounding * whole)


def _located(direction: _Direction, gradient: Tensor, steps: StepAudit, world: tuple[int, ...], group: int) -> Finding:
    """Return the entry of a group that differs most from the chain of the single steps."""
    horizon, nu = direction.trial.actions.shape[-2:]
    ndx, time = direction.cotangent.shape[-1], horizon - 1
    cotangent, by_actions, by_parameters = direction.cotangent[world], [], torch.zeros(len(direction.trial.free), dtype=torch.float64)
    for by in steps.trusted[world][:horizon].flip(0):
        by_actions.append(by[ndx : ndx + nu] @ cotangent)
        by_parameters = by_parameters + by[ndx + nu :] @ cotangent
        cotangent = by[:ndx] @ cotangent
    chain = torch.cat([cotangent, *reversed(by_actions), by_parameters])
    received = gradient[world] * direction.sizes
    places = direction.groups[group]
    entry = places.start + int((received - chain)[places].abs().nan_to_num(torch.inf, torch.inf).argmax())
    step, name = time, steps.inputs[min(entry, len(steps.inputs) - 1)]
    if entry < ndx:
        step, name = 0, steps.inputs[entry]
    elif entry < ndx + horizon * nu:
        step, name = (entry - ndx) // nu, steps.inputs[ndx + (entry - ndx) % nu]
    else:
        name = steps.inputs[entry - (horizon - 1) * nu]
    found, expected, size = float(received[entry]), float(chain[entry]), float(direction.sizes[entry])
    error = (received - chain)[entry].abs() / (chain[places].abs().max() * FLOOR + abs(expected)).clamp_min(1e-300)
    kind = FindingKind.NOT_FINITE if not torch.isfinite(received[entry]) else FindingKind.DEAD if found == 0 else FindingKind.WRONG
    return Finding(kind=kind, world=world, step=step, steps=(step,), input=name, output="", expected=expected / size,
                   received=found / size, error=float(error),
                   note=f"in the rollout to step {time} alone: by itself every step is right")
