"""Wrap an MJCF in one line: batched steps, live parameters, gradients; then find its payload from a motion and write it back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
import tyro

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.identification import IdentifyOptions, identify
from residual_mbrl.mjcf_export import export_mjcf
from residual_mbrl.models import ARM
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.rollouts import rollout
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.trajectories import Trajectory
from residual_mbrl.windows import cut_windows


def main(mjcf: Path = ARM, parameters: tuple[str, ...] = ("mass:payload", "damping:joint*")) -> dict[str, float]:
    """Wrap, differentiate, identify, export.

    Args:
        mjcf: Any MJCF, URDF or MJB file.
        parameters: What shall be a parameter, by name or glob pattern.
    """
    simulator = MujocoSimulator(mjcf, parameters, dt=0.004)  # everything the engine does, two engine steps at a time
    dynamics = ResidualDynamics(simulator)
    space = simulator.space
    print(f"states {', '.join(space.position)} and their rates; actions {', '.join(space.action)}; {len(simulator.parameters)} parameters")

    # 64 worlds at once, each with a payload of its own, and the gradient of where they end with respect to that mass
    start = torch.zeros(64, space.nx, dtype=torch.float64)
    start[:, 1] = 0.6
    actions = 2 * torch.randn(50, len(space.action), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mass = torch.linspace(0.1, 3.0, 64, dtype=torch.float64, requires_grad=True)
    reached = rollout(dynamics, start, actions[:10], {"mass:payload": mass})[:, -1, 1]
    reached.sum().backward()
    slope = float(mass.grad[0]) if mass.grad is not None else 0.0
    print(f"joint2 after {10 * simulator.dt:g} s moves by {slope:.2e} rad per kg of payload at 0.1 kg")

    # a log of a robot that carries 1.3 kg more than the model thinks, and what identification makes of it
    carried = simulator.parameters["mass:payload"].nominal + 1.3
    sensor = Sensor(space=space, columns=tuple(Column(name=n, source=n, noise=1e-4) for n in (*space.position, *space.velocity)))
    with torch.no_grad():
        states = rollout(ResidualDynamics(simulator, values={"mass:payload": carried}), start[0], actions)
    noisy = states + 1e-4 * torch.randn(states.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    time = simulator.dt * np.arange(len(states))
    log = Trajectory(name="robot", command_time=time[:-1], commands=actions.numpy(), command_names=space.action, measurement_time=time,
                     measurements=noisy.numpy(), measurement_names=(*space.position, *space.velocity))
    windows = cut_windows([log], simulator.dt, horizon=25, stride=5)
    found = identify(dynamics, sensor, windows, IdentifyOptions(candidates=1, starts=1, free=["mass:payload"]))
    (estimate,) = found.estimates
    print(f"payload {estimate.value:.4f} kg, 95 % interval {estimate.interval[0]:.4f} to {estimate.interval[1]:.4f}; true {carried:.4f}")

    with tempfile.TemporaryDirectory() as folder:
        written = export_mjcf(found.dynamics, Path(folder) / "calibrated.xml")
        again = MujocoSimulator(Path(folder) / "calibrated.xml", ["mass:payload"])
        print(f"written back into the MJCF: {', '.join(written)}")
        kept = again.parameters["mass:payload"].nominal
    return {"slope": slope, "mass": estimate.value, "true": carried, "written": kept}


if __name__ == "__main__":
    tyro.cli(main)
