"""Systems, states and residuals that many tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from residual_mbrl.baselines import Parameters
from residual_mbrl.physics import cartpole as cart
from residual_mbrl.physics import double_pendulum as double
from residual_mbrl.physics import linear_drive as drive
from residual_mbrl.physics import pendulum as single
from residual_mbrl.physics import servo
from residual_mbrl.physics.mechanical import Integrator, MechanicalBaseline
from residual_mbrl.residuals import (
    CommandActuator,
    Conservative,
    Context,
    Dissipative,
    DryFriction,
    Feature,
    Residual,
    StateDelta,
    Unstructured,
)
from residual_mbrl.trajectories import Trajectory

INTEGRATORS: tuple[Integrator, ...] = ("semi_implicit", "rk4")
SYSTEMS: dict[str, tuple[type[MechanicalBaseline], Parameters]] = {
    "pendulum": (single.Pendulum, single.PARAMETERS),
    "double_pendulum": (double.DoublePendulum, double.PARAMETERS),
    "cartpole": (cart.CartPole, cart.PARAMETERS),
}
WARP_SYSTEMS: dict[str, tuple[type[MechanicalBaseline], Parameters]] = {
    **SYSTEMS,
    "linear_drive": (drive.LinearDrive, drive.PARAMETERS),
    "servo": (servo.Servo, servo.PARAMETERS),
}
"""Systems with a Warp form; friction belongs to the last two."""
FRICTION: dict[str, dict[str, float]] = {
    "pendulum": {"viscous": 0.3, "coulomb": 0.4},
    "double_pendulum": {"viscous1": 0.3, "viscous2": 0.1, "coulomb1": 0.4, "coulomb2": 0.2},
    "cartpole": {"cart_viscous": 0.5, "pole_viscous": 0.02},
    "linear_drive": {"viscous_backward": 300.0, "coulomb_backward": 30.0},
    "servo": {"supply_resistance": 1.7, "angle_offset": 0.03, "load_friction_off": 0.11},
}
"""Values of dissipation that differ from the frictionless nominal ones."""
COMMAND_SIZES = {"LinearDrive": (40.0,), "Servo": (1.0, 0.5, 300.0)}
"""Typical commands, where they are not about one."""
MOVING = (Feature(source="position", transform="sin"), Feature(source="velocity"))
"""Features that any of the systems has."""


def system(name: str, *, friction: bool = False, dt: float = 0.01, substeps: int = 1, integrator: Integrator = "rk4") -> MechanicalBaseline:
    """Build one of the systems, frictionless or with the friction above."""
    kind, parameters = WARP_SYSTEMS[name]
    values = FRICTION[name] if friction else {}
    parameters = parameters.replaced(**{n: {"nominal": x} for n, x in values.items()})
    return kind(parameters, dt=dt, substeps=substeps, integrator=integrator)


def random_states(baseline: MechanicalBaseline, *batch: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Angles up to two turns and velocities of a few rad/s, shape [*batch, nx]."""
    generator = torch.Generator().manual_seed(seed)
    return 3.0 * torch.randn(*batch, baseline.space.nx, generator=generator, dtype=dtype)


def random_actions(baseline: MechanicalBaseline, *batch: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Actions of twice their typical size, shape [*batch, nu]."""
    size = torch.tensor(COMMAND_SIZES.get(type(baseline).__name__, (1.0,)), dtype=dtype)
    return 2.0 * size * torch.randn(*batch, baseline.space.nu, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def context(baseline: MechanicalBaseline, *batch: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Context:
    """What a residual without memory sees at random states and actions."""
    state, action = random_states(baseline, *batch, seed=seed, dtype=dtype), random_actions(baseline, *batch, seed=seed + 1, dtype=dtype)
    return Context(baseline.space, state, action, baseline.signals(state, action), None, baseline.dt)


def randomise(module: nn.Module, scale: float = 1.0, seed: int = 0, members: int | None = None) -> nn.Module:
    """Draw every weight anew, with a leading member dimension where ``members`` is given."""
    generator = torch.Generator().manual_seed(seed)
    for owner in list(module.modules()):
        entries: Iterator[tuple[str, nn.Parameter]] = iter(list(owner.named_parameters(recurse=False)))
        for name, weight in entries:
            shape = weight.shape if members is None else (members, *weight.shape)
            fresh = nn.Parameter(scale * torch.randn(shape, generator=generator, dtype=torch.float64))
            if isinstance(owner, nn.ParameterList):
                owner[int(name)] = fresh
            else:
                setattr(owner, name, fresh)
    return module


def residual(kind: str, baseline: MechanicalBaseline, seed: int = 0) -> Residual:
    """Build a residual of a kind for a baseline, with features that any of the systems has."""
    nv, nq, nu = baseline.space.nv, baseline.space.nq, baseline.space.nu
    sizes = [nq, nv]
    kinds: dict[str, Callable[[], Residual]] = {
        "conservative": lambda: Conservative(nq=nq, periodic=(nq - 1,), seed=seed),
        "dissipative": lambda: Dissipative(nv=nv, features=MOVING, sizes=sizes, bound=2.0, seed=seed),
        "explicit_dissipative": lambda: Dissipative(nv=nv, features=MOVING, sizes=sizes, bound=0.5, explicit=True, seed=seed),
        "dry_friction": lambda: DryFriction(nv=nv, features=MOVING, sizes=sizes, bound=1.0, seed=seed),
        "unstructured": lambda: Unstructured(nv=nv, features=MOVING, sizes=sizes, bound=1.0, hidden=(8,), seed=seed),
        "state_delta": lambda: StateDelta(nv=nv, features=MOVING, sizes=sizes, bound=0.5, hidden=(8,), seed=seed),
        "actuator": lambda: CommandActuator(nu=nu, channels=range(nu), dt=baseline.dt, max_delay=3.4 * baseline.dt),
    }
    return kinds[kind]()


KINDS = ("conservative", "dissipative", "explicit_dissipative", "dry_friction", "unstructured", "state_delta", "actuator")
EVERY_KIND_AND_SYSTEM = tuple(product(KINDS, SYSTEMS))


def log(columns: dict[str, np.ndarray], commands: dict[str, np.ndarray] | None = None, *, dt: float = 0.01, name: str = "log",
        group: str = "", missing: bool = False) -> Trajectory:
    """Build a log on a uniform clock from named columns."""
    n = len(next(iter(columns.values())))
    commands = {"torque": np.zeros(n)} if commands is None else commands
    time = dt * np.arange(n)
    return Trajectory(name=name, command_time=time, commands=np.stack(list(commands.values()), 1), command_names=tuple(commands),
                      measurement_time=time, measurements=np.stack(list(columns.values()), 1), measurement_names=tuple(columns),
                      group=group, missing=missing)


def slopes(function: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-6) -> Tensor:
    """Jacobian of a vector function of a vector by central differences, shape [*out, n]."""
    steps = step * torch.eye(len(x), dtype=x.dtype)
    return torch.stack([(function(x + e) - function(x - e)) / (2 * step) for e in steps], -1)
