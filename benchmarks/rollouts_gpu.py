"""Rollouts with gradients on a GPU: the fused kernels beside torch.compile with CUDA graphs, and beside what the device can do.

The cart-pole of ``rollouts.py``: two hidden layers of 64 tanh units, 50 steps, float32, the gradient of ``Σ x² + 0.01 Σ u²`` by all
actions and weights. Both schedules of the fused kernels run, a world a thread and tiles. The limit is the larger of two times: that
of the multiply-adds of the network (there, back and for the weights, nothing twice) at the rate of a large float32 matrix product,
and that of reading and writing states, actions and their gradients once at the rate of a large copy, both measured here.

    python benchmarks/rollouts_gpu.py --json benchmarks/results/rollouts_gpu.json

No numbers are committed yet: the kernels have not run on a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
import tyro
from common import machine, say, show
from rollouts import HORIZON, eager_cost, model, weights_of
from torch import Tensor

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.files import write_json
from residual_mbrl.fused.devices import flat_of, thread_engine
from residual_mbrl.fused.inputs import constants_on, parameter_rows
from residual_mbrl.fused.model import Refusal, prepare
from residual_mbrl.fused.system import engine as engine_of
from residual_mbrl.kernels.cuda_launch import ThreadEngine


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of this benchmark.

    Args:
        json: File that the rows are written to; none where missing.
        batches: Worlds of each comparison.
        calls: Calls of each measurement.
        compile: Whether torch.compile is measured (compiling 50 steps takes minutes).
    """

    json: Path | None = None
    batches: tuple[int, ...] = (4096, 65536)
    calls: int = 30
    compile: bool = True


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement: the median of a call [ms], and the part of it that the device's limit would take."""

    name: str
    batch: int
    ms: float
    limit_ms: float
    fraction_of_limit: float
    machine: str


def median_ms(run: Callable[[], object], calls: int) -> float:
    """Return the median time of a call on the device [ms], after three that compile, load and capture."""
    for _ in range(3):
        run()
    times = []
    for _ in range(calls):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def rates(device: torch.device) -> tuple[float, float]:
    """Return multiply-adds and bytes a second of a large float32 matrix product and of a large copy."""
    n = 8192
    a = torch.randn(n, n, device=device)
    b, c = torch.empty_like(a), torch.empty_like(a)
    return n**3 / (1e-3 * median_ms(lambda: torch.mm(a, a, out=b), 10)), 2 * a.nbytes / (1e-3 * median_ms(lambda: c.copy_(a), 10))


def limit_ms(engine: ThreadEngine, batch: int, multiply_adds: float, bytes_: float) -> float:
    """Return the least time that operations and bytes allow [ms]."""
    system = engine.system
    products = 3 * sum(n * m for sizes in engine.networks for n, m in pairwise(sizes)) * batch * HORIZON
    # states are written, read back with their gradients written and read; actions are read twice and their gradients written
    moved = 4 * batch * HORIZON * (4 * system.nx + 3 * system.nu)
    return 1e3 * max(products / multiply_adds, moved / bytes_)


def flattened(dynamics: ResidualDynamics, x: Tensor, u: Tensor) -> tuple[ThreadEngine, tuple[Tensor, ...]]:
    """Return the engine of a model and its inputs as the kernels take them."""
    ready = prepare(dynamics, x, u, {})
    assert not isinstance(ready, Refusal)
    weights = flat_of([w for form in ready.forms for w in form.weights()], 1, x)
    parameters = parameter_rows(dynamics, ready, x, x.shape[:-1], {}).contiguous()
    return thread_engine(engine_of(dynamics, ready, {}, x.dtype), x.device), (weights, constants_on(ready, x), parameters, x, u)


def fused(engine: ThreadEngine, weights: Tensor, constants: Tensor, parameters: Tensor, state: Tensor,
          actions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the loss by actions and by weights."""
    states = engine.forward(weights, constants, parameters, state, actions)
    by_states = 2 * states
    by_states[:, 0] = 0
    found = engine.reverse(weights, constants, parameters, actions, states, by_states, learn=True)
    assert found.weights is not None
    return found.actions.add_(actions, alpha=0.02), found.weights


def main(options: Options) -> None:
    """Measure every batch."""
    if not torch.cuda.is_available():
        sys.exit("rollouts_gpu.py measures a CUDA device, and torch sees none here")
    torch.backends.cuda.matmul.allow_tf32 = False
    device, rows = torch.device("cuda", torch.cuda.current_device()), []
    name = f"{torch.cuda.get_device_name(device)}, {machine()}"
    dynamics = model()
    multiply_adds, bytes_ = rates(device)
    say(f"{name}: {2e-12 * multiply_adds:.3g} TFLOP/s, {1e-9 * bytes_:.3g} GB/s")
    generator = torch.Generator().manual_seed(1)
    compiled = torch.compile(eager_cost, mode="reduce-overhead")
    for batch in options.batches:
        x = (0.3 * torch.randn(batch, 4, generator=generator)).to(device)
        u = (0.3 * torch.randn(batch, HORIZON, 1, generator=generator)).to(device)
        threads, inputs = flattened(dynamics, x, u)
        tiles = ThreadEngine(threads.system, threads.networks, threads.squashed, device=device, schedule="tiles")
        leaves = [w.detach().to(device).requires_grad_() for w in weights_of(dynamics)]
        actions = u.clone().requires_grad_()

        def by_torch(cost: Callable[..., Tensor], x: Tensor = x, u: Tensor = actions,
                     leaves: list[Tensor] = leaves) -> tuple[Tensor, ...]:
            return torch.autograd.grad(cost(leaves, x, u), [u, *leaves])

        exact = by_torch(eager_cost)
        runs: dict[str, Callable[[], tuple[Tensor, ...]]] = {}
        for schedule, engine in (("threads", threads), ("tiles", tiles)):
            by_actions, by_weights = fused(engine, *inputs)
            assert (by_actions - exact[0]).norm() < 1e-3 * exact[0].norm(), schedule
            flat = torch.cat([g.flatten() for g in exact[1:]])
            assert (by_weights[0] - flat).norm() < 1e-3 * flat.norm(), schedule
            runs[f"fused, {schedule}"] = lambda engine=engine, inputs=inputs: fused(engine, *inputs)
        if options.compile:
            runs["torch.compile, CUDA graphs"] = lambda: by_torch(compiled)
        limit = limit_ms(threads, batch, multiply_adds, bytes_)
        for what, run in runs.items():
            ms = median_ms(run, options.calls)
            rows.append(Row(name=what, batch=batch, ms=ms, limit_ms=limit, fraction_of_limit=limit / ms, machine=name))
    show("Rollouts with gradients by actions and weights", ["", "batch", "[ms]", "limit [ms]", "fraction of limit"],
         [(r.name, r.batch, r.ms, r.limit_ms, r.fraction_of_limit) for r in rows])
    if options.json:
        write_json(options.json, [asdict(r) for r in rows])


if __name__ == "__main__":
    main(tyro.cli(Options))
