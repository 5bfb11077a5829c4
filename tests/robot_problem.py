"""A two-joint robot as its MJCF has it, and logs of one that is heavier and has friction."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np

ROBOT = """
<mujoco model="robot"><compiler angle="radian"/><option timestep="0.005" integrator="implicitfast"/>
  <worldbody>
    <body name="upper"><joint name="shoulder" axis="0 1 0" damping="0.1" range="-3 3"/>
      <geom type="capsule" fromto="0 0 0 0 0 -.3" size=".02" mass="1"/>
      <body name="lower" pos="0 0 -.3"><joint name="elbow" axis="0 1 0" damping="0.05" range="-3 3"/>
        <geom type="capsule" fromto="0 0 0 0 0 -.3" size=".02" mass=".5"/></body></body>
  </worldbody>
  <actuator><motor name="m_shoulder" joint="shoulder" ctrlrange="-5 5"/><motor name="m_elbow" joint="elbow" ctrlrange="-3 3"/></actuator>
</mujoco>"""
TRUTH = {"mass:lower": 0.8, "damping:shoulder": 0.3, "frictionloss:shoulder": 0.15}
MAPPING = '[position]\njoints = "q"\n[velocity]\njoints = "qd"\n[action]\nm_shoulder = { column = "tau[0]", delay = 0.0 }\n' \
    'm_elbow = { column = "tau[1]", delay = 0.0 }\n[units]\nposition = "rad"\nvelocity = "rad/s"\n'


def write_robot(folder: Path, *, runs: int = 4, steps: int = 300) -> tuple[Path, list[Path], Path]:
    """Write MJCF, logs and mapping into a folder; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    robot, mapping = folder / "robot.xml", folder / "mapping.toml"
    robot.write_text(ROBOT)
    mapping.write_text(MAPPING)
    model = mujoco.MjModel.from_xml_string(ROBOT)
    model.body("lower").mass = TRUTH["mass:lower"]
    model.dof_damping[0], model.dof_frictionloss[0] = TRUTH["damping:shoulder"], TRUTH["frictionloss:shoulder"]
    mujoco.mj_setConst(model, mujoco.MjData(model))
    rng, time, logs = np.random.default_rng(0), 0.005 * np.arange(steps + 1), []
    for k in range(runs):
        data = mujoco.MjData(model)
        data.qpos[:] = rng.uniform(-0.5, 0.5, 2)
        rates, phases = rng.uniform(2, 8, (2, 3)), rng.uniform(0, 6, (2, 3))
        torque = np.sin(rates * time[:, None, None] + phases).sum(-1) * [1.2, 0.5]
        q, v = np.empty((steps + 1, 2)), np.empty((steps + 1, 2))
        for i in range(steps + 1):
            q[i], v[i] = data.qpos, data.qvel
            data.ctrl[:] = torque[i]
            mujoco.mj_step(model, data)
        logs.append(folder / f"run{k}.npz")
        np.savez(logs[-1], time=time, q=q + 1e-4 * rng.standard_normal(q.shape), qd=v + 1e-2 * rng.standard_normal(v.shape), tau=torque)
    return robot, logs, mapping
