"""Self-check of an installation: gradients, guarantees, engines and speed, in a few seconds."""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from io import StringIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from residual_mbrl.baselines import Baseline, Parameter
from residual_mbrl.descriptions import BASELINES
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.environment import PACKAGES, package_versions
from residual_mbrl.models import ARM
from residual_mbrl.residuals import Dissipative, DryFriction, Feature
from residual_mbrl.rollouts import rollout

GRADIENT_TOLERANCE = 1e-5
ENGINE_TOLERANCE = 1e-6
ARGUMENTS = {"MujocoSimulator": (ARM, ("damping:*", "mass:link7"))}
"""Constructor arguments of baselines that are made from something; all others stand for themselves."""
COMMAND_SIZE = {"counts": 500.0}
"""Typical size of a command by unit, where it is not about one."""


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """Outcome of one check.

    Args:
        name: What was checked.
        passed: Whether it holds.
        detail: What was found, in one line.
        seconds: Wall time.
    """

    name: str
    passed: bool
    detail: str
    seconds: float


class CheckError(Exception):
    """A check found something wrong; the message says what was found and expected."""


def check_installation() -> list[CheckResult]:
    """Run every check; a failure is a result, never an exception."""
    return list(run_checks())


def run_checks() -> Iterator[CheckResult]:
    """Run the checks one by one, so that a caller can show each as it ends."""
    checks: list[tuple[str, Callable[[], str]]] = [("versions", check_versions)]
    checks += [(f"gradients of {name}", partial(_check_gradients_of, name)) for name in BASELINES]
    checks += [("guarantee of dissipative residuals", check_guarantees), ("MuJoCo", check_mujoco), ("Warp", check_warp),
               ("speed", measure_speed)]
    for name, run in checks:
        begun = clock.monotonic()
        try:
            passed, detail = True, run()
        except Exception as error:  # whatever is broken in an installation is what this reports
            passed, detail = False, str(error) if isinstance(error, CheckError) else f"{type(error).__name__}: {error}"
        yield CheckResult(name=name, passed=passed, detail=detail, seconds=clock.monotonic() - begun)


def build(name: str) -> Baseline:
    """Build a baseline of the package with its default arguments."""
    baseline: Baseline = getattr(import_module(f"residual_mbrl.physics.{BASELINES[name]}"), name)(*ARGUMENTS.get(name, ()))
    return baseline


def check_versions() -> str:
    """Return the versions of the packages that results depend on."""
    versions = package_versions()
    missing = [n for n, v in versions.items() if v == "missing" and n != PACKAGES[0]]  # a source tree has no version of its own
    if missing:
        raise CheckError(f"not installed: {', '.join(missing)}")
    return ", ".join(f"{n} {v}" for n, v in versions.items())


def check_gradients(baseline: Baseline, steps: int = 5) -> str:
    """Compare autograd through a float64 rollout with central differences, in first state, commands and every parameter."""
    generator = torch.Generator().manual_seed(0)
    space, dynamics = baseline.space, ResidualDynamics(baseline)
    # velocities of about one: dry friction slips, so that differences do not straddle its kink
    state = 0.3 * torch.rand(space.nx, generator=generator, dtype=torch.float64)
    state[space.nq : space.nq + space.nv] += 1.0
    actions = 0.5 + 0.3 * torch.rand(steps, space.nu, generator=generator, dtype=torch.float64)
    actions *= torch.tensor([COMMAND_SIZE.get(space.unit(n), 1.0) for n in space.action], dtype=torch.float64)
    weights = torch.randn(steps + 1, space.nx, generator=generator, dtype=torch.float64)
    inside = torch.tensor([_inside(p) for p in baseline.parameters], dtype=torch.float64)
    scale = torch.cat([torch.ones(space.nx, dtype=torch.float64), actions.flatten(),
                       torch.tensor([p.scale for p in baseline.parameters], dtype=torch.float64)])

    def score(point: Tensor) -> Tensor:
        x, u, p = point.split([space.nx, steps * space.nu, len(inside)], -1)
        values = {q.name: p[..., i] for i, q in enumerate(baseline.parameters)}
        states = rollout(dynamics, x, u.unflatten(-1, (steps, space.nu)), values)
        return (weights * states.square()).sum((-1, -2))

    point = torch.cat([state, actions.flatten(), inside])
    at = point.clone().requires_grad_()
    exact = torch.autograd.grad(score(at), at)[0] * scale
    h = 1e-5
    moves = h * torch.diag(scale)
    numeric = (score(point + moves) - score(point - moves)) / (2 * h)
    # relative to each derivative itself, but for those too small to be seen in a difference of the whole score
    error = float(((exact - numeric).abs() / (exact.abs() + 1e-5 * exact.abs().max())).max())
    if not error < GRADIENT_TOLERANCE:
        raise CheckError(f"relative error {error:.2g}, expected below {GRADIENT_TOLERANCE:g}")
    return f"relative error {error:.1e} over {len(point)} inputs"


def check_guarantees(weights: int = 20, samples: int = 500) -> str:
    """Ask dissipative and dry-friction residuals with random weights for their certificates."""
    baseline, generator = build("Pendulum"), torch.Generator().manual_seed(0)
    features = [Feature(source="position", transform="sin"), Feature(source="velocity")]
    worst = float("-inf")
    for _ in range(weights):
        residuals = [Dissipative(nv=1, features=features, bound=1.0), DryFriction(nv=1, features=features, bound=1.0)]
        dynamics = ResidualDynamics(baseline, residuals)
        with torch.no_grad():
            for w in dynamics.parameters():
                w.normal_(0.0, 3.0, generator=generator)
        state = 5 * torch.randn(samples, 2, generator=generator, dtype=torch.float64)
        action = 5 * torch.randn(samples, 1, generator=generator, dtype=torch.float64)
        for certificate in dynamics.certificates(state, action):
            if not certificate.holds:
                raise CheckError(f"{certificate.residual}: {certificate.quantity} {certificate.worst:g} {certificate.unit}, expected "
                                 f"at most {certificate.limit:g}")
            worst = max(worst, certificate.worst)
    return f"largest power {worst:.1g} W over {weights * samples} samples of weights and states"


def check_mujoco(steps: int = 200) -> str:
    """Step a pendulum in C MuJoCo and in our own equations, both by Runge-Kutta of fourth order."""
    import mujoco  # noqa: PLC0415

    model = mujoco.MjModel.from_xml_string("""
        <mujoco><option integrator="RK4" timestep="0.01" gravity="0 0 -9.81"/><worldbody><body>
          <joint name="hinge" type="hinge" axis="0 1 0"/><inertial pos="0 0 -0.5" mass="2" diaginertia="0.1 0.1 0.1"/>
        </body></worldbody><actuator><motor joint="hinge"/></actuator></mujoco>""")
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:], data.ctrl[:] = 1.0, 0.5, 0.3
    states = np.empty((steps, 2))
    for row in states:
        mujoco.mj_step(model, data)
        row[:] = data.qpos[0], data.qvel[0]
    values = {"inertia": torch.tensor(0.6, dtype=torch.float64), "gravity_moment": torch.tensor(9.81, dtype=torch.float64)}
    ours = rollout(ResidualDynamics(build("Pendulum")), torch.tensor([1.0, 0.5], dtype=torch.float64),
                   torch.full((steps, 1), 0.3, dtype=torch.float64), values)
    error = float(np.abs(ours[1:].numpy() - states).max())
    if not error < ENGINE_TOLERANCE:
        raise CheckError(f"a pendulum differs from ours by {error:.2g}, expected below {ENGINE_TOLERANCE:g}")
    return f"a pendulum agrees to {error:.1e} over {steps} steps"


def check_warp() -> str:
    """Compile a kernel for the processor and compare it with numpy."""
    import warp as wp  # noqa: PLC0415

    def saxpy(a: wp.float64, x: wp.array(dtype=wp.float64), y: wp.array(dtype=wp.float64)):  # type: ignore[no-untyped-def,valid-type]  # noqa: ANN202
        i = wp.tid()
        y[i] = a * x[i] + y[i]

    x, y = np.linspace(0, 1, 100), np.linspace(1, 2, 100)
    with redirect_stdout(StringIO()):  # Warp greets; how to silence it differs between versions
        kernel: Any = wp.kernel(saxpy, enable_backward=False, module="unique")
        out: Any = wp.array(y, dtype=wp.float64, device="cpu")
        wp.launch(kernel, dim=len(x), inputs=[wp.float64(3.0), wp.array(x, dtype=wp.float64, device="cpu"), out], device="cpu")
        error = float(np.abs(out.numpy() - (3.0 * x + y)).max())
        devices = ", ".join(d.alias for d in wp.get_devices())
    if not error < 1e-12:
        raise CheckError(f"a kernel differs from numpy by {error:.2g}")
    return f"a kernel agrees to {error:.1e}; devices: {devices}"


def measure_speed(steps: int = 50) -> str:
    """Time steps of the torch backend; reported, not judged."""
    parts = []
    for name in ("Servo", "CartPole"):
        dynamics = ResidualDynamics(build(name))
        for batch in (1, 1024):
            state, actions = torch.zeros(batch, dynamics.space.nx), torch.zeros(batch, steps, dynamics.space.nu)
            times = []
            with torch.no_grad():
                for _ in range(3):
                    begun = clock.perf_counter()
                    rollout(dynamics, state, actions)
                    times.append(clock.perf_counter() - begun)
            parts.append(f"{name} {min(times) / (steps * batch) * 1e6:.3g} µs/step (batch {batch})")
    return ", ".join(parts)


def _check_gradients_of(name: str) -> str:
    return check_gradients(build(name))


def _inside(parameter: Parameter) -> float:
    """Nominal value moved off its bounds, where a difference would be one-sided."""
    margin = 0.05 * parameter.scale
    return min(max(parameter.nominal, parameter.lower + margin), parameter.upper - margin)
