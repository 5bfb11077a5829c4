"""Rollouts with gradients: the fused kernels beside torch eager, torch.compile and JAX on the same equations.

A cart-pole (semi-implicit Euler, 0.02 s) with a learned force ``tanh(net(x, u))`` of two hidden layers of 64 tanh units, float32, over
50 steps; the loss is ``Σ x² + 0.01 Σ u²``, its gradient by all actions, or by actions and weights. All peers are written out by hand
and lean; torch and the fused rollout use the same threads. JAX may live in an environment of its own.

    python benchmarks/rollouts.py --json benchmarks/results/rollouts.json --jax-python ../jax/bin/python
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from common import machine, say, show
from torch import Tensor

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.files import write_json
from residual_mbrl.physics.cartpole import CartPole
from residual_mbrl.residuals import Feature, Unstructured
from residual_mbrl.rollouts import rollout

HORIZON, HIDDEN, DT = 50, 64, 0.02
GRAVITY, CART, POLE, LENGTH = 9.81, 1.0, 0.1, 0.5
FEATURES = ("cart", "angle", "speed", "rate", "force")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of this benchmark.

    Args:
        json: File that the rows are written to; none where missing.
        quick: Shorter measurements.
        batches: Worlds of each comparison.
        threads: Threads of torch and of the fused rollout.
        compile: Whether torch.compile is measured (compiling takes minutes).
        jax_python: A Python that has JAX; none where missing.
    """

    json: Path | None = None
    quick: bool = False
    batches: tuple[int, ...] = (1, 16, 256, 4096)
    threads: int = 2
    compile: bool = False
    jax_python: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison: medians of forward and gradient together [ms], ``ratio = peer_ms / ours_ms``."""

    peer: str
    batch: int
    gradients: str
    ours_ms: float
    peer_ms: float
    ratio: float
    threads: int
    machine: str


def model() -> ResidualDynamics:
    """Build the cart-pole with its learned force, weights drawn once."""
    force = Unstructured(nv=2, features=[Feature(source=n) for n in FEATURES], bound=1.0, hidden=(HIDDEN, HIDDEN))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        force.network.weights[-1].copy_(torch.randn(HIDDEN, 2, generator=generator) / HIDDEN**0.5)
    return ResidualDynamics(CartPole(dt=DT), [force]).float()


def weights_of(dynamics: ResidualDynamics) -> list[Tensor]:
    """Matrices and biases, layer by layer."""
    network = dynamics.corrections[0].network
    return [x for pair in zip(network.weights, network.biases, strict=True) for x in pair]


def eager_cost(weights: list[Tensor], x: Tensor, actions: Tensor) -> Tensor:
    """Return the loss of the same equations, written out for torch."""
    cost = 0.01 * actions.square().sum()
    for u in actions.unbind(1):
        h = torch.tanh(torch.addmm(weights[1], torch.cat([x, u], 1), weights[0]))
        h = torch.tanh(torch.addmm(weights[3], h, weights[2]))
        r = torch.tanh(torch.addmm(weights[5], h, weights[4]))
        s, c, w = torch.sin(x[:, 1]), torch.cos(x[:, 1]), x[:, 3]
        b1, b2 = u[:, 0] + r[:, 0] + POLE * LENGTH * w * w * s, r[:, 1] - POLE * GRAVITY * LENGTH * s
        m11, m12, m22 = CART + POLE, POLE * LENGTH * c, POLE * LENGTH * LENGTH
        det = m11 * m22 - m12 * m12
        v = x[:, 2:] + DT * torch.stack([(m22 * b1 - m12 * b2) / det, (m11 * b2 - m12 * b1) / det], 1)
        x = torch.cat([x[:, :2] + DT * v, v], 1)
        cost = cost + x.square().sum()
    return cost


def fused_cost(dynamics: ResidualDynamics, x: Tensor, actions: Tensor) -> Tensor:
    """Return the loss by the fused rollout."""
    states = rollout(dynamics, x, actions, backend="fused")
    return states[:, 1:].square().sum() + 0.01 * actions.square().sum()


def median_ms(run: Callable[[], object], seconds: float) -> float:
    """Return the median time of a call [ms] over at least three."""
    run()
    times: list[float] = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(times) < 3:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return 1e3 * sorted(times)[len(times) // 2]


JAX = """
import json, sys, time
import numpy as np, jax, jax.numpy as jnp
saved = np.load(sys.argv[1]); seconds = float(sys.argv[2]); batches = json.loads(sys.argv[3])
g, mc, mp, l, dt = 9.81, 1.0, 0.1, 0.5, 0.02
weights = [jnp.asarray(saved[f"w{i}"]) for i in range(6)]
def step(p, x, u):
    h = jnp.tanh(jnp.concatenate([x, u]) @ p[0] + p[1]); h = jnp.tanh(h @ p[2] + p[3]); r = jnp.tanh(h @ p[4] + p[5])
    s, c, w = jnp.sin(x[1]), jnp.cos(x[1]), x[3]
    b1, b2 = u[0] + r[0] + mp * l * w * w * s, r[1] - mp * g * l * s
    m11, m12, m22 = mc + mp, mp * l * c, mp * l * l
    det = m11 * m22 - m12 * m12
    v = x[2:] + dt * jnp.stack([(m22 * b1 - m12 * b2) / det, (m11 * b2 - m12 * b1) / det])
    return jnp.concatenate([x[:2] + dt * v, v])
def cost(U, p, x0):
    def f(x, u):
        x = jax.vmap(step, (None, 0, 0))(p, x, u)
        return x, (x * x).sum() + 0.01 * (u * u).sum()
    return jax.lax.scan(f, x0, U.swapaxes(0, 1))[1].sum()
out = {}
for B in batches:
    x, U = jnp.asarray(saved[f"x{B}"]), jnp.asarray(saved[f"u{B}"])
    for name, by in (("actions", 0), ("actions and weights", (0, 1))):
        f = jax.jit(jax.grad(cost, by))
        jax.block_until_ready(f(U, weights, x))
        times, start = [], time.perf_counter()
        while time.perf_counter() - start < seconds or len(times) < 3:
            a = time.perf_counter(); jax.block_until_ready(f(U, weights, x)); times.append(time.perf_counter() - a)
        out[f"{B} {name}"] = 1e3 * sorted(times)[len(times) // 2]
print(json.dumps({"version": jax.__version__, "ms": out}))
"""


def jax_times(python: Path, weights: list[Tensor], inputs: dict[int, tuple[Tensor, Tensor]], seconds: float) -> dict[str, float]:
    """Measure JAX (jit of scan, vmap and grad) in its own process; keys "batch gradients"."""
    import numpy as np  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inputs.npz"
        arrays = {f"w{i}": w.detach().numpy() for i, w in enumerate(weights)}
        for batch, (x, u) in inputs.items():
            arrays |= {f"x{batch}": x.numpy(), f"u{batch}": u.detach().numpy()}
        np.savez(path, **arrays)
        command = [str(python), "-c", JAX, str(path), str(seconds), json.dumps(list(inputs))]
        environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "PYTHONPATH")}
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
    say(f"JAX {found['version']}")
    times: dict[str, float] = found["ms"]
    return times


def main(options: Options) -> None:
    """Measure every batch, ours and the peers in turn."""
    torch.set_num_threads(options.threads)
    seconds = 0.5 if options.quick else 2.0
    dynamics, rows = model(), []
    weights = weights_of(dynamics)
    generator = torch.Generator().manual_seed(1)
    inputs = {b: (0.3 * torch.randn(b, 4, generator=generator), (0.3 * torch.randn(b, HORIZON, 1, generator=generator)).requires_grad_())
              for b in options.batches}
    ours: dict[str, float] = {}
    compiled = torch.compile(eager_cost) if options.compile else None
    for batch, (x, u) in inputs.items():
        for name, by in (("actions", [u]), ("actions and weights", [u, *weights])):
            for w in weights:
                w.requires_grad_(len(by) > 1)

            def fused(x: Tensor = x, u: Tensor = u, by: list[Tensor] = by) -> tuple[Tensor, ...]:
                return torch.autograd.grad(fused_cost(dynamics, x, u), by)

            def eager(x: Tensor = x, u: Tensor = u, by: list[Tensor] = by) -> tuple[Tensor, ...]:
                return torch.autograd.grad(eager_cost(weights, x, u), by)

            for a, b in zip(fused(), eager(), strict=True):
                assert (a - b).norm() < 1e-3 * b.norm(), (batch, name)
            key = f"{batch} {name}"
            ours[key] = median_ms(fused, seconds)
            peers = {"torch": median_ms(eager, seconds)}
            if compiled is not None:
                def with_compile(x: Tensor = x, u: Tensor = u, by: list[Tensor] = by) -> tuple[Tensor, ...]:
                    return torch.autograd.grad(compiled(weights, x, u), by)

                peers["torch_compile"] = median_ms(with_compile, seconds)
            rows += [row(peer, batch, name, ours[key], ms, options.threads) for peer, ms in peers.items()]
    if options.jax_python:
        times = jax_times(options.jax_python, weights, inputs, seconds)
        rows += [row("jax", int(key.split()[0]), key.split(" ", 1)[1], ours[key], ms, options.threads) for key, ms in times.items()]
    show("Rollouts with gradients", ["peer", "batch", "gradients", "ours [ms]", "peer [ms]", "ratio"],
         [(r.peer, r.batch, r.gradients, r.ours_ms, r.peer_ms, r.ratio) for r in rows])
    if options.json:
        write_json(options.json, [asdict(r) for r in rows])


def row(peer: str, batch: int, gradients: str, ours: float, theirs: float, threads: int) -> Row:
    """Return one comparison."""
    return Row(peer=peer, batch=batch, gradients=gradients, ours_ms=ours, peer_ms=theirs, ratio=theirs / ours, threads=threads,
               machine=machine())


if __name__ == "__main__":
    main(tyro.cli(Options))
