"""First plans from many starts."""

import pytest
import torch
from test_planners_ilqr import BOX, swing_up

from residual_mbrl.planners import ICEM, ILQR, ICEMOptions, ILQROptions, PlanStatus, best_from_starts

HANGING = torch.zeros(4, dtype=torch.float64)


def planner(**options):
    """Iterations towards the swing-up."""
    dynamics, cost = swing_up()
    return ILQR(dynamics, cost, ILQROptions(iterations=30), steps=50, limits=BOX, **options)


def test_the_best_of_many_is_no_worse_than_the_own_start():
    """Which is one of them, to rounding; one start alone is the planner's own plan."""
    ilqr = planner()
    own = ilqr.plan(HANGING)
    alone, many = (best_from_starts(ilqr, HANGING, n) for n in (1, 12))
    assert float(alone.cost) == pytest.approx(float(own.cost), rel=1e-9)
    assert torch.allclose(alone.actions, own.actions, atol=1e-6)
    assert float(many.cost) < float(own.cost)
    assert many.actions.shape == own.actions.shape
    assert many.gains.shape == own.gains.shape
    assert many.outcome is not PlanStatus.FAILED


def test_starts_are_those_of_the_seed():
    """And the plan is a warm start for the next."""
    ilqr = planner()
    first, second = (best_from_starts(ilqr, HANGING, 6, seed=3) for _ in range(2))
    assert torch.equal(first.actions, second.actions)
    assert float(ilqr.plan(HANGING, first).cost) <= float(first.cost)


def test_planners_that_remember_keep_their_memory():
    """The elites of one element of the batch."""
    dynamics, cost = swing_up()
    plan = best_from_starts(ICEM(dynamics, cost, ICEMOptions(samples=16, elites=4), steps=20, limits=BOX), HANGING, 3)
    assert plan.memory["elites"].shape[-2:] == (20, 1)
    assert plan.memory["elites"].ndim == 3


@pytest.mark.parametrize(("starts", "limits"), [(0, BOX), (4, None)])
def test_no_starts_and_no_limits_are_named(starts, limits):
    """With what was received."""
    dynamics, cost = swing_up()
    with pytest.raises(ValueError, match="best_from_starts"):
        best_from_starts(ILQR(dynamics, cost, steps=20, limits=limits), HANGING, starts)
