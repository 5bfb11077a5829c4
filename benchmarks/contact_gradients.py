"""Gradients of MuJoCo steps in contact: are they right, and what do they cost?

    python benchmarks/contact_gradients.py [--quick] [--json rows.json]

Four models, each with both friction cones: a cube on the floor, the demo's arm with links that hit the floor, and Gymnasium's ant and
humanoid (with MuJoCo's default integrator and solver). The floor's numbers hold for its contacts, and its time constant is 0.03 s: at the
default of 0.02 s the ant, stepped by 0.01 s, is just where the engine starts to clamp it. States are taken from the models' own motion
from random first states under random commands, at random times, wherever something touches.

Right: the vector-Jacobian product of one step with a random cotangent, by position, velocity, command, force and the floor's friction,
solref and solimp, beside centred differences of the engine's own steps solved to rounding. A state counts as right if every block is,
to a relative error of 1e-3 of its norm. Differences decide what is at a switch, where no derivative exists: if, in any block, the
centred quotients of two step sizes h and h/4 differ by more than 2e-4 of the block's norm, or those to either side of the state,
with step h/4, by more than a tenth. These states are counted, and so is how many of all states agree, those at a switch included.

Cost: processor time of one thread, per world, in batches of 64, beside a step of the engine in its native batch, in turn; the least
times. Centred differences of k inputs are counted as 2 k such steps, and nothing for what makes and reads them.
"""

from __future__ import annotations

import copy
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

from residual_mbrl.physics.mujoco_adjoint import StepAdjoint
from residual_mbrl.physics.mujoco_model import state_space
from residual_mbrl.physics.numeric_step import Gradients, Inputs

Array = NDArray[np.float64]
CUBE = """<mujoco><option timestep="0.004"/><worldbody><geom name="floor" type="plane" size="5 5 .1" condim="6" friction=".4 .01 .005"/>
<body pos="0 0 .1"><freejoint/><geom type="box" size=".05 .05 .05" mass=".37" condim="6"/></body></worldbody></mujoco>"""
FLOOR = {"geom_friction": 3, "geom_solref": 2, "geom_solimp": 5}
"""Fields of the floor, and their numbers."""
TOLERANCE, UNSTEADY, KINK = 1e-3, 2e-4, 0.1
STEPS = {"position": 1e-7, "velocity": 1e-6, "action": 1e-6, "force": 1e-6}
FIELD_STEP = 1e-5
"""Steps of the differences, those of fields relative to their values."""
ROUNDING = 1e-13
"""Of a step that is solved to rounding; blocks whose norm is below what that makes of differences are compared to that."""
Block = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model with states in contact.

    Args:
        name: Of model and cone.
        model: The model; the floor's numbers hold for its contacts.
        inputs: States, commands and forces.
        cotangent: Of the next states.
    """

    name: str
    model: mujoco.MjModel
    inputs: Inputs
    cotangent: Array

    @property
    def floor(self) -> int:
        """Index of the floor."""
        return int(self.model.geom("floor").id)


def main(options: Options) -> None:
    """Measure everything."""
    count, seconds = (64, 0.3) if options.quick else (1250, 6.0)
    right, costs = [], []
    for case in cases(count):
        right += agreement(case)
        costs += cost(case, seconds)
    show("Agreement with centred differences to 1e-3", ("what", "found", "required"), [(r.name, r.ours, r.peer) for r in right])
    show("Cost", ("what", "ours [µs per world]", "other [µs]", "ratio"), [(r.name, r.ours * 1e6, r.peer * 1e6, r.ratio) for r in costs])
    say("A state is at a switch where differences of two step sizes, or to either side, disagree (see the top of this file).")
    write_rows(options.json, [*right, *costs])


def cases(count: int) -> Iterator[Case]:
    """Return every model with both cones."""
    makers: dict[str, Callable[[], mujoco.MjSpec]] = {
        "cube": cube, "arm": arm, "quadruped": lambda: locomotor("ant.xml"), "humanoid": lambda: locomotor("humanoid.xml")}
    for name, make in makers.items():
        for cone in ("pyramidal", "elliptic"):
            spec = make()
            spec.option.cone = getattr(mujoco.mjtCone, f"mjCONE_{cone.upper()}")
            spec.geom("floor").priority, spec.geom("floor").solref = 1, [0.03, 1.0]
            model = spec.compile()
            inputs = touching(model, count, np.random.default_rng(0))
            cotangent = np.random.default_rng(1).standard_normal((count, 2 * model.nv + model.na))
            yield Case(name=f"{name}, {cone}", model=model, inputs=inputs, cotangent=cotangent)


def cube() -> mujoco.MjSpec:
    """Return a box that falls."""
    return mujoco.MjSpec.from_string(CUBE)


def arm() -> mujoco.MjSpec:
    """Return the demo's arm, the last links of which hit the floor."""
    spec = mujoco.MjSpec.from_file(str(files("residual_mbrl") / "models" / "arm.xml"))
    spec.option.disableflags &= ~int(mujoco.mjtDisableBit.mjDSBL_CONTACT)
    for body in spec.bodies:
        for geom in body.geoms:
            geom.contype = geom.conaffinity = 0
            if body.name in ("link4", "link5", "link6", "link7", "tool"):
                geom.contype = 1
    spec.geom("floor").conaffinity = 1
    return spec


def locomotor(file: str) -> mujoco.MjSpec:
    """Return one of Gymnasium's models."""
    gymnasium = find_spec("gymnasium")
    if gymnasium is None or gymnasium.origin is None:
        raise SystemExit("this benchmark needs Gymnasium's models: pip install -e '.[gym]'")
    spec = mujoco.MjSpec.from_file(str(Path(gymnasium.origin).parent / "envs" / "mujoco" / "assets" / file))
    spec.option.integrator, spec.option.solver = mujoco.mjtIntegrator.mjINT_EULER, mujoco.mjtSolver.mjSOL_NEWTON
    return spec


def touching(model: mujoco.MjModel, count: int, rng: np.random.Generator) -> Inputs:
    """Return states that the model comes to, in which something touches, with commands and forces of order one."""
    worlds, rows = 256, []
    batch = Batch(model, worlds, nthread=1)
    qpos, qvel, contacts = batch.bind("qpos"), batch.bind("qvel"), batch.bind("ncon")
    free = int(model.jnt_type[0]) == int(mujoco.mjtJoint.mjJNT_FREE)
    while sum(len(r) for r in rows) < count:
        batch.reset()
        for row in qpos:
            mujoco.mj_integratePos(model, row, (0.3 if free else 0.7) * rng.standard_normal(model.nv), 1.0)
        if free:
            qpos[:, 2] = model.qpos0[2]
        qvel[...] = rng.standard_normal(qvel.shape)
        for _ in range(12):
            for _ in range(rng.integers(20, 80)):
                if model.nu:
                    batch.bind("ctrl")[...] = 0.3 * rng.standard_normal((worlds, model.nu))
                batch.step()
            batch.forward()
            sound = (contacts.ravel() > 0) & (np.abs(qvel) < 1e3).all(1) & (rng.random(worlds) < 0.3)
            rows.append(np.concatenate([qpos, qvel], 1)[sound])
    state = rng.permutation(np.concatenate(rows))[:count]
    return Inputs(state=state, action=0.3 * rng.standard_normal((count, model.nu)), force=0.3 * rng.standard_normal((count, model.nv)))


def blocks(model: mujoco.MjModel) -> list[Block]:
    """Return what is differentiated by, and its size."""
    own = [("position", model.nv), ("velocity", model.nv), *([("action", model.nu)] if model.nu else []), ("force", model.nv)]
    return [*own, *FLOOR.items()]


def ours(case: Case, adjoint: StepAdjoint) -> Gradients:
    """Return the product by everything."""
    return adjoint.pull_back(case.inputs, case.cotangent, {"state", "force", *(["action"] if case.model.nu else []), *FLOOR})


def agreement(case: Case) -> list[Row]:
    """Compare with differences; return the share of states that agree."""
    found, nv = ours(case, StepAdjoint(case.model, threads=1)), int(case.model.nv)
    assert found.state is not None and found.force is not None
    received = {"position": found.state[:, :nv], "velocity": found.state[:, nv:], "action": found.action, "force": found.force,
                **{name: found.values[name].reshape(len(found.state), case.model.ngeom, -1)[:, case.floor] for name in FLOOR}}
    coarse, fine, ahead, back = (np.concatenate(x) for x in zip(*differences(case), strict=True))
    start, wrong, switch, worst = 0, np.zeros(len(coarse), bool), np.zeros(len(coarse), bool), []
    for name, size in blocks(case.model):
        at = slice(start, start + size)
        start += size
        norm = np.linalg.norm(fine[:, at], axis=1)
        least = ROUNDING / (STEPS[name] if name in STEPS else FIELD_STEP * 1e-2) / TOLERANCE
        norm = np.maximum(norm, least * np.linalg.norm(case.cotangent, axis=1))
        switch |= np.linalg.norm(coarse[:, at] - fine[:, at], axis=1) > UNSTEADY * norm
        switch |= np.linalg.norm(ahead[:, at] - back[:, at], axis=1) > KINK * norm
        error = np.linalg.norm(received[name] - fine[:, at], axis=1) / norm
        wrong |= ~(error < TOLERANCE)
        worst.append((name, error))
    for name, error in worst:
        say(f"{case.name}: by {name} median error {np.median(error[~switch]):.1e}, 99 % below {np.quantile(error[~switch], 0.99):.1e}")
    return [compare(f"{case.name}: share of {int((~switch).sum())} states away from switches", float((~wrong)[~switch].mean()), 0.99, "1"),
            compare(f"{case.name}: share of all {len(switch)} states", float((~wrong).mean()), 0.99, "1"),
            compare(f"{case.name}: share of states at a switch", float(switch.mean()), 1.0, "1")]


def differences(case: Case, at_once: int = 25) -> Iterator[tuple[Array, Array, Array, Array]]:
    """Yield, for some states at a time, centred quotients with steps h and h/4, and one-sided ones with h/4, shape [n, inputs]."""
    model, space = case.model, state_space(case.model)
    solved = copy.copy(model)
    solved.opt.tolerance, solved.opt.iterations, solved.opt.ls_iterations = 1e-16, 100, 50
    moves, widths = directions(case)
    for start in range(0, len(case.inputs.state), at_once):
        rows = slice(start, start + at_once)
        state = case.inputs.state[rows]
        n, k = len(state), len(widths)
        scale = np.array([0.0, 1.0, -1.0, 0.25, -0.25])
        after = Stepper(solved, n * k * len(scale), case.floor).step(
            *(np.repeat(x[rows], k * len(scale), 0) for x in (case.inputs.state, case.inputs.action, case.inputs.force)),
            np.tile((scale[None, :, None] * moves[:, None]).reshape(-1, moves.shape[1]), (n, 1)))
        after = torch.from_numpy(after.reshape(n, k, len(scale), -1))
        change = space.difference(after[:, :, 1:], after[:, :, :1].expand(-1, -1, 4, -1)).numpy() @ case.cotangent[rows, None, :, None]
        forth, back, near, near_back = np.moveaxis(change[..., 0], -1, 0)
        yield (forth - back) / (2 * widths), (near - near_back) / (0.5 * widths), near / (0.25 * widths), -near_back / (0.25 * widths)


def directions(case: Case) -> tuple[Array, Array]:
    """Return the moves of all inputs together, shape [k, k], and their sizes."""
    model = case.model
    sizes = np.concatenate([np.full(size, STEPS[n]) if n in STEPS else
                            FIELD_STEP * np.maximum(np.abs(getattr(model, n)[case.floor].ravel()), 1e-2) for n, size in blocks(model)])
    return np.diag(sizes), sizes


class Stepper:
    """Steps many worlds, each moved along all inputs."""

    def __init__(self, model: mujoco.MjModel, worlds: int, floor: int) -> None:
        self.model, self.floor, self.batch = model, floor, Batch(model, worlds, nthread=1)
        self.fields = {name: self.batch.expand(name) for name in FLOOR}
        self.views = [self.batch.bind(n) for n in ("qpos", "qvel", "ctrl", "qfrc_applied", "qacc_warmstart")]
        self.space = state_space(model)

    def step(self, state: Array, action: Array, force: Array, moves: Array) -> Array:
        """Return the next states, shape [worlds, nx]."""
        qpos, qvel, control, applied, warm = self.views
        nv, nu = int(self.model.nv), int(self.model.nu)
        moved = self.space.integrate(torch.from_numpy(state), torch.from_numpy(moves[:, : 2 * nv])).numpy()
        qpos[...], qvel[...] = moved[:, : self.model.nq], moved[:, self.model.nq :]
        if nu:
            control[...] = action + moves[:, 2 * nv : 2 * nv + nu]
        applied[...], warm[...] = force + moves[:, 2 * nv + nu : 3 * nv + nu], 0.0
        start = 3 * nv + nu
        for name, size in FLOOR.items():
            self.fields[name][:, self.floor] = getattr(self.model, name)[self.floor] + moves[:, start : start + size]
            start += size
        self.batch.step()
        return np.concatenate([qpos, qvel], 1)


def cost(case: Case, seconds: float, worlds: int = 64) -> list[Row]:
    """Return what the adjoint costs beside a step and beside differences of everything [s per world]."""
    few = Case(name=case.name, model=case.model, cotangent=case.cotangent[:worlds],
               inputs=Inputs(**{n: getattr(case.inputs, n)[:worlds] for n in ("state", "action", "force")}))
    inputs, adjoint, plain = few.inputs, StepAdjoint(case.model, threads=1), Batch(case.model, worlds, nthread=1)
    views = [plain.bind(n) for n in ("qpos", "qvel", "ctrl", "qfrc_applied", "qacc_warmstart")]
    values = [*np.split(inputs.state, [case.model.nq], 1), inputs.action, inputs.force, np.zeros_like(inputs.force)]

    def step() -> None:
        for view, value in zip(views, values, strict=True):
            view[...] = value
        plain.step()

    command = ["action"] if case.model.nu else []
    least = race({"step": step, "whole": lambda: ours(few, adjoint),
                  "part": lambda: adjoint.pull_back(inputs, few.cotangent, {"force", "velocity", *command})}, seconds)
    whole, part, one = (least[name] / worlds for name in ("whole", "part", "step"))
    k = sum(size for _, size in blocks(case.model))
    return [compare(f"{case.name}: by force, action and velocity, and an engine step", part, one, "s"),
            compare(f"{case.name}: by everything, and differences, {2 * k} steps", whole, 2 * k * one, "s")]


def race(functions: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Return the least processor time of each [s], measured in turn: longer calls would never run undisturbed on a shared core."""
    for function in functions.values():
        function()
    least, end = dict.fromkeys(functions, np.inf), time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, function in functions.items():
            for _ in range(5):
                begun = time.process_time()
                function()
                least[name] = min(least[name], time.process_time() - begun)
    return least


if __name__ == "__main__":
    main(tyro.cli(Options))
