"""The CUDA kernels: run thread by thread on the CPU against torch, compiled for GPUs without one, and run where there is one."""

from __future__ import annotations

import pytest
import torch
from problems import random_actions, random_states, randomise, residual, system

from residual_mbrl.dynamics import ResidualDynamics, ensemble
from residual_mbrl.fused_cuda import flat_of, gather, thread_rollout
from residual_mbrl.fused_model import prepare
from residual_mbrl.residuals import Unstructured
from residual_mbrl.rollouts import linearise, rollout


def model(name, kinds=("unstructured",), hidden=None, **options):
    baseline = system(name, **{"integrator": "semi_implicit", **options})
    residuals = [randomise(residual(k, baseline), scale=0.5, seed=i) for i, k in enumerate(kinds)]
    return ResidualDynamics(baseline, residuals)


def inputs(dynamics, batch, horizon, device="cpu"):
    x = random_states(dynamics.baseline, batch).to(device) / 3
    return x, random_actions(dynamics.baseline, batch, horizon).to(device)


def threads(dynamics, x, u, p=None):
    """Whatever the device, by the kernels of a GPU."""
    ready = prepare(dynamics, x.cpu(), u.cpu(), {n: v.cpu() for n, v in (p or {}).items()})
    return thread_rollout(dynamics, ready, x, u, p or {})


def relative(found, exact):
    return float((found.double().cpu() - exact.cpu()).norm() / exact.norm().clamp_min(1e-12))


def gradients(run, dynamics, x, u, p, dtype):
    x, u, p = x.to(dtype).requires_grad_(), u.to(dtype).requires_grad_(), {n: v.to(dtype).requires_grad_() for n, v in p.items()}
    states = run(dynamics, x, u, p)
    by = torch.randn(states.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(states)
    wanted = {"state": x, "actions": u, **p, **dict(dynamics.named_parameters())}
    return states.detach(), dict(zip(wanted, torch.autograd.grad((states * by).sum(), list(wanted.values()), allow_unused=True), strict=True))


def assert_agrees(dynamics, batch, horizon, device="cpu", dtype=torch.float32):
    x, u = inputs(dynamics, batch, horizon)
    p = {n: v * (1 + 0.01 * torch.arange(batch, dtype=torch.float64)) for n, v in dynamics.values.items()}
    exact, by_exact = gradients(rollout, dynamics, x, u, p, torch.float64)
    on = {n: v.to(device) for n, v in p.items()}
    found, by_found = gradients(threads, dynamics.to(device), x.to(device), u.to(device), on, dtype)
    small = dtype == torch.float64
    assert relative(found, exact) < (1e-12 if small else 1e-5)
    for name, expected in by_exact.items():
        if expected is not None:
            assert relative(by_found[name], expected) < (1e-10 if small else 1e-4), name


@pytest.mark.parametrize(("name", "kinds", "batch", "horizon", "dtype"), [
    ("cartpole", ("unstructured",), 37, 19, torch.float32),
    ("double_pendulum", ("conservative", "dissipative"), 5, 9, torch.float32),
    ("pendulum", (), 3, 8, torch.float64),
])
def test_threads_compute_what_torch_does(name, kinds, batch, horizon, dtype):
    """States and every gradient, with lanes and rows left over, with and without networks."""
    assert_agrees(model(name, kinds), batch, horizon, dtype=dtype)
