"""What a gradient audit found: where a gradient is zero, not finite, exploding or wrong, as data and as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from jaxtyping import Bool, Float, Int
from torch import Tensor

SHOWN = 12
"""Findings that the text of an audit lists; the data hold all."""


class FindingKind(Enum):
    """What is the matter at one place."""

    NOT_FINITE = "not finite"
    """The state, or its gradient, is NaN or infinite."""
    DEAD = "dead"
    """The gradient is zero (to rounding) where differences are not."""
    WRONG = "wrong"
    """The gradient is neither the centred nor a one-sided difference, and the differences agree among themselves."""
    EXPLODING = "exploding"
    """Small changes of the first state have grown beyond the threshold."""
    SWITCH = "switch"
    """Differences disagree among themselves: a switch or a jump within the step of the differences, or noise above them. No defect."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One place at which a gradient is not what differences say.

    Args:
        kind: What is the matter.
        world: Index into the batch of the rollout; () where there is one world.
        step: First step concerned, counted from 0: the one that leads from ``states[step]`` to ``states[step + 1]``.
        steps: All steps of this world and input that are concerned.
        input: By what the derivative is taken: name of a state entry, an action, a parameter or a tensor of weights.
        output: Entry of the next state whose derivative it is; "" where it is that of a sum over entries.
        expected: Derivative by differences, in the units of output and input; the threshold where the kind is EXPLODING.
        received: Derivative under audit; growth of small changes where the kind is EXPLODING.
        error: ``|received - expected|`` relative to the expected, see ``gradient_audit``.
        method: How the baseline takes this derivative.
        contacts: What touches what at the start of the step, where the baseline can tell.
        note: What else is known, in a few words.
    """

    kind: FindingKind
    world: tuple[int, ...]
    step: int
    steps: tuple[int, ...]
    input: str
    output: str
    expected: float
    received: float
    error: float
    method: str = ""
    contacts: tuple[str, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        """Return the finding in a line."""
        where = f"world {', '.join(map(str, self.world))}, " if self.world else ""
        more = f" (and {len(self.steps) - 1} more)" if len(self.steps) > 1 else ""
        text = f"{self.kind.value}: {where}step {self.step}{more}: {self._what()}"
        aside = [*([self.note] if self.note else []), *([f"in contact: {', '.join(self.contacts)}"] if self.contacts else []),
                 *([f"gradient by {self.method}"] if self.method else [])]
        return f"{text} [{'; '.join(aside)}]" if aside else text

    def _what(self) -> str:
        if self.kind is FindingKind.EXPLODING:
            return f"changes of {self.input} have grown {self.received:.3g} times in {self.output}, threshold {self.expected:.3g}"
        if not self.input:
            return f"{self.output} becomes {self.received}"
        return f"d {self.output or 'next state'} / d {self.input} is {self.received:.6g}, differences say {self.expected:.6g}"


@dataclass(frozen=True, kw_only=True)
class GradientAudit:
    """Result of ``gradient_audit``.

    Args:
        findings: Defects, by world and step.
        switches: Places where differences disagree among themselves, so that the gradient there was not judged.
        checks: Derivatives that were compared.
        undecided: How many of them were not judged.
        worst_error: Largest relative error among those that were, defects included.
        growth: Norm of the derivative of each next state by the first one, on the tangent space in SI units, shape [*batch, H];
            not finite from where the states are not.
        horizon: Steps until growth exceeds the threshold or a state is not finite, H where neither happens, shape [*batch].
        rate: Factor by which changes grow in a step, the geometric mean over ``horizon``, shape [*batch].
        subject: What was audited, in words.
        smoothed: Steps whose gradient is a mean across a switch; judged is the one without, shape [*batch, H].
    """

    findings: tuple[Finding, ...]
    switches: tuple[Finding, ...]
    checks: int
    undecided: int
    worst_error: float
    growth: Float[Tensor, "*batch horizon"]
    horizon: Int[Tensor, "*batch"]
    rate: Float[Tensor, "*batch"]
    subject: str
    smoothed: Bool[Tensor, "*batch horizon"]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    @property
    def horizon_cut(self) -> int:
        """Largest horizon over which no world's gradient explodes."""
        return int(self.horizon.min())

    def __str__(self) -> str:
        """Return the audit as text of a few lines."""
        cut = self.horizon_cut
        lines = [f"gradient audit of {self.subject}: {'ok' if self.ok else f'{len(self.findings)} finding(s)'}",
                 f"  {self.checks} derivatives compared, {self.undecided} not judged, worst relative error {self.worst_error:.2g}",
                 f"  growth per step {float(self.rate.min()):.4g} to {float(self.rate.max()):.4g}, at most "
                 f"{float(self.growth.nan_to_num(float('inf')).max()):.3g} in all",
                 *_smoothed(self.smoothed),
                 *([f"  suggested horizon: {cut} of {self.growth.shape[-1]} steps"] if cut < self.growth.shape[-1] else []),
                 *_listed(self.findings), *_listed(self.switches)]
        return "\n".join(lines)


def _smoothed(where: Tensor) -> list[str]:
    if not bool(where.any()):
        return []
    *world, step = where.nonzero()[0].tolist()
    place = f"world {', '.join(map(str, world))}, step {step}" if world else f"step {step}"
    return [f"  gradient smoothed across a switch in {int(where.sum())} of {where.numel()} steps, first in {place}; judged without"]


def _listed(findings: Sequence[Finding]) -> list[str]:
    lines = [f"  {finding}" for finding in findings[:SHOWN]]
    return lines if len(findings) <= SHOWN else [*lines, f"  ... and {len(findings) - SHOWN} more"]
