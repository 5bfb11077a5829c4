"""My robot drops things differently than MuJoCo says: calibrate the contact, write it back into the MJCF, play the rest as a plug-in.

The logs here come from a second model that stands for the real robot: a slippery box, a springy table, and a felt sole that brakes impacts,
which no number of an MJCF describes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import mujoco
import numpy as np
import torch
import tyro
from torch import Tensor

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.mjcf_export import export_mjcf
from residual_mbrl.mujoco_plugin import MujocoPlugin
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.residuals import ContactForce
from residual_mbrl.rollouts import rollout

MJCF = """<mujoco model="drop"><option timestep="0.004" cone="elliptic"/><worldbody>
  <geom name="table" type="plane" size="2 2 .1" friction=".9" priority="1"/>
  <body name="part"><freejoint name="part"/><geom name="part" type="box" size=".05 .04 .03" mass=".4"/></body></worldbody></mujoco>"""
REAL = {"friction:table.slide": 0.35, "solref:table.timeconst": 0.032, "solref:table.dampratio": 0.55}


def drops(count: int, seed: int) -> Tensor:
    """First states: above the table, turned and thrown, shape [count, nx]."""
    generator, space = torch.Generator().manual_seed(seed), MujocoSimulator(MJCF).space
    moved = torch.randn(count, space.ndx, generator=generator, dtype=torch.float64)
    moved *= torch.tensor([0, 0, 0.02, *[0.6] * 3, 0.6, 0.6, 0.3, *[3.0] * 3], dtype=torch.float64)
    rest = torch.zeros(space.nx, dtype=torch.float64)
    rest[2], rest[3] = 0.12, 1.0
    return space.integrate(rest.expand(count, -1), moved)


def error(dynamics: ResidualDynamics, logs: Tensor) -> float:
    """Mean distance [mm] of the box from where the logs have it, over whole drops from their first states."""
    with torch.no_grad():
        found = rollout(dynamics, logs[:, 0], logs.new_zeros(len(logs), logs.shape[1] - 1, 0))
    return 1e3 * float((found - logs)[..., :3].norm(dim=-1).mean())


def descend(dynamics: ResidualDynamics, numbers: dict[str, Tensor], logs: Tensor, steps: int, rate: float) -> None:
    """Move numbers and weights down the gradient of eight-step predictions from every logged state, through the impacts."""
    starts = torch.stack([logs[:, k : k + 9] for k in range(0, logs.shape[1] - 9, 8)], 1).flatten(0, 1)
    unknown = [*numbers.values(), *dynamics.parameters()]
    optimiser = torch.optim.Adam(unknown, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        values = {n: dynamics.values[n] * x.exp() for n, x in numbers.items()}
        off = dynamics.space.difference(rollout(dynamics, starts[:, 0], starts.new_zeros(len(starts), 8, 0), values), starts)
        torch.nn.functional.huber_loss(off, torch.zeros_like(off), delta=0.1).backward()
        optimiser.step()
        schedule.step()


def main(steps: int = 60, tosses: int = 24) -> dict[str, float]:
    """Calibrate, export, play.

    Args:
        steps: Of the descent, for the numbers and then for the learned force.
        tosses: Drops that are logged to learn from; as many others are predicted.
    """
    simulator, felt = MujocoSimulator(MJCF, list(REAL)), ContactForce(most=8, cone="own")
    with torch.no_grad():
        felt.network.biases[-1].copy_(torch.tensor([0.5, 0.0]))
    robot, none = ResidualDynamics(simulator, [felt], REAL), torch.zeros(tosses, 120, 0, dtype=torch.float64)
    with torch.no_grad():
        train, test = (rollout(robot, drops(tosses, seed), none) for seed in (0, 1))
    nominal = ResidualDynamics(simulator)
    print(f"MuJoCo as the file has it: {error(nominal, test):.1f} mm off; gradients by friction: {simulator.gradient_method([*REAL][0])}")

    numbers = {n: torch.zeros((), dtype=torch.float64, requires_grad=True) for n in REAL}
    descend(nominal, numbers, train, steps, 0.1)
    values = {n: float(nominal.values[n] * x.detach().exp()) for n, x in numbers.items()}
    identified = ResidualDynamics(simulator, (), values)
    print(f"identified: {error(identified, test):.1f} mm; " + ", ".join(f"{n} {x:.3f} (true {REAL[n]})" for n, x in values.items()))

    learned = ResidualDynamics(simulator, [ContactForce(most=8, cone="own", seed=1)], values)
    learned.normalise(train[:, :-1].flatten(0, 1), none.flatten(0, 1))
    descend(learned, numbers := {n: torch.zeros((), dtype=torch.float64, requires_grad=True) for n in REAL}, train, steps, 0.05)
    learned.values |= {n: float(learned.values[n] * x.detach().exp()) for n, x in numbers.items()}
    held = all(c.holds for c in learned.certificates(test[:, :-1].flatten(0, 1), none.flatten(0, 1)))
    print(f"identified + learned force: {error(learned, test):.1f} mm; inside the laws of contact: {held}")

    with tempfile.TemporaryDirectory() as folder:
        print(f"written into the MJCF: {', '.join(export_mjcf(learned, Path(folder) / 'drop.xml'))}")
        again = MujocoSimulator(Path(folder) / "drop.xml", list(REAL)).parameters.nominal()
    plugin = MujocoPlugin(learned)
    data = mujoco.MjData(plugin.model)
    data.qpos[:], data.qvel[:] = np.split(test[0, 0].numpy(), [7])
    for _ in range(120):
        plugin(data)
        mujoco.mj_step(plugin.model, data)
    played = 1e3 * float(np.linalg.norm(data.qpos[:3] - test[0, -1, :3].numpy()))
    print(f"your own loop with the plug-in ends {played:.1f} mm from the first logged drop")
    return {"nominal": error(nominal, test), "identified": error(identified, test), "identified+residual": error(learned, test),
            "friction": again["friction:table.slide"], "held": held, "played": played}


if __name__ == "__main__":
    tyro.cli(main)
