"""Rollouts with gradients: the fused kernels beside torch eager, torch.compile and JAX on the same equations.

A cart-pole (semi-implicit Euler, 0.02 s) with a learned force ``tanh(net(x, u))`` of two hidden layers of 64 tanh units, float32, over
50 steps; the cost is ``Σ x² + 0.01 Σ u²``, its gradient by all actions, or by actions and weights. All peers are written out by hand
and lean, and use the same threads. Ours is measured twice: ``cost_gradient``, one launch there and back with the cost in the kernel, and
``rollout`` with the cost and its gradient left to torch. JAX may live in an environment of its own.

    python benchmarks/rollouts.py --json benchmarks/results/rollouts.json --jax-python ../jax/bin/python --figure docs/figures/rollouts.png
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

import numpy as np
import torch
import tyro
from common import machine, say, show
from rollouts_figure import draw
from torch import Tensor

from residual_mbrl.costs import QuadraticCost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.files import write_json
from residual_mbrl.physics.cartpole import CartPole
from residual_mbrl.residuals import Feature, Unstructured
from residual_mbrl.rollouts import cost_gradient, rollout

HORIZON, HIDDEN, DT = 50, 64, 0.02
GRAVITY, CART, POLE, LENGTH = 9.81, 1.0, 0.1, 0.5
FEATURES = ("cart", "angle", "speed", "rate", "force")
ACTIONS, WEIGHTS = "actions", "actions and weights"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of this benchmark.

    Args:
        json: File that the rows are written to; none where missing.
        quick: Shorter measurements.
        batches: Worlds of each comparison.
        threads: Threads of torch and of the fused rollout.
        compile: Whether torch.compile is measured (compiling takes minutes, and needs a C++ compiler).
        jax_python: A Python that has JAX; none where missing.
        figure: File of the picture of time against batch, horizon and width; none where missing.
    """

    json: Path | None = None
    quick: bool = False
    batches: tuple[int, ...] = (1, 16, 256, 4096)
    threads: int = 2
    compile: bool = False
    jax_python: Path | None = None
    figure: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison: medians [ms] of what ``ours`` names and of the peer, ``ratio = peer_ms / ours_ms``."""

    peer: str
    batch: int
    gradients: str
    ours: str
    ours_ms: float
    peer_ms: float
    ratio: float
    threads: int
    machine: str


def model(hidden: int = HIDDEN) -> ResidualDynamics:
    """Build the cart-pole with its learned force, weights drawn once."""
    force = Unstructured(nv=2, features=[Feature(source=n) for n in FEATURES], bound=1.0, hidden=(hidden, hidden))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        force.network.weights[-1].copy_(torch.randn(hidden, 2, generator=generator) / hidden**0.5)
    return ResidualDynamics(CartPole(dt=DT), [force]).float()


def weights_of(dynamics: ResidualDynamics) -> list[Tensor]:
    """Matrices and biases, layer by layer."""
    network = dynamics.corrections[0].network
    return [x for pair in zip(network.weights, network.biases, strict=True) for x in pair]


def eager_cost(weights: list[Tensor], x: Tensor, actions: Tensor) -> Tensor:
    """Return the cost of the same equations, written out for torch."""
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


def quadratic(dynamics: ResidualDynamics) -> QuadraticCost:
    """Return the same cost but for the first state's part, which no action can change."""
    return QuadraticCost(space=dynamics.space, state=torch.ones(4), action=0.01 * torch.ones(1), terminal=torch.ones(4))


def median_ms(run: Callable[[], object], seconds: float) -> float:
    """Return the median time of a call [ms] over at least five, after a few that are not counted."""
    for _ in range(4):
        run()
    times: list[float] = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(times) < 5:
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
        for _ in range(4):
            jax.block_until_ready(f(U, weights, x))
        times, start = [], time.perf_counter()
        while time.perf_counter() - start < seconds or len(times) < 5:
            a = time.perf_counter(); jax.block_until_ready(f(U, weights, x)); times.append(time.perf_counter() - a)
        out[f"{B} {name}"] = 1e3 * sorted(times)[len(times) // 2]
print(json.dumps({"version": jax.__version__, "ms": out}))
"""


def jax_times(python: Path, weights: list[Tensor], inputs: dict[int, tuple[Tensor, Tensor]], seconds: float) -> dict[str, float]:
    """Measure JAX (jit of scan, vmap and grad) in its own process; keys "batch gradients"."""
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


def measured(dynamics: ResidualDynamics, x: Tensor, u: Tensor, name: str, seconds: float, compiled: Callable[..., Tensor] | None,
             ) -> tuple[dict[str, float], dict[str, float]]:
    """Return the times [ms] of ours and of the peers in this process, after a check that all gradients agree."""
    weights = weights_of(dynamics)
    learn = name == WEIGHTS
    by = [u, *weights] if learn else [u]
    for w in weights:
        w.requires_grad_(learn)
    goal, plain = quadratic(dynamics), u.detach()

    def one_launch() -> object:
        return cost_gradient(dynamics, x, plain, goal, weights=learn, backend="fused")

    def through_torch() -> tuple[Tensor, ...]:
        states = rollout(dynamics, x, u, backend="fused")
        return torch.autograd.grad(states[:, 1:].square().sum() + 0.01 * u.square().sum(), by)

    def eager(function: Callable[..., Tensor] = eager_cost) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(weights, x, u), by)

    expected, found = eager(), cost_gradient(dynamics, x, plain, goal, weights=learn)
    names = {id(w): n for n, w in dynamics.named_parameters()}
    in_one = [found.actions, *(found.weights[names[id(w)]] for w in weights)] if learn else [found.actions]
    for a, b in zip(in_one, expected, strict=True):
        assert (a - b).norm() < 1e-3 * b.norm(), name
    for a, b in zip(through_torch(), expected, strict=True):
        assert (a - b).norm() < 1e-3 * b.norm(), name
    ours = {"cost_gradient": median_ms(one_launch, seconds), "rollout": median_ms(through_torch, seconds)}
    peers = {"torch": median_ms(eager, seconds)}
    if compiled is not None:
        peers["torch_compile"] = median_ms(lambda: eager(compiled), seconds)
    return ours, peers


def peak(seconds: float) -> dict[str, float]:
    """Return GFLOP/s of one core on a hidden layer, torch's matrix product and a bare loop of multiply-adds, and of the forward rollout."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    batch = 256
    a, b = torch.randn(batch, HIDDEN), torch.randn(HIDDEN, HIDDEN)
    out = torch.empty(batch, HIDDEN)
    flops = 2 * batch * HIDDEN * HIDDEN
    found = {"torch.mm": flops / median_ms(lambda: torch.mm(a, b, out=out), seconds) * 1e-6, "multiply-adds": multiply_adds()}
    dynamics = model()
    x, u = 0.3 * torch.randn(batch, 4), 0.3 * torch.randn(batch, HORIZON, 1)
    layers = 2 * (5 * HIDDEN + HIDDEN * HIDDEN + HIDDEN * 2)
    with torch.no_grad():
        found["forward rollout"] = layers * batch * HORIZON / median_ms(lambda: rollout(dynamics, x, u, backend="fused"), seconds) * 1e-6
    torch.set_num_threads(threads)
    return found


def multiply_adds() -> float:
    """Return GFLOP/s of one core with every register busy and no memory: the machine's limit."""
    from residual_mbrl.kernels.lanes import lane_count  # noqa: PLC0415
    from residual_mbrl.kernels.native import Kernel, lane_math  # noqa: PLC0415

    lanes, count, chains = lane_count(), 1_000_000, 12
    sums = "".join(f"s{k} = s{k} * a + b;" for k in range(chains))
    call = Kernel(f"""
    struct K {{ {lane_math("T", "float", lanes)} }};
    K::T {", ".join(f"s{k} = (K::T)({k})" for k in range(chains))};
    const K::T a = (K::T)(*(float*)a_), b = (K::T)(((float*)a_)[1]);
    for (long i = 0; i < {count}; ++i) {{ {sums} }}
    *(K::T*)out = {" + ".join(f"s{k}" for k in range(chains))};
    """.replace("a_", "a[0]").replace("out", "a[1]").replace("const K::T a =", "const K::T x =").replace("* a + b", "* x + b"), 2).table()
    numbers, out = np.array([0.999, 0.001], np.float32), np.zeros(64, np.float32)
    address = out.ctypes.data + -out.ctypes.data % 64
    ms = median_ms(lambda: call([numbers.ctypes.data, address]), 0.3)
    return 2 * lanes * chains * count / ms * 1e-6


def scaling(seconds: float) -> dict[str, list[tuple[int, float]]]:
    """Return times [ms] of ``cost_gradient`` against batch, horizon and width, the others as in the comparison with 256 worlds."""
    def point(batch: int, horizon: int, dynamics: ResidualDynamics) -> float:
        x, u, goal = 0.3 * torch.randn(batch, 4), 0.3 * torch.randn(batch, horizon, 1), quadratic(dynamics)
        return median_ms(lambda: cost_gradient(dynamics, x, u, goal, backend="fused"), seconds)

    dynamics = model()
    return {"batch": [(b, point(b, HORIZON, dynamics)) for b in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)],
            "horizon": [(h, point(256, h, dynamics)) for h in (1, 2, 5, 10, 20, 50, 100, 200, 500)],
            "width": [(n, point(256, HORIZON, model(n))) for n in (8, 16, 32, 64, 128, 256)]}


def main(options: Options) -> None:
    """Measure every batch, ours and the peers in turn."""
    torch.set_num_threads(options.threads)
    seconds = 0.5 if options.quick else 2.0
    dynamics, rows = model(), []
    generator = torch.Generator().manual_seed(1)
    inputs = {b: (0.3 * torch.randn(b, 4, generator=generator), (0.3 * torch.randn(b, HORIZON, 1, generator=generator)).requires_grad_())
              for b in options.batches}
    ours: dict[str, dict[str, float]] = {}
    compiled = torch.compile(eager_cost) if options.compile else None
    for batch, (x, u) in inputs.items():
        for name in (ACTIONS, WEIGHTS):
            ours[f"{batch} {name}"], peers = measured(dynamics, x, u, name, seconds, compiled)
            rows += [row(peer, batch, name, n, ms, other, options.threads) for peer, other in peers.items()
                     for n, ms in ours[f"{batch} {name}"].items()]
    if options.jax_python:
        for key, other in jax_times(options.jax_python, weights_of(dynamics), inputs, seconds).items():
            batch_text, name = key.split(" ", 1)
            rows += [row("jax", int(batch_text), name, n, ms, other, options.threads) for n, ms in ours[key].items()]
    show("Rollouts with gradients", ["peer", "batch", "gradients", "ours is", "ours [ms]", "peer [ms]", "ratio"],
         [(r.peer, r.batch, r.gradients, r.ours, r.ours_ms, r.peer_ms, r.ratio) for r in rows])
    limits = peak(0.3 if options.quick else 1.0)
    show("GFLOP/s of one core on 64 x 64 layers, and fraction of the larger of the two limits", ["what", "GFLOP/s", "fraction"],
         [(n, g, g / max(limits["torch.mm"], limits["multiply-adds"])) for n, g in limits.items()])
    if options.figure:
        points = scaling(0.1 if options.quick else 0.4)
        draw(options.figure, points)
    if options.json:
        write_json(options.json, {"rows": [asdict(r) for r in rows], "gflops_one_core": limits,
                                  **({"scaling_ms": points} if options.figure else {})})


def row(peer: str, batch: int, gradients: str, name: str, ours: float, theirs: float, threads: int) -> Row:
    """Return one comparison."""
    return Row(peer=peer, batch=batch, gradients=gradients, ours=name, ours_ms=ours, peer_ms=theirs, ratio=theirs / ours, threads=threads,
               machine=machine())


if __name__ == "__main__":
    main(tyro.cli(Options))
