"""How a gradient audit takes and compares derivatives, the same for steps, weights and rollouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from residual_mbrl.audit_result import FindingKind
from residual_mbrl.difference_quotients import FINER, ROUNDING, Comparison, Verdict
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.rollouts import Backend

KINDS = {Verdict.NOT_FINITE: FindingKind.NOT_FINITE, Verdict.DEAD: FindingKind.DEAD, Verdict.WRONG: FindingKind.WRONG,
         Verdict.SWITCH: FindingKind.SWITCH}
FLOOR = 1e-3
"""Entries below this share of the largest in their row are compared relative to it."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """How derivatives are taken and compared.

    Args:
        audited: The model whose gradient is audited.
        references: The same in float64, for differences; where there are two, a derivative may be that of either.
        backend: What computes the audited gradient.
        dtype: In which precision.
        step: Coarser step of the differences.
        tolerance: Relative error allowed.
        directions: Random directions.
        unit: Unit of rounding of the references.
    """

    audited: ResidualDynamics
    references: tuple[ResidualDynamics, ...]
    backend: Backend
    dtype: torch.dtype
    step: float
    tolerance: float
    directions: int
    unit: float

    @property
    def rounding(self) -> float:
        """Rounding of a difference quotient of a function of size one."""
        return ROUNDING * self.unit * FINER / self.step


def against_any(references: Sequence[ResidualDynamics],
                against: Callable[[ResidualDynamics], dict[str, Comparison]]) -> dict[str, Comparison]:
    """Compare with one reference after the other, as long as something is wrong."""
    result = against(references[0])
    for dynamics in references[1:]:
        if any(bool((c.verdict >= Verdict.WRONG).any()) for c in result.values()):
            result = {n: result[n].or_else(c) for n, c in against(dynamics).items()}
    return result
