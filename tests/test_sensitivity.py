"""Growth of small changes, against systems whose growth is known."""

from __future__ import annotations

import math

import pytest
import torch

from residual_mbrl.audit_result import FindingKind
from residual_mbrl.sensitivity import measure_sensitivity

NAMES = ["q", "v"]


def measured(transition: torch.Tensor, horizon: int = 40, finite: int | None = None, threshold: float = 1e3):
    """Sensitivity of one world with the same step again and again, finite up to a step."""
    sound = torch.arange(horizon) < (horizon if finite is None else finite)
    return measure_sensitivity(transition.double().expand(1, horizon, 2, 2), sound.unsqueeze(0), NAMES, threshold)


def test_diagonal_growth():
    """Twice a step: the horizon is where its power passes the threshold times the norm of a step."""
    found = measured(torch.diag(torch.tensor([2.0, 0.5])))
    assert torch.allclose(found.growth[0], 2.0 ** torch.arange(1, 41, dtype=torch.float64))
    assert found.horizon.item() == math.floor(math.log2(2 * 1e3))
    assert found.rate.item() == pytest.approx(2.0)
    (finding,) = found.findings
    assert (finding.kind, finding.world, finding.step, finding.input, finding.output) == (FindingKind.EXPLODING, (0,), 10, "q", "q")


@pytest.mark.parametrize("rate", [10.0, 1e3, 1e5])
def test_stiff_oscillation_does_not_explode(rate):
    """A fast oscillator in exact steps: norms as large as its rate, from the first step on, and no growth."""
    c, s = math.cos(1.0), math.sin(1.0)
    found = measured(torch.tensor([[c, s / rate], [-rate * s, c]]), horizon=200)
    assert not found.findings
    assert found.horizon.item() == 200


def test_states_that_are_lost_end_the_horizon():
    """Growth is infinite from there, and nothing explodes."""
    found = measured(torch.eye(2), finite=7)
    assert found.horizon.item() == 7
    assert not found.findings
    assert found.growth.isfinite().sum() == 7
    assert found.rate.item() == pytest.approx(1.0)


def test_overflow_is_no_error():
    """Growth far beyond the largest number."""
    found = measured(1e100 * torch.eye(2, dtype=torch.float64), threshold=1e4)
    assert found.horizon.item() == 1
