"""A cart-pole in MuJoCo that is not what its data sheet says, logs of it, and its calibration: what the loop benchmarks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
import torch
from mujoco_plant import MujocoPlant, drawn_about
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.baselines import Parameter, Parameters, Values
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.fitting import FitOptions, fit
from residual_mbrl.identification import IdentifyOptions, identify
from residual_mbrl.model import Model
from residual_mbrl.physics.cartpole import PARAMETERS, CartPole
from residual_mbrl.physics.mechanical_warp import WarpTerms
from residual_mbrl.residuals import DryFriction, Feature, JointSprings
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.trajectories import Trajectory
from residual_mbrl.windows import Windows, cut_windows

Array = NDArray[np.float64]

LIMIT = 15.0
"""Largest force of the motor [N]."""
NOISE = np.array([2e-4, 4e-4, 2e-3, 4e-3])
"""Standard deviation of the measured cart [m], angle [rad], speed [m/s] and rate [rad/s]."""
STEP = 0.001
"""Of the plant [s]."""

XML = """
<mujoco model="cart-pole">
  <option timestep="{step}" integrator="RK4" gravity="0 0 -9.81"/>
  <worldbody>
    <body name="cart">
      <joint name="cart" type="slide" axis="1 0 0" damping="{rail}" frictionloss="{dry}" stiffness="{cable}" springref="{rest}"/>
      <inertial pos="0 0 0" mass="{cart}" diaginertia="0.01 0.01 0.01"/>
      <body name="pole">
        <joint name="angle" axis="0 -1 0" damping="{hinge}"/>
        <inertial pos="0 0 -{length}" mass="{pole}" diaginertia="{inertia} {inertia} 0.0001"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor name="force" joint="cart" gear="{gear}"/></actuator>
</mujoco>"""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What the cart-pole is. The data sheet says 1 kg, 0.1 kg, 0.5 m, a point mass, and nothing of friction, cable or gear."""

    cart: float = 1.3
    pole: float = 0.16
    length: float = 0.6
    inertia: float = 0.008
    rail: float = 0.6
    hinge: float = 0.004
    dry: float = 0.4
    cable: float = 1.5
    rest: float = 0.25
    gear: float = 0.92

    def model(self, step: float = STEP) -> mujoco.MjModel:
        """Compile it."""
        return mujoco.MjModel.from_xml_string(XML.format(step=step, **vars(self)))


def drawn(seed: int) -> Truth:
    """Return a plant of its own for a seed: every property about the usual one."""
    found: Truth = drawn_about(Truth(), 10_000 + seed)
    return found


class Plant(MujocoPlant):
    """The simulated plant: commands hold, observations are noisy.

    Args:
        truth: What it is.
        seed: Of the noise.
    """

    def __init__(self, truth: Truth | None = None, seed: int = 0) -> None:
        super().__init__((truth or Truth()).model(), NOISE, seed)

    def run(self, seconds: float, command: Array, before: Array | None = None, late: float = 0.0) -> None:
        """Advance; ``before`` acts for the first ``late`` seconds, the command after them."""
        for i in range(round(seconds / STEP)):
            share = 0.0 if before is None else min(max(late / STEP - i, 0.0), 1.0)
            u = command if share == 0.0 or before is None else share * before + (1 - share) * command
            self.data.ctrl[:] = np.clip(u, -LIMIT, LIMIT)
            mujoco.mj_step(self.model, self.data)


def baseline(dt: float) -> ResidualDynamics:
    """Return the data sheet's model."""
    return ResidualDynamics(CartPole(dt=dt, substeps=2))


KNOWN = Parameters(*PARAMETERS, Parameter(name="cable", nominal=0.0, lower=0.0, upper=50.0, unit="N/m"),
                   Parameter(name="rest", nominal=0.0, lower=-2.0, upper=2.0, unit="m"),
                   Parameter(name="dry", nominal=0.0, lower=0.0, upper=50.0, unit="N"))


class CartPoleOnCable(CartPole):
    """The cart-pole with what the plant has besides: a cable that pulls the cart, and dry friction of the rail."""

    def smooth_force(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        """Return all forces but friction [N, N·m], shape [*batch, 2]."""
        pull = -p["cable"] * (q[..., 0] - p["rest"])
        return super().smooth_force(q, v, u, p) + torch.stack([pull, torch.zeros_like(pull)], -1)

    def frictionloss(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        """Return the dry-friction limits, shape [*batch, 2]."""
        limit = p["dry"] + torch.zeros_like(q[..., 0])
        return torch.stack([limit, torch.zeros_like(limit)], -1)

    def warp_terms(self) -> WarpTerms:
        """Return the same terms as Warp functions."""
        import warp as wp  # noqa: PLC0415  # half a second that only fused rollouts need

        known, v2, index = super().warp_terms(), wp.types.vector(length=2, dtype=wp.float32), self.parameters.names.index
        other, cable, rest, dry = known.force, index("cable"), index("rest"), index("dry")

        @wp.func
        def force(q: Any, v: Any, u: Any, p: Any) -> Any:
            f = other(q, v, u, p)
            return v2(f[0] - p[cable] * (q[0] - p[rest]), f[1])

        @wp.func
        def friction(q: Any, v: Any, u: Any, p: Any) -> Any:
            return v2(p[dry], 0.0)

        return known._replace(force=force, friction=friction, friction_parameters=("dry",))


def true_model(truth: Truth, dt: float) -> ResidualDynamics:
    """Return the equations that know everything; forces per command, as the gear is not a parameter of them."""
    t = {n: x / truth.gear for n, x in vars(truth).items()}
    values = {"cart_mass": t["cart"], "pole_mass": t["pole"], "pole_inertia": t["inertia"], "length": truth.length,
              "cart_viscous": t["rail"], "pole_viscous": t["hinge"], "cable": t["cable"], "rest": truth.rest, "dry": t["dry"]}
    return ResidualDynamics(CartPoleOnCable(KNOWN, dt=dt, substeps=4), values=values)


def sensor(dynamics: ResidualDynamics) -> Sensor:
    """Return the measured columns."""
    space = dynamics.baseline.space
    return Sensor(space=space, columns=tuple(Column(name=n, source=n, noise=s) for n, s in zip(space.state_names, NOISE, strict=True)))


def record(plant: Plant, dt: float, seconds: float, seed: int, *, upright: bool) -> Trajectory:
    """Record the plant under a random smooth force and a feedback that keeps it on its rail, and upright if asked for.

    Args:
        plant: Where it happens.
        dt: Seconds per sample.
        seconds: Length.
        seed: Of the force.
        upright: Balance the pole by the data sheet's gains; it swings freely otherwise.
    """
    rng = np.random.default_rng(seed)
    steps = round(seconds / dt)
    time = dt * np.arange(steps + 1)
    rate, phase = rng.uniform(1.0, 7.0, 5), rng.uniform(0, 2 * np.pi, 5)
    push = (5.0 if upright else 9.0) * np.sin(rate * time[:, None] + phase).sum(1) / np.sqrt(5)
    plant.state = np.array([0.0, np.pi if upright else rng.uniform(-2, 2), 0.0, 0.0])
    states, commands = [plant.read()], []
    for k in range(steps):
        x = states[-1]
        keep = -(np.array([-4.0, 60.0, -6.0, 14.0]) @ (x - np.array([0, np.pi, 0, 0]))) if upright else -4.0 * x[0] - 1.5 * x[2]
        commands.append(np.clip(np.array([push[k] + keep]), -LIMIT, LIMIT))
        plant.run(dt, commands[-1])
        states.append(plant.read())
    name, commands = f"{'upright' if upright else 'swinging'} {seed}", [*commands, commands[-1]]
    return Trajectory(name=name, command_time=time, commands=np.stack(commands), command_names=("force",), measurement_time=time,
                      measurements=np.stack(states),
                      measurement_names=("cart", "angle", "speed", "rate"))


@dataclass(frozen=True)
class Calibrated:
    """What came of a calibration."""

    nominal: ResidualDynamics
    identified: ResidualDynamics
    calibrated: ResidualDynamics
    held: Trajectory
    """A log that nothing was fitted on."""


def calibrate(truth: Truth, dt: float, seed: int = 0, seconds: float = 60.0) -> Calibrated:
    """Identify the parameters and fit a residual on logs of the plant; a sixth of them is kept for intervals.

    Args:
        truth: The plant.
        dt: Seconds per step of the models.
        seed: Of logs and weights.
        seconds: Of plant data in all.
    """
    plant = Plant(truth, seed)
    part = seconds / 6
    logs = [record(plant, dt, part, 100 * seed + i, upright=i % 2 == 0) for i in range(5)]
    held = record(plant, dt, part, 100 * seed + 5, upright=True)
    nominal = baseline(dt)
    windows = cut_windows(logs, dt, horizon=round(0.4 / dt), stride=round(0.2 / dt))
    found = identify(nominal, sensor(nominal), windows, IdentifyOptions(candidates=1, starts=1, start_std=NOISE))
    return Calibrated(nominal, found.dynamics, corrected(found.dynamics, windows, seed), held)


def corrected(identified: ResidualDynamics, windows: Windows, seed: int) -> ResidualDynamics:
    """Return the identified model with springs and dry friction that are fitted on windows together with its parameters."""
    space = identified.baseline.space
    learned = [JointSprings(nq=space.nq, scale=2.0),
               DryFriction(nv=space.nv, features=[Feature(source="position")], sizes=[space.nq], bound=2.0, hidden=(), seed=seed)]
    start = Model(dynamics=identified.with_residuals(learned), sensor=sensor(identified))
    every = windows.log == int(windows.log.max())
    options = FitOptions(method="gauss_newton", horizons=(round(0.16 / start.dynamics.dt),), rounds=2, iterations=8, f_scale=5.0,
                         start_std=tuple(NOISE))
    free = [p for p in identified.baseline.parameters if p.free]
    return fit(start, windows.take(~every), windows.take(every), options, free=free).model.dynamics
