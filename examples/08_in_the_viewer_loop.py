"""Use a calibrated model where the simulator was: in your own ``mj_step`` loop, with or without the viewer."""

from __future__ import annotations

import time as clock
from pathlib import Path

import mujoco
import mujoco.viewer
import numpy as np
import torch
import tyro

from residual_mbrl.artifact import load
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.models import ARM
from residual_mbrl.mujoco_plugin import MujocoPlugin
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.residuals import Conservative, DryFriction, Feature
from residual_mbrl.rollouts import rollout


def corrected_arm() -> ResidualDynamics:
    """Make what stands for a calibration where none is given: a heavier payload, some friction, a potential of random weights."""
    rates = [Feature(source="velocity", transform="abs")]
    residuals = [Conservative(nq=7, scale=2.0), DryFriction(nv=7, features=rates, sizes=[7], bound=1.0, hidden=())]
    dynamics = ResidualDynamics(MujocoSimulator(ARM, ["mass:payload"]), residuals, {"mass:payload": 1.6})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in dynamics.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return dynamics


def main(artifact: Path | None = None, seconds: float = 2.0, viewer: bool = False) -> dict[str, float]:
    """Step a calibrated arm in a plain loop, and compare with the model's own rollout.

    Args:
        artifact: Folder of a calibration of a MuJoCo model; a made-up one where None.
        seconds: Length of the simulation [s].
        viewer: Show it, in real time.
    """
    dynamics = corrected_arm() if artifact is None else load(artifact).model.dynamics
    plugin = MujocoPlugin(dynamics)
    data = mujoco.MjData(plugin.model)
    steps, rng = round(seconds / dynamics.dt), np.random.default_rng(0)
    commands = np.cumsum(0.2 * rng.standard_normal((steps, plugin.model.nu)), 0)
    shown = mujoco.viewer.launch_passive(plugin.model, data) if viewer else None

    states, begun = [], clock.perf_counter()
    for command in commands:
        for _ in range(round(dynamics.dt / plugin.model.opt.timestep)):
            data.ctrl[:] = command
            plugin(data)  # the only line that a calibrated loop adds
            mujoco.mj_step(plugin.model, data)
        states.append(np.concatenate([data.qpos, data.qvel, data.act]))
        if shown is not None:
            shown.sync()
            clock.sleep(max(0.0, begun + len(states) * dynamics.dt - clock.perf_counter()))
    each = (clock.perf_counter() - begun) / steps
    if shown is not None:
        shown.close()

    start = torch.cat([torch.from_numpy(plugin.model.qpos0), torch.zeros(plugin.model.nv + plugin.model.na)]).double()
    with torch.no_grad():
        expected = rollout(dynamics, start, torch.from_numpy(commands))[1:, : len(states[0])].numpy()
    difference = float(np.abs(np.array(states) - expected).max())
    print(f"{steps} steps of {dynamics.dt:g} s, {1e6 * each:.0f} us each; the last residual force is {np.round(plugin.force, 2)} N·m")
    print(f"largest difference from the calibrated model's own rollout: {difference:.1e}")
    return {"difference": difference, "force": float(np.abs(plugin.force).max())}


if __name__ == "__main__":
    tyro.cli(main)
