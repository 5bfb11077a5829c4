"""Fused rollouts held against the torch form in float64: models, and what agreement means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from problems import random_actions, random_states, randomise, residual, system
from torch import Tensor

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.rollouts import Backend, rollout

F32, F64 = torch.float32, torch.float64
EVERY_SCHEDULE = ((3, F32), (37, F64), (37, F32), (3, F64))
"""Batches of one world a block and of one world a lane with a remainder, in both precisions."""


def in_turn(cases: Sequence[tuple]) -> list[tuple]:
    """Give each case one of ``EVERY_SCHEDULE``: schedules and precisions share all that is particular to a model."""
    return [(*case, *EVERY_SCHEDULE[i % len(EVERY_SCHEDULE)]) for i, case in enumerate(cases)]


def model(name: str, kinds: Sequence[str] = (), *, friction: bool = True, integrator: str = "semi_implicit", scale: float = 0.5,
          **options: float) -> ResidualDynamics:
    """Build a system with residuals of these kinds and random weights."""
    baseline = system(name, friction=friction, integrator=integrator, **options)
    return ResidualDynamics(baseline, [randomise(residual(k, baseline), scale=scale, seed=i) for i, k in enumerate(kinds)])


def relative(found: Tensor, exact: Tensor) -> float:
    """Norm of the error over the norm of what is right."""
    return float((found.double() - exact).norm() / exact.norm().clamp_min(1e-12))


def gradients(dynamics: ResidualDynamics, x: Tensor, u: Tensor, p: Mapping[str, Tensor], dtype: torch.dtype, backend: Backend,
              seed: int = 3) -> tuple[Tensor, dict[str, Tensor | None]]:
    """States, and gradients of a random weighting of them by everything."""
    x, u, p = x.to(dtype).requires_grad_(), u.to(dtype).requires_grad_(), {n: v.to(dtype).requires_grad_() for n, v in p.items()}
    states = rollout(dynamics, x, u, p, backend=backend)
    by = torch.randn(states.shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)
    inputs = {"state": x, "actions": u, **p, **dict(dynamics.named_parameters())}
    found = torch.autograd.grad((states * by).sum(), list(inputs.values()), allow_unused=True)
    return states.detach(), dict(zip(inputs, found, strict=True))


def start(dynamics: ResidualDynamics, *batch: int, horizon: int) -> tuple[Tensor, Tensor]:
    """First states, with a memory that is not that of a plant at rest, and actions."""
    baseline, memory = dynamics.baseline, dynamics.space.nx - dynamics.baseline.space.nx
    x = random_states(baseline, *batch) / 3
    remembered = torch.randn(*batch, memory, generator=torch.Generator().manual_seed(7), dtype=F64)
    return torch.cat([x, remembered], -1), random_actions(baseline, *batch, horizon)


def assert_agrees(dynamics: ResidualDynamics, *batch: int, horizon: int = 50, dtype: torch.dtype = F32) -> None:
    """Within 1e-5 in values and 1e-4 in each gradient of float64 torch, or as near as torch itself comes in float32; 1e-10 in float64."""
    x, u = start(dynamics, *batch, horizon=horizon)
    worlds = torch.arange(x[..., 0].numel(), dtype=F64).reshape(batch)
    p = {n: v * (1 + 0.01 * worlds) for n, v in dynamics.values.items()}
    assert_agrees_at(dynamics, x, u, p, dtype)


def assert_agrees_at(dynamics: ResidualDynamics, x: Tensor, u: Tensor, p: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """The same at given inputs."""
    exact, by_exact = gradients(dynamics, x, u, p, F64, "torch")
    found, by_found = gradients(dynamics, x, u, p, dtype, "fused")
    assert found.dtype == dtype
    assert relative(found, exact) < (1e-5 if dtype == F32 else 1e-10)
    by_single: dict[str, Tensor | None] = {}
    for name, expected in by_exact.items():
        if expected is None:  # torch leaves out what acts nowhere
            assert by_found[name] is None or not by_found[name].any(), name
            continue
        error = relative(by_found[name], expected)
        if dtype == F64:
            assert error < 1e-10, name
        elif error > 1e-4:  # a gradient whose parts cancel
            by_single = by_single or gradients(dynamics, x, u, p, F32, "torch")[1]
            assert error < 2 * relative(by_single[name], expected), name
