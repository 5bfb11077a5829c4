"""Bodies that touch the floor and each other, and states of them in and near contact."""

from __future__ import annotations

import mujoco
import torch
from torch import Tensor

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.residuals import ContactForce, Context

_HEAD = """<mujoco><option timestep="{dt}" cone="{cone}" solver="Newton" iterations="100" tolerance="1e-14"/>
  <worldbody><geom name="floor" type="plane" size="5 5 .1"/>"""
CUBE = _HEAD + """
    <body name="cube" pos="0 0 .06"><freejoint/><geom name="cube" type="box" size=".05 .05 .05" mass=".37" friction=".3"/></body>
  </worldbody></mujoco>"""
CAPSULE = _HEAD + """
    <body name="capsule" pos="0 0 .06"><freejoint/>
      <geom name="capsule" type="capsule" size=".04 .1" mass=".5" condim="6" friction=".8 .02 .01"/></body>
  </worldbody></mujoco>"""
TWO_LINK = _HEAD + """
    <body name="upper" pos="0 0 .2"><freejoint/><geom name="upper" type="box" size=".1 .03 .03" mass=".4"/>
      <body name="lower" pos=".12 0 0"><joint name="elbow" axis="0 1 0" damping=".02"/>
        <geom name="lower" type="capsule" size=".025" fromto="0 0 0 .2 0 0" mass=".2" friction=".5"/></body></body>
  </worldbody></mujoco>"""
_LEGS = "".join(f"""
      <body name="hip{i}" pos="{x} {y} 0"><joint name="hip{i}" axis="0 0 1" damping=".5" range="-40 40" limited="true"/>
        <geom name="thigh{i}" type="capsule" size=".03" fromto="0 0 0 {x} {y} 0" mass=".3"/>
        <body name="knee{i}" pos="{x} {y} 0"><joint name="knee{i}" axis="{-y} {x} 0" damping=".5" range="-80 80" limited="true"/>
          <geom name="shin{i}" type="capsule" size=".03" fromto="0 0 0 {x} {y} -.2" mass=".2"/></body></body>"""
                for i, (x, y) in enumerate([(.15, .15), (-.15, .15), (-.15, -.15), (.15, -.15)]))
QUADRUPED = _HEAD + f"""
    <body name="torso" pos="0 0 .3"><freejoint/><geom name="torso" type="sphere" size=".12" mass="3"/>{_LEGS}</body>
  </worldbody>
  <actuator>{"".join(f'<motor joint="{j}{i}" gear="3"/>' for i in range(4) for j in ("hip", "knee"))}</actuator></mujoco>"""

BODIES = {"cube": CUBE, "capsule": CAPSULE, "two_link": TWO_LINK, "quadruped": QUADRUPED}
HEIGHTS = {"cube": (0.04, 0.09), "capsule": (0.03, 0.12), "two_link": (0.02, 0.15), "quadruped": (0.1, 0.3)}
CONES = ("pyramidal", "elliptic")


def make(body: str, cone: str = "elliptic", dt: float = 0.002) -> MujocoSimulator:
    return MujocoSimulator(BODIES[body].format(cone=cone, dt=dt))


def near_floor(simulator: MujocoSimulator, body: str, count: int, seed: int = 0, speed: float = 1.0) -> Tensor:
    """Poses at random heights, some flat and some turned any way, at random velocities, shape [count, nx]."""
    generator = torch.Generator().manual_seed(seed)
    space, (low, high) = simulator.space, HEIGHTS[body]
    state = torch.zeros(count, space.nx, dtype=torch.float64)
    state[:, : space.nq] = torch.from_numpy(simulator.model.qpos0)
    moved = torch.randn(count, space.ndx, generator=generator, dtype=torch.float64)
    turned = torch.rand(count, 1, generator=generator, dtype=torch.float64) ** 2
    moved[:, :3] = 0.0
    moved[:, 3:6] *= 2 * turned
    moved[:, 6 : space.nv] *= 0.3
    moved[:, space.nv :] *= speed
    state = space.integrate(state, moved)
    state[:, 2] = low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)
    return state


def commands(simulator: MujocoSimulator, count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, simulator.space.nu, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def engine(simulator: MujocoSimulator, state: Tensor, action: Tensor) -> mujoco.MjData:
    """The engine's own quantities at a state, in one fresh MjData."""
    data, nq, nv = mujoco.MjData(simulator.model), simulator.space.nq, simulator.space.nv
    data.qpos[:], data.qvel[:], data.ctrl[:] = state[:nq].numpy(), state[nq : nq + nv].numpy(), action.numpy()
    mujoco.mj_forward(simulator.model, data)
    return data


def seen(simulator: MujocoSimulator, residual: ContactForce, state: Tensor, action: Tensor) -> Context:
    """What the residual sees."""
    return ResidualDynamics(simulator, [residual]).contexts(state, action)[0]


def randomise(residual: ContactForce, size: float, seed: int) -> None:
    """Draw all weights at random, signs included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for w in residual.parameters():
            w.copy_(size * torch.randn(w.shape, generator=generator, dtype=w.dtype))

