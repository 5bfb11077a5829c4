"""The 7-joint arm in MuJoCo with a payload and friction that its data sheet does not tell of, and its calibration."""

from __future__ import annotations

import mujoco
import numpy as np
import torch
from cart_pole_plant import Calibrated
from identification import ARM_TRUTH, Case
from mujoco_plant import MujocoPlant
from numpy.typing import NDArray

from residual_mbrl.costs import QuadraticCost
from residual_mbrl.demo_arm import arm_xml
from residual_mbrl.demo_motion import excitation, home_pose
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.identification import IdentifyOptions, identify
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.planners.limits import Limits
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.windows import cut_windows

Array = NDArray[np.float64]

NOISE = (1e-4, 5e-3)
"""Standard deviation of measured angles [rad] and velocities [rad/s]."""
STATE, ACTION = np.array([100.0] * 7 + [0.3] * 7), np.full(7, 1e-5)
NOMINAL = mujoco.MjModel.from_xml_string(arm_xml())
LIMITS = Limits(action_lower=NOMINAL.actuator_ctrlrange[:, 0].tolist(), action_upper=NOMINAL.actuator_ctrlrange[:, 1].tolist())


def drawn(seed: int) -> Case:
    """Return a plant of its own for a seed, with six logs of a second: friction, damping and payload about the usual ones."""
    rng = np.random.default_rng(30_000 + seed)
    truth = {n: x * float(rng.uniform(0.85, 1.15)) for n, x in ARM_TRUTH.items()}
    return Case(name=f"arm {seed}", xml=arm_xml(), truth=truth, noise=NOISE, stiffness=100.0, amplitude=[0.9] * 7, logs=6, seconds=1.0)


class Plant(MujocoPlant):
    """The simulated arm: torques are held, observations are noisy.

    Args:
        case: What it is.
        seed: Of the noise.
    """

    def __init__(self, case: Case, seed: int) -> None:
        super().__init__(case.simulator().model_with(case.truth), np.repeat(NOISE, 7), seed)

    def run(self, seconds: float, command: Array) -> None:
        """Advance under held torques [N·m]."""
        self.data.ctrl[:] = command
        for _ in range(round(seconds / self.model.opt.timestep)):
            mujoco.mj_step(self.model, self.data)


def model_of(case: Case, values: dict[str, float], dt: float) -> ResidualDynamics:
    """Return the arm with values of the free parameters, at the rate of the control."""
    return ResidualDynamics(MujocoSimulator(arm_xml(), case.parameters, dt=dt, threads=1), values=values)


def calibrate(case: Case, dt: float) -> Calibrated:
    """Identify friction, damping and payload on the logs, at the engine's own step."""
    simulator = case.simulator()
    columns = tuple(Column(name=n, source=n, noise=NOISE[n not in simulator.space.position]) for n in simulator.space.state_names)
    windows = cut_windows(case.trajectories, simulator.dt, horizon=None)
    options = IdentifyOptions(candidates=1, starts=1, loss="linear", iterations=60, horizons=[windows.horizon // 5])
    found = identify(ResidualDynamics(simulator), Sensor(space=simulator.space, columns=columns), windows, options)
    calibrated = model_of(case, dict(found.dynamics.values), dt)
    return Calibrated(model_of(case, {}, dt), calibrated, calibrated, case.trajectories[-1])


def goals(seed: int, time: Array) -> Array:
    """Return a motion of random sines as states, shape [T, 14]."""
    motion = excitation(home_pose(NOMINAL), 900 + seed)
    return np.concatenate([motion(time), (motion(time + 1e-4) - motion(time - 1e-4)) / 2e-4], 1)


def cost_of(model: ResidualDynamics, targets: Array) -> QuadraticCost:
    """Return the cost of following states [H + 1, 14]."""
    f = lambda x: torch.from_numpy(np.ascontiguousarray(x)).float()  # noqa: E731
    return QuadraticCost(space=model.space, state=f(STATE), action=f(ACTION), terminal=f(3 * STATE), target=f(targets), trajectory=True)


def holding() -> Array:
    """Return the torques that hold the data sheet's arm at home [N·m]."""
    data = mujoco.MjData(NOMINAL)
    data.qpos[:] = home_pose(NOMINAL)
    mujoco.mj_forward(NOMINAL, data)
    return np.array(data.qfrc_bias)
