"""Gradient training of policies: environment steps per second through the fused kernels and through the torch backend.

A cart-pole (semi-implicit Euler, 0.02 s) with a learned force of two hidden layers of 64 tanh units under a policy of the same size,
float32, on one thread and on two. One iteration is what the algorithm does: windows of all worlds, their gradient by the policy's
weights, a step of Adam; for SHAC also the value's targets and its 16 steps. Both backends run the same code but for the rollouts and
fits, interleaved in one process, and medians are compared: of processor time with one thread, which is wall time on a core of one's own,
of wall time with more, for which the cores must be free. The time that a policy takes for one action in numpy stands below, and what
training a swing-up takes.

    python benchmarks/policies.py --json benchmarks/results/policies.json
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import tyro
from common import Options as CommonOptions
from common import machine, say, show
from rollouts import model, quadratic
from torch import Tensor

from residual_mbrl.costs import Cost, WarpCost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.files import write_json
from residual_mbrl.physics.cartpole import CartPole
from residual_mbrl.policies import MLPPolicy, NumpyPolicy, Value, angles_turned
from residual_mbrl.policy_optimization import TrainingOptions, apg, shac
from residual_mbrl.policy_optimization.short_horizon import Run
from residual_mbrl.rollouts import Backend
from residual_mbrl.tasks import Task

HORIZON = 32


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    """Options of this benchmark.

    Args:
        worlds: Parallel worlds of each comparison.
        threads: Threads of both backends.
        repeats: Turns of both backends.
        seeds: Trainings of the swing-up.
    """

    worlds: tuple[int, ...] = (16, 64, 256, 1024)
    threads: tuple[int, ...] = (1, 2)
    repeats: int = 15
    seeds: int = 5


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison: environment steps per second of each backend, medians over interleaved turns."""

    algorithm: str
    worlds: int
    fused: float
    torch: float
    ratio: float
    threads: int
    machine: str


class SwingUp(Cost):
    """``1 + cos θ + 0.1 s² + 0.01 (ds² + dθ²) + 0.001 u²``: zero where the pole stands at the rail's middle."""

    @property
    def references(self) -> Tensor:
        return torch.zeros(2, 1)

    def running(self, state: Tensor, action: Tensor, reference: Tensor) -> Tensor:
        cart, angle, speed, rate = state.unbind(-1)
        return 1 + torch.cos(angle) + 0.1 * cart**2 + 0.01 * (speed**2 + rate**2) + 0.001 * action[..., 0] ** 2

    def terminal(self, state: Tensor, reference: Tensor) -> Tensor:
        return torch.zeros_like(state[..., 0])

    def warp_form(self) -> WarpCost:
        import warp as wp  # noqa: PLC0415

        def running(x: Any, u: Any, r: Any) -> Any:
            return 1.0 + wp.cos(x[1]) + 0.1 * x[0] * x[0] + 0.01 * (x[2] * x[2] + x[3] * x[3]) + 0.001 * u[0] * u[0]

        def terminal(x: Any, r: Any) -> Any:
            return 0.0 * x[0]

        return WarpCost(("swing-up",), running, terminal)


def swing_up() -> Task:
    """Return the task: the pole hangs, is to stand within five seconds; practice begins anywhere."""
    def start(generator: torch.Generator, count: int) -> Tensor:
        return 0.1 * torch.randn(count, 4, generator=generator)

    def anywhere(generator: torch.Generator, count: int) -> Tensor:
        x = torch.randn(count, 4, generator=generator) * torch.tensor([0.5, 1.0, 1.0, 2.0])
        x[:, 1] = math.pi * (2 * torch.rand(count, generator=generator) - 1)
        x[: count // 4] = start(generator, count // 4)
        return x

    return Task(cost=SwingUp(), start=start, practice=anywhere, steps=250, low=torch.tensor([-10.0]), high=torch.tensor([10.0]))


def policy_for(dynamics: ResidualDynamics, seed: int = 0) -> MLPPolicy:
    """Return an untrained policy of two hidden layers of 64 units."""
    space = dynamics.baseline.space
    policy = MLPPolicy(space=space, low=-10.0, high=10.0, features=angles_turned(space, ["angle"]), seed=seed)
    policy.normalise(torch.randn(1000, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1.0, 2.0, 4.0]))
    return policy.float()


def compared(algorithm: str, worlds: int, threads: int, options: Options) -> Row:
    """Return steps per second of an algorithm through both backends, after a check that their first gradients agree."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    dynamics, runs = model(), {}
    task = Task(cost=quadratic(dynamics), start=swing_up().start, steps=2 * HORIZON, low=torch.tensor([-10.0]), high=torch.tensor([10.0]))
    settings = TrainingOptions(worlds=worlds, horizon=HORIZON, iterations=10_000, audit_every=0)
    for backend in ("fused", "torch"):
        policy = policy_for(dynamics)
        value = Value(space=policy.space, features=policy.features.features).float() if algorithm == "shac" else None
        runs[backend] = Run(dynamics, policy, value, task, settings)
    norms = [runs[b].iterate(b)[0] for b in ("fused", "torch")]
    assert abs(norms[0] - norms[1]) < 1e-3 * norms[1], norms
    turns: dict[Backend, int] = {"fused": 10, "torch": 1}
    times: dict[str, list[float]] = {b: [] for b in turns}
    for _ in range(options.repeats):
        for backend, count in turns.items():
            for _ in range(count):
                begin = clock()
                runs[backend].iterate(backend)
                times[backend].append(clock() - begin)
    rates = {b: worlds * HORIZON / float(np.median(t)) for b, t in times.items()}
    return Row(algorithm=algorithm, worlds=worlds, fused=rates["fused"], torch=rates["torch"], ratio=rates["fused"] / rates["torch"],
               threads=threads, machine=machine())


def numpy_step() -> float:
    """Return the median seconds that the numpy form of a policy takes for an action."""
    policy, x, times = NumpyPolicy(policy_for(model())), np.zeros(4), []
    for _ in range(5000):
        begin = time.perf_counter()
        policy(x)
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def trained(seeds: int, quick: bool) -> list[dict[str, float | str]]:
    """Return cost and seconds of training the swing-up, a mean of 64 episodes of 250 steps, from an untrained policy."""
    dynamics, rows = ResidualDynamics(CartPole(dt=0.02)), []
    for name, train, settings in (("apg", apg, {"horizon": 64, "iterations": 800}), ("shac", shac, {"horizon": 32, "iterations": 800})):
        for seed in range(seeds):
            iterations = 100 if quick else settings["iterations"]
            found = train(dynamics, policy_for(dynamics, seed), swing_up(), TrainingOptions(
                horizon=settings["horizon"], iterations=iterations, seed=seed))
            rows.append({"algorithm": name, "seed": seed, "cost": found.cost, "seconds": found.rounds[-1].seconds, "steps": found.steps})
    return rows


def main(options: Options) -> None:
    worlds = options.worlds[:2] if options.quick else options.worlds
    rows = [compared(a, n, threads, options) for threads in options.threads for a in ("apg", "shac") for n in worlds]
    show("Environment steps per second of training", ["threads", "algorithm", "worlds", "fused", "torch", "ratio"],
         [(r.threads, r.algorithm, r.worlds, r.fused, r.torch, r.ratio) for r in rows])
    torch.set_num_threads(1)
    step = numpy_step()
    say(f"one action in numpy: {1e6 * step:.1f} us")
    swings = trained(1 if options.quick else options.seeds, options.quick)
    show("Swing-up", ["algorithm", "seed", "cost of an episode", "seconds", "steps"],
         [(r["algorithm"], r["seed"], r["cost"], r["seconds"], r["steps"]) for r in swings])
    if options.json:
        write_json(options.json, {"rows": [asdict(r) for r in rows], "numpy_seconds": step, "swing_up": swings})


if __name__ == "__main__":
    main(tyro.cli(Options))
