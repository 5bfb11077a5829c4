"""The search without gradients finds minima that differences cannot."""

from __future__ import annotations

import numpy as np
import pytest

from residual_mbrl.evolution import Evolution


def minimised(error, start, generations, **options):
    """The mean after some generations."""
    search = Evolution(np.array(start, dtype=float), **options)
    for _ in range(generations):
        search.tell(np.array([error(z) for z in search.ask()]))
    return search


def test_finds_the_minimum_of_an_ellipsoid():
    """Axes that differ by a thousand, turned."""
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))[0]
    scales = np.logspace(0, 3, 6)
    found = minimised(lambda z: float(scales @ (turn @ (z - 1)) ** 2), np.zeros(6), 250)
    assert found.mean == pytest.approx(np.ones(6), abs=1e-3)
    assert found.step < 0.3
    assert found.generation == 250


def test_follows_a_bent_valley():
    """Rosenbrock's function."""
    found = minimised(lambda z: float(100 * (z[1] - z[0] ** 2) ** 2 + (1 - z[0]) ** 2), [-1, 1], 200)
    assert found.mean == pytest.approx([1, 1], abs=1e-3)


def test_jumps_do_not_mislead_it():
    """An error with steps, whose gradient is zero almost everywhere, and with infinite values."""
    found = minimised(lambda z: np.inf if z[0] > 3 else float(np.floor(10 * (z**2).sum())), [2.5, -2.0, 1.0], 80)
    assert (found.mean**2).sum() < 0.2


def test_one_seed_gives_one_search():
    """Candidates are those of the seed."""
    assert np.array_equal(Evolution(np.zeros(3), seed=4).ask(), Evolution(np.zeros(3), seed=4).ask())
    assert not np.array_equal(Evolution(np.zeros(3), seed=4).ask(), Evolution(np.zeros(3), seed=5).ask())


def test_too_few_candidates_are_refused():
    """Half of them must say where to go."""
    with pytest.raises(ValueError, match="at least 4 candidates, received 2"):
        Evolution(np.zeros(2), candidates=2)
