"""A quadrotor in MuJoCo with slow motors and drag that its data sheet does not tell of, logs of it, and its calibration."""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np
import torch
from cart_pole_plant import Calibrated
from mujoco_plant import MujocoPlant
from numpy.typing import NDArray

from residual_mbrl.costs import QuadraticCost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.identification import IdentifyOptions, identify
from residual_mbrl.physics.quadrotor import ROTORS, Quadrotor
from residual_mbrl.physics.quadrotor_parameters import PARAMETERS
from residual_mbrl.planners.ilqr import ILQR, ILQROptions
from residual_mbrl.planners.limits import Limits
from residual_mbrl.planners.plan import shift
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.trajectories import Trajectory
from residual_mbrl.windows import cut_windows

Array = NDArray[np.float64]

STEP = 0.001
LIMITS = Limits(action_lower=0.3, action_upper=2.6)
SHEET = PARAMETERS.nominal()
HOVER = float(np.sqrt(SHEET["mass"] * SHEET["gravity"] / (4 * SHEET["thrust1"])))
NOISE = np.concatenate([np.full(3, 1e-3), np.full(4, 5e-4), np.full(3, 5e-3), np.full(3, 1e-2), np.full(4, 5e-3)])
"""Standard deviation of position [m], quaternion, velocity [m/s], rate [rad/s] and rotor speed [krad/s] as measured."""
FREE = ["motor_lag", "thrust?", "drag_x", "drag_y", "drag_z", "drag_rotor", "drag_quadratic", "inertia_xx", "inertia_yy", "inertia_zz",
        "drag_torque"]

XML = """
<mujoco model="quadrotor">
  <option timestep="{step}" integrator="RK4" gravity="0 0 -9.81"/>
  <worldbody><body name="drone"><freejoint/><inertial pos="0 0 0" mass="{mass}" diaginertia="{ixx} {iyy} {izz}"/></body></worldbody>
</mujoco>"""


@dataclass(frozen=True)
class Truth:
    """What the quadrotor is, by the names of the parameters."""

    values: dict[str, float]


def drawn(seed: int) -> Truth:
    """Return a plant of its own for a seed: motors three times slower than in the data sheet, drag, 5 % less thrust."""
    rng = np.random.default_rng(20_000 + seed)
    vary = lambda x: float(x * rng.uniform(0.85, 1.15))  # noqa: E731
    values = {"motor_lag": vary(0.015), "drag_x": vary(0.025), "drag_y": vary(0.03), "drag_z": vary(0.015), "drag_rotor": vary(0.002),
              "drag_quadratic": vary(0.003), "inertia_xx": vary(2.8e-5), "inertia_yy": vary(2.6e-5), "inertia_zz": vary(1.4e-5),
              "drag_torque": vary(2e-4), **{f"thrust{i}": 0.0372 * float(rng.uniform(0.92, 0.98)) for i in (1, 2, 3, 4)}}
    return Truth({**SHEET, **values})


class Plant(MujocoPlant):
    """The simulated quadrotor: rotors lag behind their commands, the air drags, MuJoCo moves the body.

    Args:
        truth: What it is.
        seed: Of the noise.
    """

    def __init__(self, truth: Truth, seed: int = 0) -> None:
        self._p = p = truth.values
        super().__init__(mujoco.MjModel.from_xml_string(XML.format(step=STEP, mass=p["mass"], ixx=p["inertia_xx"], iyy=p["inertia_yy"],
                                                                   izz=p["inertia_zz"])), NOISE, seed)
        self.rotors: Array = np.full(4, HOVER)
        self._signs = np.array(ROTORS, float)
        self._thrust = np.array([p[f"thrust{i}"] for i in (1, 2, 3, 4)])

    @property
    def state(self) -> Array:
        """As it is, shape [17]."""
        return np.concatenate([self.data.qpos, self.data.qvel, self.rotors])

    @state.setter
    def state(self, x: Array) -> None:
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:], self.data.qvel[:], self.rotors = x[:7], x[7:13], x[13:].copy()

    def run(self, seconds: float, command: Array) -> None:
        """Advance under commanded rotor speeds [krad/s]."""
        p, matrix = self._p, np.empty(9)
        for _ in range(round(seconds / STEP)):
            after = command + (self.rotors - command) * np.exp(-STEP / p["motor_lag"])
            speed, self.rotors = 0.5 * (self.rotors + after), after
            mujoco.mju_quat2Mat(matrix, self.data.qpos[3:7] / np.linalg.norm(self.data.qpos[3:7]))
            rotation, lift = matrix.reshape(3, 3), self._thrust * speed**2
            v = rotation.T @ self.data.qvel[:3]
            drag = np.array([p["drag_x"], p["drag_y"], p["drag_z"]]) + p["drag_rotor"] * speed.sum() * np.array([1.0, 1.0, 0.0])
            force = np.array([0.0, 0.0, lift.sum()]) - (drag + p["drag_quadratic"] * np.linalg.norm(v)) * v
            x, y = self._signs[:, 0] * p["arm_x"], self._signs[:, 1] * p["arm_y"]
            torque = np.array([y @ lift, -x @ lift, -p["drag_torque"] * (self._signs[:, 2] @ speed**2)])
            self.data.qfrc_applied[:3], self.data.qfrc_applied[3:6] = rotation @ force, torque
            mujoco.mj_step(self.model, self.data)


def baseline(dt: float) -> ResidualDynamics:
    """Return the data sheet's model."""
    return ResidualDynamics(Quadrotor(dt=dt, substeps=2))


def true_model(truth: Truth, dt: float) -> ResidualDynamics:
    """Return the model that knows everything."""
    return baseline(dt).with_values(truth.values)


def lap(time: Array, radius: float, seconds: float, phase: float) -> Array:
    """Return a lying figure of eight [m], tilted, with its velocity, as states, shape [T, 17]."""
    goal = np.zeros((len(time), 17))
    w, a = 2 * np.pi / seconds, 2 * np.pi * time / seconds + phase
    goal[:, 0], goal[:, 1], goal[:, 2] = radius * np.sin(a), 0.5 * radius * np.sin(2 * a), 0.3 * radius * np.cos(a)
    goal[:, 7], goal[:, 8], goal[:, 9] = radius * w * np.cos(a), radius * w * np.cos(2 * a), -0.3 * radius * w * np.sin(a)
    goal[:, 3], goal[:, 13:] = 1.0, HOVER
    return goal


STATE = np.array([30.0, 30.0, 30.0, 0.3, 0.3, 3.0, 2.0, 2.0, 2.0, 0.01, 0.01, 0.05, *[0.0] * 4])
ACTION = np.full(4, 0.01)


def cost_of(model: ResidualDynamics, goals: Array) -> QuadraticCost:
    """Return the cost of following states [H + 1, 17]."""
    f = lambda x: torch.from_numpy(np.ascontiguousarray(x)).float()  # noqa: E731
    return QuadraticCost(space=model.space, state=f(STATE), action=f(ACTION), terminal=f(3 * STATE), target=f(goals), trajectory=True)


def record(plant: Plant, dt: float, seconds: float, seed: int) -> Trajectory:
    """Record a flight along a lap by the data sheet's model, with noise on the commands."""
    rng, model, steps = np.random.default_rng(seed), baseline(dt), round(seconds / dt)
    radius, turn, phase = rng.uniform(0.8, 1.8), rng.uniform(4.0, 6.0), rng.uniform(0, 2 * np.pi)
    horizon = 30
    goals = lap(dt * np.arange(steps + horizon + 1), radius, turn, phase)
    planner = ILQR(model, cost_of(model, goals[: horizon + 1]), ILQROptions(iterations=3), steps=horizon, limits=LIMITS,
                   initial_action=HOVER)
    plant.state = goals[0]
    states, commands, plan = [plant.read()], [], None
    for k in range(steps):
        plan = planner.plan(torch.from_numpy(states[-1]).float(), None if plan is None else shift(plan, 1),
                            cost=cost_of(model, goals[k : k + horizon + 1]))
        commands.append(np.clip(plan.actions[0].double().numpy() + 0.05 * rng.standard_normal(4), 0.3, 2.6))
        plant.run(dt, commands[-1])
        states.append(plant.read())
    space = model.space
    return Trajectory(name=f"lap {seed}", command_time=dt * np.arange(steps + 1), commands=np.stack([*commands, commands[-1]]),
                      command_names=space.action, measurement_time=dt * np.arange(steps + 1), measurements=np.stack(states),
                      measurement_names=space.state_names)


def calibrate(truth: Truth, dt: float, seed: int = 0, seconds: float = 60.0) -> Calibrated:
    """Identify the parameters on logs of the plant; they say all that there is, so that no residual is fitted."""
    plant = Plant(truth, seed)
    logs = [record(plant, dt, seconds / 6, 100 * seed + i) for i in range(6)]
    nominal = baseline(dt)
    columns = tuple(Column(name=n, source=n, noise=s) for n, s in zip(nominal.space.state_names, NOISE, strict=True))
    windows = cut_windows(logs[:5], dt, horizon=round(0.2 / dt))
    sensor, options = Sensor(space=nominal.space, columns=columns), IdentifyOptions(free=FREE, candidates=1, starts=1, horizons=(2, 4))
    found = identify(nominal, sensor, windows, options)
    return Calibrated(nominal, found.dynamics, found.dynamics, logs[5])
