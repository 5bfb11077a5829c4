"""Difference quotients tell smooth functions, kinks and jumps apart, and judge derivatives by it."""

from __future__ import annotations

import pytest
import torch

from residual_mbrl.difference_quotients import Verdict, compare, quotients

STEP = 1e-5
ONE = torch.ones(1, 1, dtype=torch.float64)


def judged(function, received: float) -> Verdict:
    """The verdict on one derivative of a function of one number at zero."""
    found = quotients(function, ONE, STEP)
    comparison = compare(received * ONE, found, tolerance=1e-3, size=torch.tensor(1e-3), rounding=torch.tensor(1e-9))
    return Verdict(int(comparison.verdict))


@pytest.mark.parametrize(("name", "function", "received", "verdict"), [
    ("smooth", lambda x: torch.sin(2 * x), 2.0, Verdict.AGREES),
    ("smooth, off by one per cent", lambda x: torch.sin(2 * x), 2.02, Verdict.WRONG),
    ("smooth, other sign", lambda x: torch.sin(2 * x), -2.0, Verdict.WRONG),
    ("smooth, lost", lambda x: torch.sin(2 * x), 0.0, Verdict.DEAD),
    ("strongly curved", lambda x: 300 * x**2 + x, 1.0, Verdict.AGREES),
    ("constant", lambda x: 0 * x, 0.0, Verdict.AGREES),
    ("kink, from the right", lambda x: x.clamp_min(0), 1.0, Verdict.AGREES),
    ("kink, from the left", lambda x: x.clamp_min(0), 0.0, Verdict.AGREES),
    ("kink, neither", lambda x: x.clamp_min(0), -3.0, Verdict.SWITCH),
    ("kink within the finer step", lambda x: (x + 1e-6).clamp_min(0) - 1e-6, 5.0, Verdict.SWITCH),
    ("kink within the coarser step, right", lambda x: (x - 5e-6).clamp_min(0), 0.0, Verdict.AGREES),
    ("kink beyond both steps", lambda x: (x + 1e-4).clamp_min(0) - 1e-4, 0.0, Verdict.DEAD),
    ("jump", lambda x: (x > 0).double(), 0.0, Verdict.AGREES),
    ("jump, neither", lambda x: (x > 0).double(), 1.0, Verdict.SWITCH),
    ("root", lambda x: x.abs().sqrt(), torch.inf, Verdict.NOT_FINITE),
    ("not a number to one side", lambda x: x.sqrt(), 1.0, Verdict.SWITCH),
    ("not a number", lambda x: x, torch.nan, Verdict.NOT_FINITE),
])
def test_verdict(name, function, received, verdict):
    """On a function whose derivative is known."""
    assert judged(function, received) is verdict, name


def test_directions_are_split_without_a_trace():
    """More directions than fit in one evaluation give the same as one by one."""
    directions = torch.eye(5000, 3, dtype=torch.float64) + 0.1
    many = quotients(lambda x: x**3 + x.sum(-1, keepdim=True), directions, STEP)
    one = quotients(lambda x: x**3 + x.sum(-1, keepdim=True), directions[4999:], STEP)
    assert many.centred.shape == (5000, 3)
    assert torch.equal(many.centred[4999:], one.centred)
