"""Tosses simulated by a MuJoCo model: starts, rollouts over the length of each log, errors toss by toss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from toss_rollout import Law, rollout

from residual_mbrl.datasets import cube
from residual_mbrl.free_flight import SHORTEST, FlightReport, first_state
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.trajectories import Trajectory

Array = NDArray[np.float64]

RELEASE = 5
"""First rows in which the cube still turns away from its later flight, by .3 rad/s on the first and .03 rad/s on the seventh."""

LOST = (1.0, np.pi)
"""Errors [m, rad] of a rollout that is not finite."""


@dataclass(frozen=True, kw_only=True)
class Starts:
    """What the log says of the first state.

    Args:
        report: What free flight found.
        engine_lag: Time by which the engine's own velocities are late [s], which it expects of its first state too.
    """

    report: FlightReport
    engine_lag: float

    @classmethod
    def of(cls, report: FlightReport, simulator: MujocoSimulator) -> Starts:
        """Return the starts for a simulator."""
        return cls(report=report, engine_lag=simulator.velocity_lag)

    def raw(self, log: Trajectory) -> Array:
        """Return the first logged frame alone, its velocity set right, shape [13]."""
        state = log.measurements[0].copy()
        state[7:10] /= self.report.velocity_scale
        state[9] -= self.report.gravity * (self.report.velocity_lag - self.engine_lag)
        return state

    def denoised(self, log: Trajectory) -> Array:
        """Return the fit to the free flight after the release where that is long enough, shape [13]; for fits, never for scores."""
        flight = cube.flight(log)
        skip = RELEASE if len(flight) >= RELEASE + SHORTEST - 1 else 0
        if len(flight) < SHORTEST:
            return self.raw(log)
        state = first_state(flight, self.report.gravity, drag=self.report.drag, swirl=self.report.swirl, skip=skip)
        state[9] += self.report.gravity * self.engine_lag
        return state


class Tosses:
    """A set of tosses with the state that each starts from.

    Args:
        logs: The tosses.
        starts: First states, shape [len(logs), 13].

    Attributes:
        rows: Rows of each log, shape [len(logs)].
        touch: First row of each log in which a corner is at the table.
    """

    def __init__(self, logs: Sequence[Trajectory], starts: Array) -> None:
        self.logs, self.starts = list(logs), np.asarray(starts)
        self.rows = np.array([len(log.measurements) for log in logs])
        self.touch = np.array([int(np.argmax(cube.lowest_corner(x[:, :3], x[:, 3:7]) < 0.002)) for x in (log.measurements for log in logs)])

    def draw(self, rng: np.random.Generator, most: int) -> Tosses:
        """Return some of the tosses, drawn at random, or these where there are no more."""
        if len(self.logs) <= most:
            return self
        chosen = rng.choice(len(self.logs), most, replace=False)
        return Tosses([self.logs[k] for k in chosen], self.starts[chosen])

    def poses(self, simulator: MujocoSimulator, values: Mapping[str, float], law: Law | None = None,
              rows: NDArray[np.int64] | None = None) -> Array:
        """Return position and quaternion, shape [len(logs), most rows, 7]; arguments as in ``toss_rollout.rollout``."""
        return rollout(simulator, self.starts, self.rows if rows is None else rows, values, law)

    def simulate(self, simulator: MujocoSimulator, values: Mapping[str, float], law: Law | None = None) -> dict[str, tuple[Array, Array]]:
        """Return position [rows, 3] and quaternion [rows, 4] of every toss by its name."""
        found = self.poses(simulator, values, law)
        return {log.name: (x[:n, :3], x[:n, 3:]) for log, x, n in zip(self.logs, found, self.rows, strict=True)}

    def errors(self, simulator: MujocoSimulator, values: Mapping[str, float], law: Law | None = None) -> Array:
        """Return the mean distance [m] and angle [rad] of every toss, shape [len(logs), 2]."""
        found = self.simulate(simulator, values, law)
        means = np.array([[e.mean() for e in cube.errors(log, *found[log.name])] for log in self.logs])
        return np.where(np.isfinite(means), means, LOST)
