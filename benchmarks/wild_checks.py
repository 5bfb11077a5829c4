"""What any MJCF must pass, whoever wrote it: it steps as the engine does, differentiates, and its parameters are found from logs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np
import torch
from scipy.linalg import qr
from torch import Tensor

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.identification import IdentifyOptions, identify
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.trajectories import Trajectory
from residual_mbrl.windows import Windows, cut_windows

STEPS = 50
LOGS, LENGTH, HORIZON = 3, 60, 12
"""Logs to calibrate on, steps of each, and steps of the windows they are cut into: contacts forget what came long before."""
KINDS = ("damping:*", "armature:*", "mass:*")
MOST = 24
"""Parameters that are looked at; the best told apart of them are planted."""
PLANTED = 3
CHANGE = 1.4
"""Factor from a parameter's nominal value to its planted one."""
PUSH, SECONDS = 2.0, 0.04
"""Acceleration [rad/s² or m/s²] of the random pushes that set a model in motion, and how long they last."""
SMOOTH = 1e-6
"""Where centred differences of two step sizes agree to this, no contact switches between their points."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was seen of one model.

    Args:
        name: Of the file.
        sizes: Entries of state, action and velocity.
        parted: Steps that were not bit for bit the engine's.
        gradient: Largest relative difference between gradients and differences, over points where these are smooth.
        smooth: Fraction of such points.
        found: Relative error of each planted parameter after calibration.
        seconds: Wall time of all of it.
    """

    name: str
    sizes: tuple[int, int, int]
    parted: int
    gradient: float
    smooth: float
    found: dict[str, float]
    seconds: float


def examine(path: Path, *, seed: int = 0) -> Outcome:
    """Wrap a model, step it, differentiate it and calibrate it."""
    begun = time.perf_counter()
    simulator = MujocoSimulator(path)
    first, actions = _start(simulator, 1, seed), _commands(simulator, 1, STEPS, seed)
    states = simulator.rollout(first, actions)
    expected = _engine(simulator.model, states[0, 0], actions[0])
    parted = int((states[0] != expected).any(-1).sum())
    gradient, smooth = _compare_gradients(simulator, states[0, ::10], actions[0, ::10], seed)
    found = calibrate(path, seed=seed)
    return Outcome(name=path.name, sizes=(simulator.space.nx, simulator.space.nu, simulator.space.nv), parted=parted, gradient=gradient,
                   smooth=smooth, found=found, seconds=time.perf_counter() - begun)


def calibrate(path: Path, *, seed: int = 0) -> dict[str, float]:
    """Plant changed parameters, simulate logs with them and identify them from the logs; return each one's relative error."""
    simulator = MujocoSimulator(path)
    first, actions = _start(simulator, LOGS, seed), _commands(simulator, LOGS, LENGTH, seed + 1)
    names = choose_parameters(path, first, actions, seed)
    simulator = MujocoSimulator(path, names)
    truth = {p.name: min(CHANGE * p.nominal, p.upper) for p in simulator.parameters}
    with torch.no_grad():
        states = simulator.rollout(first, actions, {n: torch.tensor(x, dtype=torch.float64) for n, x in truth.items()})
    sensor, windows = _logs(simulator, states, actions)
    options = IdentifyOptions(candidates=1, starts=1, iterations=30, loss="linear")  # the logs have neither noise nor outliers
    found = identify(ResidualDynamics(simulator), sensor, windows, options)
    return {n: abs(found.dynamics.values[n] / x - 1) for n, x in truth.items()}


def choose_parameters(path: Path, first: Tensor, actions: Tensor, seed: int) -> list[str]:
    """Return the parameters that logs tell apart best: the first pivots of a QR factorisation of the sensitivities."""
    every = MujocoSimulator(path, KINDS)
    usable = [p for p in every.parameters if p.nominal > 0]
    picked = np.random.default_rng(seed).permutation(len(usable))[:MOST]
    chosen = [usable[i] for i in sorted(picked)]
    simulator = MujocoSimulator(path, [p.name for p in chosen])
    values = {p.name: torch.full((len(chosen) + 1, 1), p.nominal, dtype=torch.float64) for p in chosen}
    for i, p in enumerate(chosen):
        values[p.name][i] *= 1.02
    with torch.no_grad():
        wide = (len(chosen) + 1, *first.shape)
        states = simulator.rollout(first.expand(wide), actions.expand(wide[0], *actions.shape),
                                   {n: v.expand(wide[:2]) for n, v in values.items()})
    moved = ((states[:-1] - states[-1]) / _spread(states[-1])).flatten(1).numpy().T
    moved /= np.linalg.norm(moved, axis=0).max() + 1e-12
    _, _, order = qr(moved, mode="economic", pivoting=True)
    return [chosen[i].name for i in order[:PLANTED]]


def _compare_gradients(simulator: MujocoSimulator, states: Tensor, actions: Tensor, seed: int) -> tuple[float, float]:
    """Compare gradients with centred differences in one random direction of state, command and force for each point."""
    space, n = simulator.space, min(len(states), len(actions))
    states, actions = states[:n], actions[:n]
    draw = torch.Generator().manual_seed(seed)
    widths = (space.ndx, space.nu, space.nv)
    way = [torch.randn(n, k, generator=draw, dtype=torch.float64) for k in widths]
    weights = torch.randn(n, space.nx, generator=draw, dtype=torch.float64)

    def loss(moved: Tensor, action: Tensor, force: Tensor) -> Tensor:
        return (weights * simulator.step(space.integrate(states, moved), action, force)).sum(-1)

    at = [torch.zeros(n, space.ndx, dtype=torch.float64), actions, torch.zeros(n, space.nv, dtype=torch.float64)]
    tracked = [x.clone().requires_grad_() for x in at]
    gradients = torch.autograd.grad(loss(*tracked).sum(), tracked, materialize_grads=True)
    worst, smooth = 0.0, 0
    for i, gradient in enumerate(gradients):
        if not widths[i]:
            continue
        with torch.no_grad():
            slopes = [(loss(*(x + h * w if j == i else x for j, (x, w) in enumerate(zip(at, way, strict=True))))
                       - loss(*(x - h * w if j == i else x for j, (x, w) in enumerate(zip(at, way, strict=True))))) / (2 * h)
                      for h in (1e-6, 4e-7)]
        size = (gradient.abs() * way[i].abs()).sum(-1) + 1e-6
        even = (slopes[0] - slopes[1]).abs() <= SMOOTH * size
        smooth += int(even.sum())
        error = ((gradient * way[i]).sum(-1) - slopes[0]).abs() / size
        worst = max(worst, float(error[even].max()) if even.any() else 0.0, 0.0 if bool(error.isfinite().all()) else float("inf"))
    return worst, smooth / (n * sum(w > 0 for w in widths))


def _start(simulator: MujocoSimulator, count: int, seed: int) -> Tensor:
    """States that the engine reaches from the first keyframe, or the model's own first state, pushed at random; shape [count, nx]."""
    model, data, spec = simulator.model, mujoco.MjData(simulator.model), int(mujoco.mjtState.mjSTATE_PHYSICS)
    rng, size, rows = np.random.default_rng(seed), mujoco.mj_stateSize(model, spec), []
    for _ in range(count):
        if model.nkey:
            mujoco.mj_resetDataKeyframe(model, data, 0)
        else:
            mujoco.mj_resetData(model, data)
        for j in np.flatnonzero(model.jnt_limited & (model.jnt_type >= int(mujoco.mjtJoint.mjJNT_SLIDE))):
            (low, high), i = model.jnt_range[j], model.jnt_qposadr[j]
            data.qpos[i] = np.clip(data.qpos[i], 0.9 * low + 0.1 * high, 0.1 * low + 0.9 * high)  # some start outside their own limits
        data.qfrc_applied[:] = PUSH * model.dof_M0 * rng.standard_normal(model.nv)
        for _ in range(round(SECONDS / model.opt.timestep)):
            mujoco.mj_step(model, data)
        row = np.empty(size)
        mujoco.mj_getState(model, data, row, spec)
        rows.append(np.append(row, [data.time][: simulator.space.nx - size]))
    return torch.from_numpy(np.stack(rows))


def _commands(simulator: MujocoSimulator, count: int, steps: int, seed: int) -> Tensor:
    """Random commands within the middle of each actuator's range, a new one every fifth step; shape [count, steps, nu]."""
    model = simulator.model
    spans = np.where(model.actuator_ctrllimited.astype(bool)[:, None], model.actuator_ctrlrange, (-1.0, 1.0))
    spans = np.repeat(spans, model.actuator_ctrlnum, 0)
    share = torch.rand(count, -(-steps // 5), simulator.space.nu, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    share = 0.5 + 0.4 * (share - 0.5)
    low, high = torch.from_numpy(spans).unbind(-1)
    return (low + share * (high - low)).repeat_interleave(5, 1)[:, :steps]


def _engine(model: mujoco.MjModel, state: Tensor, actions: Tensor) -> Tensor:
    """States of a plain ``mj_step`` loop."""
    data, spec = mujoco.MjData(model), int(mujoco.mjtState.mjSTATE_PHYSICS)
    size = mujoco.mj_stateSize(model, spec)
    mujoco.mj_setState(model, data, state[:size].numpy(), spec)
    rows, after = [state.numpy()], np.empty(size)
    for action in actions:
        data.ctrl[:] = action.numpy()
        mujoco.mj_step(model, data)
        mujoco.mj_getState(model, data, after, spec)
        rows.append(np.append(after, [data.time][: len(state) - size]))
    return torch.from_numpy(np.stack(rows))


def _logs(simulator: MujocoSimulator, states: Tensor, actions: Tensor) -> tuple[Sensor, Windows]:
    """Return logs of every state entry and the sensor that reads them."""
    space = simulator.space
    columns = tuple(Column(name=n, source=n, noise=float(s)) for n, s in zip(space.state_names, 1e-3 * _spread(states), strict=True))
    clock = simulator.dt * np.arange(states.shape[1])
    logs = [Trajectory(name=f"log {k}", command_time=clock[:-1], commands=u.numpy(), command_names=space.action, measurement_time=clock,
                       measurements=x.numpy(), measurement_names=space.state_names)
            for k, (x, u) in enumerate(zip(states, actions, strict=True))]
    return Sensor(space=space, columns=columns), cut_windows(logs, simulator.dt, horizon=HORIZON)


def _spread(states: Tensor) -> Tensor:
    """Typical change of each state entry, shape [nx]."""
    return (states - states[:, :1]).flatten(0, 1).square().mean(0).sqrt() + 1e-4


def failures(outcome: Outcome) -> list[str]:
    """Return what a model failed, in words."""
    wrong: Sequence[tuple[bool, str]] = (
        (outcome.parted > 0, f"{outcome.parted} steps are not the engine's"),
        (not outcome.gradient <= 1e-5, f"gradients are {outcome.gradient:.1e} off"),
        (outcome.smooth < 0.3, f"only {outcome.smooth:.0%} of the points are smooth"),
        (not max(outcome.found.values()) <= 0.05, f"parameters are off by {max(outcome.found.values()):.0%}"))
    return [text for bad, text in wrong if bad]
