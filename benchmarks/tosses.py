"""Tosses simulated by a MuJoCo model: starts, rollouts of all lengths in few batches, errors toss by toss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from load_friction import rollout
from numpy.typing import NDArray

from residual_mbrl.datasets import cube
from residual_mbrl.free_flight import SHORTEST, FlightReport, first_state
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.trajectories import Trajectory

Array = NDArray[np.float64]

BATCHES = 3
"""Batches of tosses of like length: a batch is simulated as long as its longest."""

LOST = (1.0, np.pi)
"""Errors [m, rad] of a rollout that is not finite."""


@dataclass(frozen=True, kw_only=True)
class Starts:
    """What the logged first frame says of the first state.

    Args:
        velocity_scale: Logged velocity over the true one.
        velocity_lag: Time by which the logged velocity is late [s].
        gravity: Downward acceleration by which the vertical velocity changed meanwhile [m/s²].
        engine_lag: Time by which the engine's own velocities are late [s], which it expects of its first state too.
    """

    velocity_scale: float
    velocity_lag: float
    gravity: float
    engine_lag: float

    @classmethod
    def of(cls, report: FlightReport, simulator: MujocoSimulator) -> Starts:
        """Return what free flight found."""
        return cls(velocity_scale=report.velocity_scale, velocity_lag=report.velocity_lag, gravity=report.gravity,
                   engine_lag=simulator.velocity_lag)

    def raw(self, log: Trajectory) -> Array:
        """Return the first logged frame with its velocity set right, shape [13]."""
        state = log.measurements[0].copy()
        state[7:10] /= self.velocity_scale
        state[9] -= self.gravity * (self.velocity_lag - self.engine_lag)
        return state

    def denoised(self, log: Trajectory) -> Array:
        """Return the fit to the whole free flight where that is long enough, shape [13]."""
        flight = cube.flight(log)
        if len(flight) < SHORTEST:
            return self.raw(log)
        state = first_state(flight, self.gravity)
        state[9] += self.gravity * self.engine_lag
        return state


class Tosses:
    """A set of tosses with the state that each starts from.

    Args:
        logs: The tosses.
        starts: First states, shape [len(logs), 13].
    """

    def __init__(self, logs: Sequence[Trajectory], starts: Array) -> None:
        self.logs = list(logs)
        self.starts = torch.from_numpy(np.asarray(starts))
        lengths = np.array([len(log.measurements) for log in logs])
        self._batches = [b for b in np.array_split(np.argsort(lengths, kind="stable"), BATCHES) if len(b)]

    def simulate(self, simulator: MujocoSimulator, values: Mapping[str, float]) -> dict[str, tuple[Array, Array]]:
        """Return position [rows, 3] and quaternion [rows, 4] of every toss by its name.

        Args:
            simulator: The model; one step is one row.
            values: Of what is identified, nominal where missing.
        """
        found = {}
        for batch in self._batches:
            steps = len(self.logs[batch[-1]].measurements) - 1
            states = rollout(simulator, self.starts[batch], steps, values).numpy()
            for k, rows in zip(batch, states, strict=True):
                log = self.logs[k]
                found[log.name] = (rows[: len(log.measurements), :3], rows[: len(log.measurements), 3:7])
        return found

    def errors(self, simulator: MujocoSimulator, values: Mapping[str, float]) -> Array:
        """Return the mean distance [m] and angle [rad] of every toss, shape [len(logs), 2]."""
        found = self.simulate(simulator, values)
        means = np.array([[e.mean() for e in cube.errors(log, *found[log.name])] for log in self.logs])
        return np.where(np.isfinite(means), means, LOST)
