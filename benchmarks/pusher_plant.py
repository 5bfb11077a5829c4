"""A finger that shoves a carton over a table in MuJoCo, and its calibration.

Load, table and fingertip are not what the data sheet says. Parameters cannot say all of it: the table has a grain, across which it rubs
more than along it, and the models that are calibrated have one friction for both. The engine of the plant steps five times as often as
that of the models.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np
import torch
from cart_pole_plant import Calibrated
from mujoco_plant import MujocoPlant, drawn_about
from numpy.typing import NDArray

from residual_mbrl.costs import QuadraticCost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.identification import IdentifyOptions, identify
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.planners.limits import Limits
from residual_mbrl.robust import Loss
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.trajectories import Trajectory
from residual_mbrl.windows import cut_windows

Array = NDArray[np.float64]

LIMIT = 30.0
"""Largest force of a motor [N]."""
PLANT_STEP, MODEL_STEP = 0.001, 0.005
"""Of the engine [s]."""
LENGTH, WIDTH, TIP, HEIGHT = 0.12, 0.09, 0.015, 0.05
"""Half length and half width of the carton, radius of the fingertip, height of both [m]."""
NOISE = np.concatenate([np.full(5, 3e-4), np.full(4, 1e-3), np.full(5, 5e-3), np.full(3, 2e-2)])
"""Standard deviation of measured places [m], quaternion, speeds [m/s] and rates [rad/s]."""
SEEN = ("finger.x", "finger.y", "carton.x", "carton.y", "carton.qw", "carton.qz", "finger.x.vel", "finger.y.vel", "carton.vx", "carton.vy",
        "carton.wz")
"""Columns that are identified by: the motion in the plane. How the feet rattle says little of it."""
LIMITS = Limits(action_lower=-LIMIT, action_upper=LIMIT)

XML = """
<mujoco model="pusher">
  <compiler autolimits="true"/><option timestep="{step}" cone="elliptic" impratio="10"/>
  <worldbody>
    <geom name="table" type="plane" size="3 3 .1" friction="{table} 0 0" priority="1"/>
    <body name="finger" pos="0 0 .05">
      <joint name="finger.x" type="slide" axis="1 0 0" range="-.6 0" damping="{rail}"/>
      <joint name="finger.y" type="slide" axis="0 1 0" range="-.5 .5" damping="{rail}"/>
      <inertial pos="0 0 0" mass="{finger}" diaginertia=".001 .001 .001"/>
      <geom name="tip" type="sphere" size=".015" friction="{tip} 0 0" solref="{softness} 1" priority="2"/>
    </body>
    <body name="carton" pos="0 0 .05">
      <freejoint name="carton"/>
      <inertial pos="{ahead} {aside} 0" mass="{carton}" diaginertia="{tilt} {tilt} {turn}"/>
      <geom name="sides" type="box" size=".12 .09 .04"/>
      <geom name="front" type="sphere" size=".01" pos=".1 0 -.04"/>
      <geom name="left" type="sphere" size=".01" pos="-.08 .075 -.04"/>
      <geom name="right" type="sphere" size=".01" pos="-.08 -.075 -.04"/>
    </body>
  </worldbody>
  <contact>{grain}<exclude body1="world" body2="finger"/></contact>
  <actuator><motor name="push.x" joint="finger.x" gear="{gear}"/><motor name="push.y" joint="finger.y" gear="{gear}"/></actuator>
</mujoco>"""
FREE = ["mass:finger", "damping:finger.x", "damping:finger.y", "mass:carton", "com:carton.x", "com:carton.y", "body_inertia[2,2]",
        "friction:table.slide", "friction:tip.slide", "solref:tip.timeconst"]


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What the pusher is. The data sheet says what ``SHEET`` does: an empty carton that stands on a table whose grain does not matter."""

    finger: float = 0.5
    rail: float = 3.0
    carton: float = 1.4
    ahead: float = 0.015
    aside: float = -0.012
    tilt: float = 0.008
    turn: float = 0.011
    table: float = 0.39
    across: float = 1.25
    """Friction along y over that along x."""
    tip: float = 0.35
    softness: float = 0.03
    gear: float = 0.9

    def xml(self, step: float) -> str:
        """Return its MJCF."""
        along, across = self.table, self.table * self.across
        pairs = "".join(f'<pair geom1="{foot}" geom2="table" condim="3" friction="{across} {along} 0 0 0"/>'
                        for foot in ("front", "left", "right"))
        return XML.format(step=step, grain="" if self.across == 1.0 else pairs, **{n: x for n, x in vars(self).items() if n != "across"})


SHEET = Truth(finger=0.4, rail=2.0, carton=1.0, ahead=0.0, aside=0.0, tilt=0.006, turn=0.008, table=0.3, across=1.0, tip=0.6,
              softness=0.02, gear=1.0)


def drawn(seed: int) -> Truth:
    """Return a plant of its own for a seed: every property about the usual one."""
    found: Truth = drawn_about(Truth(), 40_000 + seed)
    return found


class Plant(MujocoPlant):
    """The simulated plant: forces are held, observations are noisy.

    Args:
        truth: What it is.
        seed: Of the noise.
    """

    def __init__(self, truth: Truth, seed: int = 0) -> None:
        super().__init__(mujoco.MjModel.from_xml_string(truth.xml(PLANT_STEP)), NOISE, seed)

    def run(self, seconds: float, command: Array) -> None:
        """Advance under held forces [N]."""
        self.data.ctrl[:] = np.clip(command, -LIMIT, LIMIT)
        for _ in range(round(seconds / PLANT_STEP)):
            mujoco.mj_step(self.model, self.data)


def baseline(dt: float) -> ResidualDynamics:
    """Return the data sheet's model."""
    return ResidualDynamics(MujocoSimulator(SHEET.xml(MODEL_STEP), FREE, dt=dt, threads=1))


def true_model(truth: Truth, dt: float) -> ResidualDynamics:
    """Return the model that knows everything."""
    return ResidualDynamics(MujocoSimulator(truth.xml(MODEL_STEP), dt=dt, threads=1))


def at_rest(finger: Array, place: Array, heading: float = 0.0) -> Array:
    """Return the state of a finger and a carton that do not move, shape [17]."""
    return np.array([*finger, *place, HEIGHT, np.cos(heading / 2), 0.0, 0.0, np.sin(heading / 2), *[0.0] * 8])


def target(seed: int) -> Array:
    """Return where the carton shall come to rest, beyond the finger's reach, shape [17]."""
    rng = np.random.default_rng(50_000 + seed)
    return at_rest(np.array([-0.1, 0.0]), np.array([LENGTH + TIP + rng.uniform(0.2, 0.35), rng.uniform(-0.04, 0.04)]))


def start(seed: int) -> Array:
    """Return finger and carton behind each other, at rest."""
    rng = np.random.default_rng(60_000 + seed)
    return at_rest(np.array([-0.2, rng.uniform(-0.02, 0.02)]), np.array([LENGTH + TIP - 0.198, 0.0]))


STATE = np.array([0.02, 0.02, 10.0, 10.0, 0.0, 0.0, 0.0, 1.0, 0.002, 0.002, 0.05, 0.05, 0.0, 0.0, 0.0, 0.002])
ACTION = np.full(2, 1e-5)


def cost_of(model: ResidualDynamics, goals: Array) -> QuadraticCost:
    """Return the cost of following states [H + 1, 17]."""
    f = lambda x: torch.from_numpy(np.ascontiguousarray(x)).float()  # noqa: E731
    return QuadraticCost(space=model.space, state=f(STATE), action=f(ACTION), terminal=f(10 * STATE), target=f(goals), trajectory=True)


def record(plant: Plant, dt: float, seconds: float, seed: int) -> Trajectory:
    """Record a shove of the carton's rear side: where, in which direction, how fast and how far is random, and the finger wavers.

    The carton is put where it starts; the mean of what is measured there for a fifth of a second, at rest, is the first sample.
    """
    rng, steps = np.random.default_rng(seed), round(seconds / dt)
    heading, place = rng.uniform(-0.4, 0.4), np.array([-0.25, 0.0])
    into, along = np.array([np.cos(heading), np.sin(heading)]), np.array([-np.sin(heading), np.cos(heading)])
    begin = place - (LENGTH + TIP + 0.004) * into + rng.uniform(-0.5, 0.5) * WIDTH * along
    plant.state = at_rest(begin, place, heading)
    waiting = round(0.2 / dt)
    first = np.zeros(17)
    for _ in range(waiting):
        first += plant.read() / waiting
        plant.run(dt, np.zeros(2))
    first[9:] = 0.0
    states, commands = [first], []
    rate, phase, speed, end = rng.uniform(2.0, 8.0, 2), rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.2, 2.0), rng.uniform(0.1, 0.3)
    for k in range(steps - waiting):
        x, t = states[-1], k * dt
        gone = min(speed * t, end)
        goal = begin + gone * into + 0.02 * np.sin(rate[0] * t) * along
        pull = 150.0 * (goal - x[:2]) - 12.0 * (x[9:11] - (gone < end) * speed * into) + np.sin(rate[1] * t + phase[1]) * into
        commands.append(np.clip(pull, -LIMIT, LIMIT))
        plant.run(dt, commands[-1])
        states.append(plant.read())
    time = dt * np.arange(len(states))
    space = MujocoSimulator(SHEET.xml(MODEL_STEP)).space
    return Trajectory(name=f"push {seed}", command_time=time, commands=np.stack([*commands, commands[-1]]), command_names=space.action,
                      measurement_time=time, measurements=np.stack(states), measurement_names=space.state_names)


def calibrate(truth: Truth, dt: float, seed: int = 0, seconds: float = 60.0) -> Calibrated:
    """Identify masses, friction, centre of mass and softness on logs of the plant; the table's grain has no parameter."""
    plant, pushes = Plant(truth, seed), 75
    logs = [record(plant, dt, seconds / pushes, 100 * seed + i) for i in range(pushes)]
    nominal = baseline(dt)
    names = nominal.space.state_names
    columns = tuple(Column(name=n, source=n, noise=s if n in SEEN else np.inf) for n, s in zip(names, NOISE, strict=True))
    windows = cut_windows(logs[:-1], dt, horizon=None)
    sensor, found = Sensor(space=nominal.space, columns=columns), nominal
    stages: tuple[tuple[int, Loss], ...] = ((6, "linear"), (12, "linear"), (windows.horizon, "soft_l1"))
    for steps, loss in stages:
        options = IdentifyOptions(candidates=1, starts=1, loss=loss, f_scale=3.0)
        found = identify(found, sensor, windows.first(steps), options).dynamics
    return Calibrated(nominal, found, found, logs[-1])
