"""Small MuJoCo models that many tests share, each with the features its name says, and states of them."""

from __future__ import annotations

from collections.abc import Iterator

import mujoco
import numpy as np
import torch
from torch import Tensor

from residual_mbrl.physics.mujoco_simulator import MujocoSimulator

ARM = """
<mujoco model="arm"><option timestep="0.002"/>
  <worldbody>
    <body name="upper" pos="0 0 1"><joint name="shoulder" axis="0 1 0" damping="0.1" armature="0.01" stiffness="0.2" frictionloss="0.05"/>
      <geom name="upper" type="capsule" size=".04" fromto="0 0 0 0 0 -.4"/>
      <body name="lower" pos="0 0 -.4"><joint name="elbow" axis="0 1 0" damping="0.05" range="-60 60" limited="true"/>
        <geom name="lower" type="capsule" size=".03" fromto="0 0 0 .1 0 -.3"/></body></body>
  </worldbody>
  <actuator><motor name="shoulder" joint="shoulder" gear="2"/><position name="elbow_servo" joint="elbow" kp="5"/></actuator>
  <keyframe><key qpos="0.3 0.2"/></keyframe>
</mujoco>"""
"""Two links, a motor, a servo, a limit, a spring, dry friction."""

BODIES = """
<mujoco><option timestep="0.004" integrator="implicitfast"/>
  <worldbody>
    <body name="free" pos="0 0 2"><freejoint name="free"/>
      <geom name="brick" type="box" size=".1 .2 .3" pos=".05 0 0"/>
      <body name="swinging" pos="0 0 -.4"><joint name="ball" type="ball" damping=".02"/>
        <geom name="rod" type="capsule" size=".05" fromto="0 0 0 .1 .1 -.4"/></body></body>
    <body name="cart" pos="2 0 1"><joint name="slide" type="slide" axis="1 0 0" damping=".5"/><geom name="cart" size=".2"/></body>
  </worldbody>
  <actuator><general name="push" joint="slide" dyntype="filter" dynprm=".05" gainprm="3"/></actuator>
</mujoco>"""
"""A free body, a ball joint, a filtered drive."""

COUPLED = """
<mujoco><option timestep="0.002"/>
  <worldbody>
    <body pos="0 0 1"><joint name="a" axis="0 1 0"/><geom name="ga" type="capsule" size=".04" fromto="0 0 0 0 0 -.3"/>
      <site name="sa" pos="0 0 -.3"/></body>
    <body pos=".3 0 1"><joint name="b" axis="0 1 0"/><geom name="gb" type="capsule" size=".04" fromto="0 0 0 0 0 -.3"/>
      <site name="sb" pos="0 0 -.3"/></body>
    <body name="c" pos=".6 0 1"><joint name="c" axis="0 1 0"/><geom name="gc" type="capsule" size=".04" fromto="0 0 0 0 0 -.3"/></body>
  </worldbody>
  <contact><exclude body1="c" body2="world"/></contact>
  <tendon>
    <spatial name="cable" stiffness="20" damping=".5" frictionloss=".1"><site site="sa"/><site site="sb"/></spatial>
    <fixed name="belt"><joint joint="a" coef="1"/><joint joint="c" coef="-1"/></fixed>
  </tendon>
  <equality><joint name="gear" joint1="b" joint2="c" polycoef="0 .5 0 0 0"/></equality>
  <actuator><motor name="pull" tendon="belt"/></actuator>
</mujoco>"""
"""Spatial and fixed tendons, dry friction along one, an equality constraint."""

BOXES = """
<mujoco><option timestep="0.002" cone="elliptic" tolerance="0" iterations="100"/>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 .1"/>
    <body name="box" pos="0 0 .1"><freejoint name="box"/><geom name="box" type="box" size=".1 .1 .1" friction=".6 .01 .001"/></body>
    <body name="ball" pos=".05 0 .3"><freejoint name="ball"/><geom name="ball" size=".1" condim="6"/></body>
  </worldbody>
</mujoco>"""
"""Contacts between floor, box and ball, solved to rounding; nothing is actuated."""

DELAYED = """
<mujoco><option timestep="0.002"/>
  <worldbody><body><joint name="hinge" axis="0 1 0" damping=".1"/>
    <geom name="rod" type="capsule" size=".04" fromto="0 0 0 0 0 -.4"/></body></worldbody>
  <actuator><motor name="drive" joint="hinge" delay="0.007" nsample="5" interp="linear"/></actuator>
</mujoco>"""
"""A drive that executes its command 7 ms late."""

MODELS = {"arm": ARM, "bodies": BODIES, "coupled": COUPLED, "boxes": BOXES, "delayed": DELAYED}


def start(simulator: MujocoSimulator, *batch: int, seed: int = 0, spread: float = 0.2) -> Tensor:
    """States about the model's own first one: rotated, moved and moving; delay buffers as the engine starts them, shape [*batch, nx]."""
    space, data = simulator.space, mujoco.MjData(simulator.model)
    first = np.zeros(mujoco.mj_stateSize(simulator.model, int(mujoco.mjtState.mjSTATE_PHYSICS)))
    mujoco.mj_getState(simulator.model, data, first, int(mujoco.mjtState.mjSTATE_PHYSICS))
    state = torch.zeros(*batch, space.nx, dtype=torch.float64)
    state[..., : len(first)] = torch.from_numpy(first)
    moved = torch.zeros(*batch, space.ndx, dtype=torch.float64)
    n = 2 * space.nv
    moved[..., :n] = spread * torch.randn(*batch, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return space.integrate(state, moved)


def commands(simulator: MujocoSimulator, *shape: int, seed: int = 1) -> Tensor:
    """Random commands of order one, shape [*shape, nu]."""
    return torch.randn(*shape, simulator.space.nu, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def engine_steps(model: mujoco.MjModel, state: Tensor, actions: Tensor, forces: Tensor | None = None, substeps: int = 1) -> Tensor:
    """States of a plain ``mj_step`` loop in one fresh MjData, shape [H + 1, nx], the first included."""
    return torch.stack(list(_loop(model, state, actions, forces, substeps)))


def _loop(model: mujoco.MjModel, state: Tensor, actions: Tensor, forces: Tensor | None, substeps: int) -> Iterator[Tensor]:
    spec, data = int(mujoco.mjtState.mjSTATE_PHYSICS), mujoco.MjData(model)
    size = mujoco.mj_stateSize(model, spec)
    timed = len(state) > size
    mujoco.mj_setState(model, data, state[:size].numpy(), spec)
    data.time = float(state[-1]) if timed else 0.0
    yield state
    for t, action in enumerate(actions):
        data.ctrl[:] = action.numpy()
        data.qfrc_applied[:] = 0.0 if forces is None else forces[t].numpy()
        for _ in range(substeps):
            mujoco.mj_step(model, data)
        after = np.empty(size)
        mujoco.mj_getState(model, data, after, spec)
        yield torch.from_numpy(np.append(after, data.time) if timed else after)
