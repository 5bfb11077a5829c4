"""The quadrotor of the flight logs: its parameters, what it remembers, and how both are fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from residual_mbrl.baselines import Parameter
from residual_mbrl.datasets import nanodrone
from residual_mbrl.disturbance import PastContext
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.force_balance import BalanceOptions, balance
from residual_mbrl.horizon_fitting import HorizonOptions, StartedWindows, fit_over_horizon, predict
from residual_mbrl.physics.quadrotor import ROTORS, Quadrotor
from residual_mbrl.physics.quadrotor_parameters import PARAMETERS
from residual_mbrl.residuals import Feature, MemoryForce, MemoryRate
from residual_mbrl.trajectories import Trajectory

GROUPS = ((0, 1, 2), (6, 7, 8), (3, 4, 5), (9, 10, 11))
"""Position, velocity, rotation and body rate in the tangent of a free body."""

SHARES = (1.70 / 17.68, 8.20 / 38.71, 4.40 / 8.18, 25.5 / 28.98)
"""What is required of each quantity over what naive prediction errs: they weigh the four."""

SCALES = {"inertia_xx": 1e-5, "inertia_yy": 1e-5, "centre_x": 1e-3, "centre_y": 1e-3, **{f"thrust{i}": 0.004 for i in (1, 2, 3, 4)},
          "drag_torque": 1e-5, "rotor_inertia": 1e-9, "drag_x": 0.01, "drag_y": 0.01, "drag_z": 0.01, "flow_moment_x": 2e-4,
          "flow_moment_y": 2e-4, "flow_moment_axial_x": 1e-4, "flow_moment_axial_y": 1e-4, "translational_lift": 2e-3, "rate_drag_x": 2e-5,
          "rate_drag_y": 2e-5, "rate_drag_z": 1e-5, "trim_x": 1e-4, "trim_y": 1e-4, "trim_z": 1e-5}
"""Parameters that are estimated, and the size of a change in their units. The inertia about z stays: it only scales yaw's own."""

FORCE_SPREAD = (0.045, 0.045, 0.045, 1.75e-4, 1.75e-4, 3.2e-6)
"""Missing forces [N] and torques [N·m] that count as one in the balance: 1 m/s², 5 and 5 and 1 rad/s²."""

SEEN = ("wx", "wy", "wz")
"""What the networks see of the state. Velocity and tilt, seen as well, made trajectories of an unknown type worse."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """What is chosen by leaving one trajectory type out.

    Args:
        hidden: Hidden units of the force's network; none makes it linear in what it sees.
        rate_hidden: The same of the network of the position's and attitude's rates.
        lags: Steps back of the motor speeds that the networks see.
        fading: First times [s] of the force's traces.
        rate_fading: First times [s] of the rates' traces.
        lengths: Rows that means of past innovations go back.
        apart: Whether force and torque are two residuals, of which the torque's looks at innovations alone.
        levelling: Exponent by which a type's errors count relative to what naive prediction errs in it: 1 makes types count alike.
        training: Options of the fit.
    """

    hidden: Sequence[int] = ()
    rate_hidden: Sequence[int] = ()
    lags: Sequence[int] = (0, 1)
    fading: Sequence[float] = (0.04, 0.2, 2.0)
    rate_fading: Sequence[float] = (0.1, 0.6)
    lengths: Sequence[int] = (4, 10, 20, 40, 150)
    apart: bool = False
    levelling: float = 0.5
    training: HorizonOptions = field(
        default_factory=lambda: HorizonOptions(steps=600, batch=384, ridge=0.1, ridge_recall=0.01))


def build() -> Quadrotor:
    """Return the published quadrotor, its rotors turning the way the logs say, its commands measured speeds without lag."""
    changes: dict[str, Mapping[str, object]] = {n: {"prior_std": s} for n, s in SCALES.items()}
    spun = tuple((x, y, -spin) for x, y, spin in ROTORS)
    return Quadrotor(PARAMETERS.replaced(**changes, motor_lag={"nominal": 1e-4}), dt=nanodrone.DT, substeps=1, rotors=spun)


def free(baseline: Quadrotor) -> list[Parameter]:
    """Return the parameters that are estimated."""
    return [baseline.parameters[n] for n in SCALES]


def rows_of(log: Trajectory) -> tuple[Tensor, Tensor]:
    """Return baseline states [T, 17] and commands [T, 4] of a flight; rotors turn as they were last measured to."""
    u = log.commands
    before = np.concatenate([u[:1], u[:-1]])
    return torch.tensor(np.concatenate([log.measurements, before], 1)), torch.tensor(u)


def context_of(design: Design) -> PastContext:
    """Return what is computed from samples before a rollout."""
    return PastContext(lengths=design.lengths, signals=("body_velocity", "gravity_direction"), velocities=("wx", "wy", "wz"), change=2,
                       body_frame=True)


def windows_of(logs: Sequence[Trajectory], balanced: ResidualDynamics, design: Design, *, stride: int, skip: int = 100) -> StartedWindows:
    """Cut flights into windows of 50 steps with their contexts, each type's errors in its own unit."""
    context, parts = context_of(design), []
    for log in logs:
        states, actions = rows_of(log)
        parts.append(StartedWindows.cut(states, actions, context.of_log(balanced, states, actions), torch.ones(len(GROUPS)), known=13,
                                        horizon=nanodrone.HORIZON, lead=max(design.lags), stride=stride, skip=skip))
    held = {log.name: nanodrone.errors(log, nanodrone.naive(log)).mean((0, 1)) for log in logs}
    naive = {log.group: torch.tensor(np.mean([held[x.name] for x in logs if x.group == log.group], 0)) for log in logs}
    middle = torch.stack([n.log() for n in naive.values()]).mean(0).exp()
    share = torch.tensor(SHARES)
    units = [(naive[log.group] ** design.levelling * middle ** (1 - design.levelling) * share).float() for log in logs]
    return StartedWindows.joined([replace(p, unit=u.expand(len(p), -1)) for p, u in zip(parts, units, strict=True)])


def balanced_values(baseline: Quadrotor, logs: Sequence[Trajectory], options: BalanceOptions | None = None) -> dict[str, float]:
    """Return the parameters that balance forces and torques over 1, 10 and 50 steps."""
    length, states, actions = 100, [], []
    for log in logs:
        x, u = rows_of(log)
        for i in range(100, len(x) - length, length // 2):
            states.append(x[i : i + length + 1])
            actions.append(u[i : i + length])
    return balance(baseline, torch.stack(states), torch.stack(actions), free(baseline), FORCE_SPREAD, options)


def residuals(design: Design, context: int, seed: int) -> list[MemoryForce | MemoryRate]:
    """Return the body force and torque, and the rates of position and attitude, before training."""
    def make(kind: type[MemoryForce] | type[MemoryRate], scale: Sequence[float], fading: Sequence[float], hidden: Sequence[int],
             own: int, context: int = context) -> MemoryForce | MemoryRate:
        return kind(nv=6, nu=4, features=[Feature(source=n) for n in SEEN], scale=scale, context=context,
                    lags=design.lags, fading=fading, dt=nanodrone.DT, hidden=hidden, encoder=(), body_frame=True, seed=own)

    push, turn, none = (0.15, 0.15, 0.15), (1.2e-3, 1.2e-3, 2e-4), (0.0, 0.0, 0.0)
    if design.apart:
        innovations = 2 * 6 * len(design.lengths)
        forces = [make(MemoryForce, push + none, design.fading, design.hidden, 3 * seed + 1000),
                  make(MemoryForce, none + turn, design.fading, design.hidden, 3 * seed + 1001, innovations)]
    else:
        forces = [make(MemoryForce, push + turn, design.fading, design.hidden, 2 * seed)]
    return [*forces, make(MemoryRate, (0.4, 0.4, 0.4, 0.3, 0.3, 0.3), design.rate_fading, design.rate_hidden, 2 * seed + 1)]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a fit leaves.

    Args:
        balanced: The model whose innovations are the context: parameters from the balance of forces.
        identified: Parameters refined over 8, 20 and 50 steps, nothing learned.
        corrected: With residuals, parameters refined with them.
    """

    balanced: ResidualDynamics
    identified: ResidualDynamics
    corrected: ResidualDynamics


def identify(logs: Sequence[Trajectory], design: Design, *, stride: int = 7, steps: int = 500) -> tuple[ResidualDynamics, ResidualDynamics]:
    """Return the balanced and the identified model."""
    baseline = build()
    balanced = ResidualDynamics(baseline, (), balanced_values(baseline, logs))
    options = HorizonOptions(stages=((8, 0.3), (20, 0.3), (50, 0.4)), steps=steps, rate=0.02)
    return balanced, fit_over_horizon(balanced, windows_of(logs, balanced, design, stride=stride), GROUPS, free(baseline), options)


def correct(logs: Sequence[Trajectory], balanced: ResidualDynamics, design: Design, *, stride: int = 7, seed: int = 0) -> ResidualDynamics:
    """Return the balanced model with residuals, trained with its parameters."""
    windows = windows_of(logs, balanced, design, stride=stride)
    start = balanced.with_residuals(residuals(design, windows.context.shape[-1], seed))
    return fit_over_horizon(start, windows, GROUPS, free(build()), replace(design.training, seed=seed))


def predictions(dynamics: ResidualDynamics, balanced: ResidualDynamics, log: Trajectory, design: Design,
                chunk: int = 1024) -> nanodrone.Prediction:
    """Return the predictions from every row of a flight, each from what was known at that row."""
    windows, found = windows_of([log], balanced, design, stride=1, skip=0), []
    with torch.no_grad():
        for i in range(0, len(windows), chunk):
            found.append(predict(dynamics, windows.take(slice(i, i + chunk)))[..., :13].double().numpy())
    return nanodrone.Prediction.of_states(np.concatenate(found))
