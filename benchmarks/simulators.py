"""What the wrapper costs: MujocoSimulator against mujoco.batch.Batch alone, and its derivatives against differences done by hand.

    python benchmarks/simulators.py [--quick] [--json rows.json]

Each number is a median; ours and the other are measured in turn. The quadruped and the humanoid are Gymnasium's ant and humanoid with
MuJoCo's default integrator. They are shipped with RK4: derivatives are measured for both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import mujoco
import numpy as np
import torch
import tyro
from common import Options, Row, compare, say, show, write_rows
from mujoco.batch import Batch
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.physics.numeric_step import Inputs

Array = NDArray[np.float64]
PHYSICS = int(mujoco.mjtState.mjSTATE_PHYSICS)
HORIZON = 50
CART_POLE = """
<mujoco><option timestep="0.01"/><worldbody><body>
  <joint name="cart" type="slide" axis="1 0 0" damping=".1"/><geom type="box" size=".2 .1 .05"/>
  <body><joint name="pole" axis="0 1 0" damping=".01"/><geom type="capsule" size=".03" fromto="0 0 0 0 0 .8"/></body></body></worldbody>
  <actuator><motor joint="cart" gear="10"/></actuator></mujoco>"""
DIFFERENCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Case:
    """A simulator at some points.

    Args:
        name: Of model and batch.
        simulator: Ours.
        state: Shape [N, nx].
        actions: Shape [N, HORIZON, nu].
    """

    name: str
    simulator: MujocoSimulator
    state: Tensor
    actions: Tensor


def main(options: Options) -> None:
    """Measure everything."""
    torch.manual_seed(0)
    seconds = 0.3 if options.quick else 3.0
    rows: list[Row] = []
    for worlds in (16, 256):
        rows += [race(f"{HORIZON} steps of {c.name}", ours_rollout(c), batch_rollout(c), seconds) for c in cases(worlds)]
    single = [race(f"one step of {c.name}", ours_step(c), batch_step(c), seconds) for c in cases(1)]
    slopes: list[Row] = []
    for c in cases(16, shipped=True):
        by_hand = differences(c)
        slopes.append(race(f"full Jacobian of {c.name}", ours_jacobian(c), by_hand, seconds))
        slopes.append(race(f"vector-Jacobian product of {c.name}", ours_product(c), by_hand, seconds))
        slopes.append(race(f"step and its gradient in torch of {c.name}", ours_gradient(c), by_hand, seconds))
    table("Rollouts: ours, and mujoco.batch.Batch alone", rows)
    table("Single steps: ours, and mujoco.batch.Batch alone", single)
    say(f"largest overhead of a single step: {max(r.ours - r.peer for r in single) * 1e6:.1f} µs")
    table("Derivatives by state, command and force: ours, and centred differences with one mujoco.batch.Batch by hand", slopes)
    write_rows(options.json, [*rows, *single, *slopes])


def cases(worlds: int, *, shipped: bool = False) -> Iterator[Case]:
    """Return every model with a batch of states about its first one, moving a little; with ``shipped`` as Gymnasium has them too."""
    gymnasium = find_spec("gymnasium")
    sources: dict[str, str | mujoco.MjSpec] = {"cart-pole": CART_POLE, "arm": str(files("residual_mbrl") / "models" / "arm.xml")}
    if gymnasium is not None and gymnasium.origin is not None:
        assets = Path(gymnasium.origin).parent / "envs" / "mujoco" / "assets"
        for name, file in (("quadruped", "ant.xml"), ("humanoid", "humanoid.xml")):
            spec = mujoco.MjSpec.from_file(str(assets / file))
            spec.option.integrator = mujoco.mjtIntegrator.mjINT_EULER
            sources |= {name: spec, **({f"{name} with RK4": str(assets / file)} if shipped else {})}
    for name, source in sources.items():
        simulator = MujocoSimulator(source)
        space = simulator.space
        state = torch.zeros(worlds, space.nx, dtype=torch.float64)
        state[:, : space.nq] = torch.from_numpy(simulator.model.qpos0)
        state[:, space.nq : space.nq + space.nv] = 0.1 * torch.randn(worlds, space.nv, dtype=torch.float64)
        actions = 0.1 * torch.randn(worlds, HORIZON, space.nu, dtype=torch.float64)
        yield Case(name=f"{name}, {worlds} world{'s' * (worlds > 1)}", simulator=simulator, state=state, actions=actions)


def ours_rollout(case: Case) -> Callable[[], object]:
    return lambda: case.simulator.rollout(case.state, case.actions)


def batch_rollout(case: Case) -> Callable[[], object]:
    batch, state, actions, qpos, qvel = _batch(case)

    def run() -> object:
        qpos[...], qvel[...] = state[:, : qpos.shape[1]], state[:, qpos.shape[1] :]
        batch.bind("qacc_warmstart")[...] = 0.0
        return batch.rollout(HORIZON, actions, record=(PHYSICS,))

    return run


def ours_step(case: Case) -> Callable[[], object]:
    """Ten steps of a closed loop, in which each starts where the last one ended."""
    def run() -> object:
        state = case.state
        for t in range(10):
            state = case.simulator.step(state, case.actions[:, t])
        return state

    return run


def batch_step(case: Case) -> Callable[[], object]:
    batch, state, actions, qpos, qvel = _batch(case)
    control = batch.bind("ctrl")

    def run() -> object:
        qpos[...], qvel[...] = state[:, : qpos.shape[1]], state[:, qpos.shape[1] :]
        for t in range(10):
            control[...] = actions[:, t]
            batch.step()
            after = np.concatenate([qpos, qvel], 1)
        return after

    return run


def ours_jacobian(case: Case) -> Callable[[], object]:
    return lambda: case.simulator.jacobian(case.state, case.actions[:, 0])


def ours_product(case: Case) -> Callable[[], object]:
    space = case.simulator.space
    inputs = Inputs(state=case.state.numpy(), action=case.actions[:, 0].numpy(), force=np.zeros((len(case.state), space.nv)))
    cotangent, wanted = np.random.default_rng(0).standard_normal((len(case.state), space.ndx)), frozenset({"state", "action", "force"})
    return lambda: case.simulator.pull_back(inputs, cotangent, wanted)


def ours_gradient(case: Case) -> Callable[[], object]:
    force = case.state.new_zeros(len(case.state), case.simulator.space.nv)
    inputs = [x.clone().requires_grad_() for x in (case.state, case.actions[:, 0], force)]
    weights = torch.randn_like(case.state)
    return lambda: torch.autograd.grad((weights * case.simulator.step(*inputs)).sum(), inputs)


def differences(case: Case) -> Callable[[], object]:
    """Centred differences, all perturbed worlds in one batch."""
    space, n = case.simulator.space, len(case.state)
    ndx, nu, nv = space.ndx, space.nu, space.nv
    k = ndx + nu + nv
    batch = Batch(case.simulator.model, 2 * k * n)
    qpos, qvel, control, force = (batch.bind(name) for name in ("qpos", "qvel", "ctrl", "qfrc_applied"))
    moves = DIFFERENCE * torch.cat([torch.eye(k, dtype=torch.float64), -torch.eye(k, dtype=torch.float64)])

    def run() -> object:
        state = space.integrate(case.state, moves[:, None, :ndx]).flatten(0, 1).numpy()
        qpos[...], qvel[...] = state[:, : space.nq], state[:, space.nq :]
        control[...] = (case.actions[:, 0] + moves[:, None, ndx : ndx + nu]).flatten(0, 1).numpy()
        force[...] = moves[:, None, ndx + nu :].expand(-1, n, -1).flatten(0, 1).numpy()
        batch.bind("qacc_warmstart")[...] = 0.0
        batch.step()
        after = torch.from_numpy(np.concatenate([qpos, qvel], 1)).reshape(2, k, n, -1)
        return space.difference(after[0], after[1]) / (2 * DIFFERENCE)

    return run


def race(name: str, ours: Callable[[], object], peer: Callable[[], object], seconds: float) -> Row:
    """Measure two functions in turn; return the row of their median times [s], single steps per step."""
    times: tuple[list[float], list[float]] = ([], [])
    ours(), peer()
    end = time.perf_counter() + seconds
    while len(times[0]) < 5 or time.perf_counter() < end:
        for function, found in zip((ours, peer), times, strict=True):
            begun = time.perf_counter()
            function()
            found.append(time.perf_counter() - begun)
    steps = 10 if name.startswith("one step") else 1
    return compare(name, float(np.median(times[0])) / steps, float(np.median(times[1])) / steps, "s")


def table(title: str, rows: list[Row]) -> None:
    """Print rows in microseconds."""
    show(title, ("what", "ours [µs]", "other [µs]", "ratio"), [(r.name, r.ours * 1e6, r.peer * 1e6, r.ratio) for r in rows])


def _batch(case: Case) -> tuple[Batch, Array, Array, Array, Array]:
    batch = Batch(case.simulator.model, len(case.state))
    return batch, case.state.numpy(), case.actions.numpy(), batch.bind("qpos"), batch.bind("qvel")


if __name__ == "__main__":
    main(tyro.cli(Options))
