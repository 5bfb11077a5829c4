"""The main job without data or hardware: a simulated arm whose payload, friction, delay and spring nobody told the model."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from residual_mbrl.arm_figure import spring_figure, tool_path, tracking_figure
from residual_mbrl.artifact import Calibration
from residual_mbrl.baselines import Baseline
from residual_mbrl.calibration import calibrate
from residual_mbrl.demo_arm import DELAY, JOINTS, MOTORS, Robot, arm_xml, robot_model
from residual_mbrl.demo_logs import FEEDBACK, HORIZON, read_logs, simulate_logs
from residual_mbrl.demo_motion import figure_of_eight
from residual_mbrl.effects import Delay
from residual_mbrl.fitting import FitOptions
from residual_mbrl.identification import IdentifyOptions
from residual_mbrl.metrics import Metric
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.presets.preset import Candidates, Preset
from residual_mbrl.residuals.joint_springs import JointSprings
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.tracking import Run, advanced, calibrated_torques, inverse_torques, track

FREE = ("frictionloss:*", "mass:payload", "com:payload.*", "mass:link1", "com:link1.z")
"""What is identified. The last two turn about a vertical axis, where no log can show them: the report must say so."""

LONGEST_DELAY = 0.05
"""Upper bound of the motors' delays [s]."""
NOISE = 1e-4
"""Error [rad] of the encoders, rounding included."""
START_STD = (*(5 * NOISE for _ in JOINTS), *(0.02 for _ in JOINTS))
"""How far a window's first positions [rad] and velocities [rad/s] may lie from their first estimates: several times their errors."""
LINK_MASS_STD, LINK_COM_STD = 0.2, 0.02
"""How well the maker knows the first link [kg, m]: no log shows either, and what no log shows must have a prior to stay put."""
TYPICAL_FORCE = 5.0
"""Scale of the residual [N·m]."""

SECONDS = 6.0
"""Length of the motion that is followed in the end."""


TRACKING = ("The arm follows a motion that is in no log, driven by inverse dynamics of the data sheet's model, of the calibrated one, "
            "and of the robot itself, whose error is that of the encoders.")
SPRINGS = "What the residual learned at each joint, and the spring that the simulated robot really has."


def simulator() -> MujocoSimulator:
    """Make the arm as its data sheet has it."""
    named = MujocoSimulator(arm_xml(), FREE).parameters
    weighed = named.replaced(**{"mass:link1": {"prior_std": LINK_MASS_STD}, "com:link1.z": {"prior_std": LINK_COM_STD}})
    return MujocoSimulator(arm_xml(), weighed)


def sensor(baseline: Baseline) -> Sensor:
    """Encoders, velocities estimated from them that only serve first states, and a delay of every motor."""
    columns = (*(Column(name=n, source=n, noise=NOISE, largest=4 * math.pi) for n in baseline.space.position),
               *(Column(name=n, source=n, noise=math.inf, largest=100.0) for n in baseline.space.velocity))
    return Sensor(space=baseline.space, columns=columns, commands={n: (Delay(upper=LONGEST_DELAY),) for n in MOTORS})


def candidates(baseline: Baseline, seed: int) -> Candidates:
    """Offer a spring at every joint: conservative, whatever its shape."""
    del baseline, seed
    return {"joint springs": [JointSprings(nq=len(JOINTS), scale=TYPICAL_FORCE)]}


ARM = Preset(name="arm", summary="simulated 7-joint arm with unknown payload, friction, delay and spring", read=read_logs,
             baseline=simulator, sensor=sensor, candidates=candidates, horizon=HORIZON, refit=False,
             identify=IdentifyOptions(candidates=1, starts=1, iterations=6, longest=100, every=2, loss="linear", start_std=START_STD),
             fit=FitOptions(horizons=(50, 150), rounds=1, iterations=5, ridge=0.02, explained=1e-5, loss="linear", start_std=START_STD))


def run_demo(out: Path, seed: int = 0, progress: Callable[[str, float], None] | None = None) -> list[Metric]:
    """Record logs of the simulated robot, calibrate on them, and follow a new motion with and without the calibration.

    Args:
        out: Folder of the artefact and its report.
        seed: Seed of motions, noise and search.
        progress: Called with a phrase and the fraction done.

    Returns:
        Error on the robot when it follows the motion by inverse dynamics of the data sheet's model, of the calibrated one, and
        of the robot itself: of the joints [rad] and of the tool [m].
    """
    runs: dict[str, Run] = {}

    def figures(calibration: Calibration) -> dict[str, tuple[Figure, str]]:
        runs.update(follow(calibration, seed))
        return {"tracking": (tracking_figure(runs), TRACKING), "springs": (spring_figure(calibration.model.dynamics), SPRINGS)}

    with tempfile.TemporaryDirectory() as name, _one_torch_thread():
        simulate_logs(Path(name), seed)
        calibrate(replace(ARM, figures=figures), Path(name), out, seed=seed, progress=progress)
    return tracking_metrics(runs)


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Leave the cores to the engine: torch's arrays are small here, and its idle threads would spin on the cores that others need."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def follow(calibration: Calibration, seed: int = 0) -> dict[str, Run]:
    """Draw eights with the tool, which no log shows, by inverse dynamics of the nominal, the calibrated and the true model.

    The true one, which nobody has outside a simulation, tells what is left to encoders and feedback.
    """
    dynamics = calibration.model.dynamics
    assert isinstance(dynamics.baseline, MujocoSimulator)  # noqa: S101
    nominal, dt = dynamics.baseline.model, dynamics.dt
    motion = figure_of_eight(nominal, SECONDS)
    time = dt * np.arange(round(SECONDS / dt), dtype=np.float64)
    delays = np.array([calibration.model.sensor_values[f"{n}.delay"] for n in MOTORS])
    torques = {"nominal": inverse_torques(nominal, motion, time),
               "calibrated": advanced(calibrated_torques(dynamics, motion, time), dt, delays),
               "true": advanced(inverse_torques(robot_model(), motion, time), dt, np.full(len(MOTORS), DELAY))}
    start = motion(time[:1])[0]
    return {n: track(Robot(start, u[0], 10_000 + seed), motion, u, FEEDBACK) for n, u in torques.items()}


def tracking_metrics(runs: Mapping[str, Run]) -> list[Metric]:
    """Return the root mean square of joint and tool errors of some runs."""
    metrics = []
    for name, run in runs.items():
        miss = tool_path(run.positions) - tool_path(run.reference)
        metrics += [Metric(model=name, metric="tracking_rms", value=run.rms, unit="rad"),
                    Metric(model=name, metric="tool_rms", value=float(np.sqrt((miss**2).sum(1).mean())), unit="m")]
    return metrics
