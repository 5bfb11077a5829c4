"""First states that follow the shared unknowns, against closed forms, differences, and a search over everything at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from estimation_problem import pendulum, pendulum_logs, sensor
from scipy.optimize import least_squares

from residual_mbrl import robust
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.first_states import Eliminated
from residual_mbrl.simulation_error import Derivatives, SimulationError

START_STD = (0.05, 0.2)


@dataclass
class Affine:
    """Errors ``A p + C_b s_b - y`` of windows of different lengths, in the form that a simulation error has."""

    lengths = (9, 0, 6)
    sizes = (3, 0, 2)
    step = 0.02

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        self.by_p, self.by_s, self.y = (rng.standard_normal((sum(self.lengths), k)) for k in (3, 2, 1))
        self.windows = range(len(self.lengths))

    def rows(self):
        return sum(self.lengths)

    def owner(self):
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def dense(self):
        """The matrix and right side of all rows, priors of the first states last."""
        own = np.zeros((self.rows(), 2 * len(self.lengths)))
        for k in range(2):
            own[np.arange(self.rows()), 2 * self.owner() + k] = self.by_s[:, k]
        matrix = np.block([[self.by_p, own], [np.zeros((own.shape[1], 3)), np.eye(own.shape[1])]])
        return matrix, np.concatenate([self.y[:, 0], np.zeros(own.shape[1])])

    def __call__(self, z):
        matrix, y = self.dense()
        return matrix @ z - y

    def derivatives(self, z, here, *, one_sided=False, steps=None):
        return Derivatives(self.dense()[0][:, :3], self.by_s, steps)


def simulated(loss="linear"):
    """A pendulum's error over four windows with first states, away from the truth, and its loss."""
    seen = sensor()
    error = SimulationError(dynamics=ResidualDynamics(pendulum()), sensor=seen, windows=pendulum_logs(steps=12, seen=seen),
                            free=[p for p in pendulum().parameters if p.free], start_std=START_STD, step=1e-5)
    return error, robust.scipy_loss(loss, error.rows())


def test_of_a_linear_problem_the_estimate_is_the_closed_form():
    """With Gaussian noise and prior one step finds parameters and first states of the joint least squares, a window without data too."""
    problem = Affine()
    reduced = Eliminated(problem, np.zeros(9), partial(robust.rho, loss="linear"))
    slope = reduced.jacobian(np.zeros(3))
    p = -np.linalg.lstsq(slope, reduced(np.zeros(3)), rcond=None)[0]
    matrix, y = problem.dense()
    assert reduced.complete(p) == pytest.approx(np.linalg.lstsq(matrix, y, rcond=None)[0])
    assert reduced(p) == pytest.approx(matrix @ reduced.complete(p) - y)


def test_of_a_linear_problem_the_information_is_the_schur_complement():
    """The Jacobian's inverse square is the parameters' part of the joint covariance."""
    problem = Affine()
    slope = Eliminated(problem, np.zeros(9), partial(robust.rho, loss="linear")).jacobian(np.zeros(3))
    matrix, _ = problem.dense()
    assert np.linalg.inv(slope.T @ slope) == pytest.approx(np.linalg.inv(matrix.T @ matrix)[:3, :3])


@pytest.mark.parametrize("one_sided", [False, True])
def test_the_jacobian_is_that_of_the_linearised_first_states(one_sided):
    """The derivative is that of the errors along parameters and the first states that follow them, by differences."""
    problem, loss = simulated()
    reduced = Eliminated(problem, problem.initial(), loss)
    p = reduced.complete(np.zeros(3))[:3]
    for _ in range(4):  # until first states have settled
        slope = reduced.jacobian(p, one_sided=one_sided)
    follows = np.stack([reduced.complete(p + h) - reduced.complete(p - h) for h in 1e-4 * np.eye(3)], 1) / 2e-4
    z = reduced.complete(p)
    expected = np.stack([problem(z + 1e-4 * d) - problem(z - 1e-4 * d) for d in follows.T], 1) / 2e-4
    assert np.abs(slope - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("loss", ["linear", "soft_l1"])
def test_a_search_ends_where_one_over_all_unknowns_does(loss):
    """Cost, parameters and first states are those of scipy's search over everything."""
    problem, both = simulated(loss)
    whole = least_squares(problem, problem.initial(), jac=problem.jacobian, loss=both, xtol=1e-12, ftol=1e-12)
    reduced = Eliminated(problem, problem.initial(), both)
    found = least_squares(reduced, np.zeros(3), jac=reduced.jacobian, loss=both, xtol=1e-12, ftol=1e-12)
    assert found.cost == pytest.approx(whole.cost, rel=1e-6)
    assert reduced.complete(found.x) == pytest.approx(whole.x, abs=2e-3)


def test_first_states_never_raise_the_cost_of_a_window():
    """Far from the truth, where steps from a linearisation mislead, every window ends no worse than it began."""
    problem, loss = simulated()
    far = np.array([3.0, -2.0, 1.0])
    reduced = Eliminated(problem, problem.initial(), loss)
    reduced.jacobian(np.zeros(3))
    begun = problem(np.concatenate([far, np.zeros(problem.length - 3)]))
    reduced = Eliminated(problem, np.concatenate([far, np.zeros(problem.length - 3)]), loss)
    reduced.jacobian(far)
    settled = problem(reduced.complete(far))
    for k in range(len(problem.windows)):
        own = problem.owner() == k
        prior = slice(problem.rows() + 2 * k, problem.rows() + 2 * k + 2)
        assert (settled[:-8][own] ** 2).sum() + (settled[prior] ** 2).sum() <= (begun[:-8][own] ** 2).sum() + 1e-9


def test_without_first_states_everything_passes_through():
    """Values, Jacobian and unknowns of a problem that keeps measured first states are its own."""
    seen = sensor()
    free = [p for p in pendulum().parameters if p.free]
    problem = SimulationError(dynamics=ResidualDynamics(pendulum()), sensor=seen, windows=pendulum_logs(steps=12), free=free)
    reduced, z = Eliminated(problem, problem.initial(), robust.scipy_loss("soft_l1", problem.rows())), np.array([0.1, 0.2, 0.3])
    assert np.array_equal(reduced(z), problem(z))
    assert np.array_equal(reduced.jacobian(z), problem.jacobian(z))
    assert np.array_equal(reduced.complete(z), z)
