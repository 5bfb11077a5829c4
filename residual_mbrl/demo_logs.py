"""Logs of the simulated robot: it follows exciting motions by the data sheet's model, badly, and what it did is recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import NDArray

from residual_mbrl.datasets.log_set import LogSet, Part, check_lengths, open_arrays
from residual_mbrl.demo_arm import JOINTS, MOTORS, Robot, arm_xml
from residual_mbrl.demo_motion import excitation, home_pose
from residual_mbrl.errors import LogError
from residual_mbrl.signal_estimates import fit_locally
from residual_mbrl.tracking import Feedback, Run, inverse_torques, track
from residual_mbrl.trajectories import Trajectory

Array = NDArray[np.float64]

PARTS: Mapping[Part, Sequence[str]] = {"train": ("run1", "run2", "run3", "run4"), "val": ("run5",), "test": ("run6",)}
SECONDS = 5.0
HORIZON = 400
"""Steps of a window. What a parameter does adds up over a window, the encoders' noise does not: at an equal number of steps few
long windows tell more than many short ones."""
STRIDES: Mapping[Part, int] = {"train": 700, "val": 400, "test": 400}
"""Steps from the start of one window to the start of the next."""
SETTING_OUT = 0.6
"""Seconds until the arm moves. A joint at rest shows nothing of its friction but that it sticks."""

STIFFNESS = np.array([600.0, 600.0, 400.0, 400.0, 100.0, 100.0, 60.0])
"""Of the joints' feedback [N·m/rad]."""
INERTIA = np.array([1.5, 2.3, 0.75, 0.75, 0.12, 0.12, 0.10])
"""About what each joint moves [kg·m²], for a feedback damped to 0.7 of critical."""
FEEDBACK = Feedback(stiffness=STIFFNESS, damping=1.4 * np.sqrt(STIFFNESS * INERTIA))

FIT_WINDOW = 31
"""Samples from which a velocity is estimated, 62 ms."""


def record(seed: int, seconds: float) -> Run:
    """Let the robot follow one motion by the data sheet's model."""
    nominal = mujoco.MjModel.from_xml_string(arm_xml())
    motion = excitation(home_pose(nominal), seed)
    torques = inverse_torques(nominal, motion, nominal.opt.timestep * np.arange(round(seconds / nominal.opt.timestep)))
    return track(Robot(motion(np.zeros(1))[0], torques[0], seed), motion, torques, FEEDBACK)


def simulate_logs(folder: Path, seed: int = 0, seconds: float = SECONDS) -> None:
    """Write one npz file a log: ``time`` [s], ``position`` [rad] and ``velocity`` [rad/s] of the joints, ``torque`` sent [N·m].

    Args:
        folder: Where to.
        seed: Seed of motions and noise.
        seconds: Length of each log.
    """
    for i, name in enumerate(n for names in PARTS.values() for n in names):
        run = record(1000 * seed + i, seconds)
        dt = float(run.time[1])
        velocity = [fit_locally(q, dt, order=1, lag=0.5 * dt, window=FIT_WINDOW) for q in run.measured.T]
        # nothing is sent after the last sample: the last torque is written twice, so that all columns have one length
        np.savez(folder / f"{name}.npz", time=run.time, position=run.measured, velocity=np.stack(velocity, 1),
                 torque=np.concatenate([run.torques, run.torques[-1:]]))


def read_logs(folder: Path, parts: Sequence[Part]) -> LogSet:
    """Read the logs of some parts.

    Raises:
        LogError: if one is missing or wrong.
    """
    paths = {p: [folder / f"{n}.npz" for n in PARTS[p]] for p in parts}
    logs = {p: [_read(path) for path in paths[p]] for p in parts}
    edge = FIT_WINDOW // 2  # velocities at the very ends were estimated from one side
    starts = {p: [list(range(round(SETTING_OUT / t.interval), len(t.command_time) - HORIZON - edge, STRIDES[p])) for t in logs[p]]
              for p in parts}
    return LogSet(logs=logs, starts=starts, files=[path for p in parts for path in paths[p]])


def _read(path: Path) -> Trajectory:
    d = open_arrays(path, ("time", "position", "velocity", "torque"))
    check_lengths(path, d)
    wrong = {n: d[n].shape for n in ("position", "velocity", "torque") if d[n].shape != (len(d["time"]), len(JOINTS))}
    if wrong:
        raise LogError(f"{path}: expected {len(JOINTS)} columns, received {wrong}")
    velocities = tuple(f"{n}.vel" for n in JOINTS)
    units = {**dict.fromkeys(JOINTS, "rad"), **dict.fromkeys(velocities, "rad/s")}
    return Trajectory(name=path.stem, command_time=d["time"], commands=d["torque"], command_names=MOTORS, measurement_time=d["time"],
                      measurements=np.concatenate([d["position"], d["velocity"]], 1), measurement_names=(*JOINTS, *velocities), units=units)
