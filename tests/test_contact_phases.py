"""Phases follow each other as the motion does, and errors are shared out among them without loss."""

from __future__ import annotations

import numpy as np
import pytest

from residual_mbrl.contact_phases import PHASES, PhaseLimits, chaos_floor, growth, phases


def test_rows_have_the_phase_of_their_motion():
    """Flight, three rows of impact, tumbling, sliding, rest; another flight after the first touch still counts as tumbling."""
    gap = np.array([0.1, 0.05, -1e-4, 0.0, 0.01, 0.02, 0.0, 0.0, 0.0])
    speed = np.array([1.0, 1, 1, 1, 1, 0.9, 0.5, 0.1, 0.0])
    rate = np.array([5.0, 5, 5, 5, 5, 5, 0.1, 0.1, 0.0])
    found = [PHASES[k] for k in phases(gap, speed, rate)]
    assert found == ["before"] * 2 + ["impact"] * 3 + ["tumbling"] + ["sliding"] * 2 + ["rest"]
    assert {PHASES[k] for k in phases(gap + 1, speed, rate)} == {"before"}
    assert [PHASES[k] for k in phases(gap, speed, rate, PhaseLimits(impact_rows=1))][3] == "tumbling"


def test_growth_adds_up_to_the_last_error():
    """Over the phases of each log, on average over logs."""
    rng = np.random.default_rng(0)
    errors = [rng.random(20), rng.random(30)]
    places = [rng.integers(0, 5, len(e)) for e in errors]
    assert sum(growth(errors, places).values()) == pytest.approx(np.mean([e[-1] for e in errors]))


def test_floor_is_the_spread_of_the_motion():
    """With x' = 2 x a difference doubles in each row; starts that are not moved do not part."""
    start = np.array([[1.0], [2.0]])

    def floor(moves: np.ndarray) -> np.ndarray:
        return chaos_floor(lambda x: x[:, None] * 2.0 ** np.arange(4)[:, None], start, moves, np.add, lambda a, b: np.abs(a - b)[..., 0])

    assert floor(np.array([[1e-3], [0.0]])) == pytest.approx(np.array([[1e-3, 2e-3, 4e-3, 8e-3], [0, 0, 0, 0]]))
    with pytest.raises(ValueError, match="one move for each of 2 starts, received 1"):
        floor(np.zeros((1, 1)))


def test_shapes_that_do_not_fit_are_refused():
    """With what was received."""
    with pytest.raises(ValueError, match=r"one shape \[N\], received \(3,\)"):
        phases(np.zeros(3), np.zeros(4), np.zeros(3))
