"""The user's own MuJoCo model and logs, put together as any other kind of plant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch

from residual_mbrl.baselines import Baseline
from residual_mbrl.column_map import ColumnMap
from residual_mbrl.datasets.log_files import read_recordings
from residual_mbrl.datasets.log_set import LogSet, Part
from residual_mbrl.errors import LogError
from residual_mbrl.fitting import FitOptions
from residual_mbrl.identification import IdentifyOptions
from residual_mbrl.mapping import Prepared, prepare
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.presets.preset import Candidates, Preset
from residual_mbrl.residuals import Conservative, Dissipative, DryFriction, Feature
from residual_mbrl.trajectories import Trajectory

HORIZON = 0.5
"""Length of training windows [s]."""
T = TypeVar("T")

LEARNED_SHARE = 0.25
"""Bound of a learned friction, as a part of the torque that a joint typically needs."""


def read_logs(simulator: MujocoSimulator, logs: Sequence[Path], mapping: ColumnMap | None = None, *, resample: bool = False) -> Prepared:
    """Read logs and put them on a model's states, commands, units and time grid.

    Args:
        simulator: The model.
        logs: Log files or data set folders.
        mapping: Which column is what; columns are found by their names where None.
        resample: Interpolate logs that were recorded at another rate.

    Raises:
        LogError: naming log and column, and what to state in the mapping.
    """
    clock = (mapping or ColumnMap()).clock
    recordings = read_recordings(logs, time=clock.time, time_unit=clock.unit, rate=clock.rate)
    return prepare(recordings, simulator.space, mapping, dt=simulator.dt, ranges=simulator.ranges, drives=simulator.drives,
                   resample=resample, velocity_lag=simulator.velocity_lag)


def simulator_preset(simulator: MujocoSimulator, prepared: Prepared, files: Sequence[Path], *, horizon: float = HORIZON,
                     identify: IdentifyOptions | None = None, fit: FitOptions | None = None) -> Preset:
    """Put a model and its logs together.

    The last quarter of the logs (the last fifth of the windows, where there is one log) is held out to choose the residual; no part of them
    is a test set.

    Args:
        simulator: The model; its parameters are identified.
        prepared: The logs.
        files: Files they came from.
        horizon: Length of training windows [s].
        identify: Options of identification.
        fit: Options of residual fitting.
    """
    steps = window_steps(prepared, simulator.dt, horizon)
    name = simulator.file.name
    return Preset(name=name, summary=f"{name} in MuJoCo", usage=f"{name} LOGS", read=_Logs(_split(prepared.trajectories), tuple(files)),
                  baseline=_Given(simulator), sensor=_Given(prepared.sensor), candidates=candidates, horizon=steps,
                  identify=identify or IdentifyOptions(candidates=8, starts=1, iterations=20),
                  fit=fit or FitOptions(rounds=2, iterations=4, ridge=0.05))


def window_steps(prepared: Prepared, dt: float, horizon: float) -> int:
    """Return the steps of windows ``horizon`` seconds long; fewer where the longest log is shorter."""
    longest = max(round(t.duration / dt) for t in prepared.trajectories)
    return max(1, min(round(horizon / dt), longest))


def candidates(baseline: Baseline, seed: int) -> Candidates:
    """Joint friction and damping that depend on rates; a potential, where positions are joint angles alone."""
    assert isinstance(baseline, MujocoSimulator)  # noqa: S101
    space, nv = baseline.space, baseline.space.nv
    torque = float(np.median(baseline.typical_forces()))
    rates = [Feature(source="velocity", transform="abs")]
    offered: dict[str, list[torch.nn.Module]] = {
        "dry friction": [DryFriction(nv=nv, features=rates, sizes=[nv], bound=LEARNED_SHARE * torque, hidden=(), seed=seed)],
        "damping": [Dissipative(nv=nv, features=rates, sizes=[nv], bound=LEARNED_SHARE * torque, hidden=(), diagonal=True, seed=seed)]}
    if not space.quaternions:
        offered["potential"] = [Conservative(nq=space.nq, units=max(4, space.nq), scale=LEARNED_SHARE * torque, seed=seed)]
    return offered  # type: ignore[return-value]


@dataclass(frozen=True)
class _Given(Generic[T]):
    """A function that returns what it was made with, whatever it is asked: a preset's makers must be picklable."""

    value: T

    def __call__(self, *_: object) -> T:
        return self.value


@dataclass(frozen=True)
class _Logs:
    """Logs that are read already."""

    parts: Mapping[Part, Sequence[Trajectory]]
    files: tuple[Path, ...] = field(default=())

    def __call__(self, data: Path, parts: Sequence[Part]) -> LogSet:
        del data
        missing = [p for p in parts if p == "test"]
        if missing:
            raise LogError("these logs have no test part: score the calibration on other logs")
        return LogSet(logs={p: self.parts[p] for p in parts if p in self.parts}, starts={}, files=[f for f in self.files if f.is_file()])


def _split(trajectories: Sequence[Trajectory]) -> dict[Part, Sequence[Trajectory]]:
    held = round(0.25 * len(trajectories)) or (1 if len(trajectories) > 1 else 0)
    cut = len(trajectories) - held
    return {"train": trajectories[:cut], **({"val": trajectories[cut:]} if held else {})}
