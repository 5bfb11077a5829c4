"""A 7-joint arm as its data sheet has it, and a simulated one that stands for the real robot: what nobody told the model."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from importlib.resources import files

import mujoco
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

JOINTS = tuple(f"joint{i}" for i in range(1, 8))
MOTORS = tuple(f"motor{i}" for i in range(1, 8))


@dataclass(frozen=True, kw_only=True)
class Spring:
    """A torsion spring that no parameter of the model describes.

    Args:
        joint: Where it acts.
        stiffness: [N·m/rad].
        rest: Angle at which it gives no torque [rad].
    """

    joint: str
    stiffness: float
    rest: float


TRUTH = {"frictionloss:joint1": 2.1, "frictionloss:joint2": 1.9, "frictionloss:joint3": 1.3, "frictionloss:joint4": 1.5,
         "frictionloss:joint5": 0.55, "frictionloss:joint6": 0.50, "frictionloss:joint7": 0.42,
         "mass:payload": 1.6, "com:payload.x": 0.035, "com:payload.y": -0.025, "com:payload.z": 0.070}
"""What the simulated robot really is, by parameter: gears that rub [N·m], and a payload [kg, m] three times the tool's."""

SPRING = Spring(joint="joint4", stiffness=8.0, rest=1.1)

DELAY = 0.006
"""From the command to the torque [s]."""

ENCODER_NOISE, ENCODER_STEP = 5e-5, 2 * np.pi / 2**16
"""Standard deviation of the noise, and size of a count [rad]."""


def arm_xml() -> str:
    """Return the MJCF of the arm as its data sheet has it."""
    return files("residual_mbrl.models").joinpath("arm.xml").read_text()


def robot_model() -> mujoco.MjModel:
    """Make the model behind the simulated robot: the arm with its real payload, friction and spring."""
    spec = mujoco.MjSpec.from_string(arm_xml())
    for name in JOINTS:
        spec.joint(name).frictionloss = TRUTH[f"frictionloss:{name}"]
    spring = spec.joint(SPRING.joint)
    spring.stiffness[0], spring.springref = SPRING.stiffness, SPRING.rest
    model = spec.compile()
    payload = model.body("payload")
    payload.mass, payload.ipos = TRUTH["mass:payload"], [TRUTH[f"com:payload.{axis}"] for axis in "xyz"]
    mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


class Robot:
    """The simulated robot: torques go in, late; noisy encoder counts come out.

    Args:
        position: Where it stands, shape [7].
        torque: What has been holding it there [N·m], shape [7].
        seed: Seed of the encoders' noise.
    """

    def __init__(self, position: Array, torque: Array, seed: int = 0) -> None:
        self._model = robot_model()
        self._data = mujoco.MjData(self._model)
        self._data.qpos[:] = position
        self._rng = np.random.default_rng(seed)
        self.dt = float(self._model.opt.timestep)
        self._on_the_way = deque([torque] * round(DELAY / self.dt))

    @property
    def position(self) -> Array:
        """Joint angles as they are [rad], shape [7]."""
        return np.array(self._data.qpos)

    def read(self) -> Array:
        """Return what the encoders show [rad], shape [7]."""
        q = self._data.qpos
        shown = q + ENCODER_NOISE * self._rng.standard_normal(len(q))
        return np.asarray(np.round(shown / ENCODER_STEP) * ENCODER_STEP)

    def send(self, torque: Array) -> None:
        """Send motor torques [N·m], shape [7]; they act ``DELAY`` seconds later."""
        self._on_the_way.append(torque)
        self._data.ctrl[:] = self._on_the_way.popleft()
        mujoco.mj_step(self._model, self._data)
