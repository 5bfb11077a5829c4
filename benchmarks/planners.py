"""What planners cost: processor time of a call on one core, for the problems that ``docs/planning.md`` speaks of.

Cart-pole swing-up (0.02 s, residual of two layers of 64, 100 steps; 50 steps for samples), and a quadrotor of 17 states with rotors that
lag (residual of four layers of 64, 20 nodes over 1 s) flown by one real-time iteration a tick, each from the state that the last one left,
disturbed. Networks are random: their cost is that of their size. Times are those of the calling thread, which other processes do not enter.

    python benchmarks/planners.py
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
import tyro
from common import Options, machine, say, show
from torch import Tensor

from residual_mbrl.costs import QuadraticCost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.files import write_json
from residual_mbrl.physics.cartpole import CartPole
from residual_mbrl.physics.quadrotor import Quadrotor
from residual_mbrl.planners import (
    ICEM,
    ILQR,
    MPPI,
    ICEMOptions,
    ILQROptions,
    Limits,
    MPPIOptions,
    Plan,
    Planner,
    Shooting,
    ShootingOptions,
    shift,
)
from residual_mbrl.residuals import Feature, Unstructured

HOVER = 1.8
"""About what the rotors need to hover [krad/s]."""


def cartpole(hidden: tuple[int, ...]) -> tuple[ResidualDynamics, QuadraticCost]:
    features = [Feature(source=n) for n in ("cart", "angle", "speed", "rate", "force")]
    learned = [Unstructured(nv=2, features=features, sizes=[1] * 5, bound=1.0, hidden=hidden)] if hidden else []
    dynamics = ResidualDynamics(CartPole(dt=0.02), learned)
    cost = QuadraticCost(space=dynamics.space, state=torch.tensor([1.0, 5.0, 0.1, 0.1]), action=torch.tensor([0.01]),
                         terminal=torch.tensor([10.0, 50.0, 1.0, 1.0]), target=torch.tensor([0.0, math.pi, 0.0, 0.0]))
    return dynamics, cost


def quadrotor() -> tuple[ResidualDynamics, QuadraticCost, Tensor]:
    features = [Feature(source="velocity"), Feature(source="action")]
    learned = Unstructured(nv=6, features=features, sizes=[6, 4], bound=0.02, hidden=(64,) * 4)
    dynamics = ResidualDynamics(Quadrotor(dt=0.05, substeps=1), [learned])
    goal, weights = torch.zeros(17), torch.tensor([10.0] * 3 + [2.0] * 3 + [1.0] * 3 + [0.2] * 3 + [0.0] * 4)
    goal[2], goal[3] = 1.0, 1.0
    start = torch.zeros(17)
    start[3], start[13:] = 1.0, HOVER
    cost = QuadraticCost(space=dynamics.space, state=weights, action=torch.full((4,), 0.1), terminal=5 * weights, target=goal)
    return dynamics, cost, start


def measured(call: Callable[[], Plan], count: int) -> tuple[list[float], Plan]:
    """Return processor times [ms] of calls after the first, sorted, and the last plan."""
    plan, times = call(), []
    for _ in range(count):
        begin = time.thread_time()
        plan = call()
        times.append(1e3 * (time.thread_time() - begin))
    return sorted(times), plan


def flown(planner: Planner, start: Tensor, ticks: int) -> Callable[[], Plan]:
    """Return a function that makes one tick: the state of the last plan's next step, disturbed, and its plan shifted."""
    generator, last = torch.Generator().manual_seed(0), [planner.plan(start)]

    def tick() -> Plan:
        states = last[0].states
        assert states is not None
        last[0] = planner.plan(states[1] + 0.01 * torch.randn(17, generator=generator), shift(last[0], 1))
        return last[0]

    return tick


def main(options: Options) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    n, box = 30 if options.quick else 200, Limits(action_lower=-10.0, action_upper=10.0)
    dynamics, cost = cartpole((64, 64))
    plain, plain_cost = cartpole(())
    drone, drone_cost, start = quadrotor()
    hanging = torch.zeros(4)

    def swing(planner: Planner) -> Callable[[], Plan]:
        return lambda: planner.plan(hanging)

    rotors = Limits(action_lower=0.0, action_upper=3.0)
    rti = ILQR(drone, drone_cost, ILQROptions(iterations=1), steps=20, limits=rotors, initial_action=HOVER)
    cases = {
        "iLQR, quadrotor 4 x 64, 20 nodes, 1 iteration": flown(rti, start, n),
        "iLQR, cart-pole 2 x 64, H = 100, 1 iteration": swing(ILQR(dynamics, cost, ILQROptions(iterations=1), steps=100, limits=box)),
        "the same, 20 iterations": swing(ILQR(dynamics, cost, ILQROptions(iterations=20), steps=100, limits=box)),
        "the same, until converged": swing(ILQR(dynamics, cost, ILQROptions(iterations=200), steps=100, limits=box)),
        "the same without a network": swing(ILQR(plain, plain_cost, ILQROptions(iterations=200), steps=100, limits=box)),
        "MPPI, cart-pole 2 x 64, H = 50, 1024 samples": swing(MPPI(dynamics, cost, MPPIOptions(std=4.0), steps=50, limits=box)),
        "iCEM, the same, 4 x 256 samples": swing(ICEM(dynamics, cost, ICEMOptions(std=4.0), steps=50, limits=box)),
        "L-BFGS, the same, 8 starts, 60 iterations": swing(Shooting(dynamics, cost, ShootingOptions(std=4.0), steps=50, limits=box)),
    }
    rows = []
    for name, call in cases.items():
        times, plan = measured(call, n if "L-BFGS" not in name else n // 5)
        rows.append({"case": name, "median_ms": times[len(times) // 2], "p95_ms": times[int(0.95 * len(times))], "least_ms": times[0],
                     "iterations": plan.iterations, "status": plan.outcome.name, "cost": float(plan.cost)})
    show("Processor time of one call [ms]", ("case", "median", "95 %", "least", "iterations", "status"),
         [(r["case"], r["median_ms"], r["p95_ms"], r["least_ms"], r["iterations"], r["status"]) for r in rows])
    say(machine())
    if options.json is not None:
        write_json(options.json, [{**r, "machine": machine()} for r in rows])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
