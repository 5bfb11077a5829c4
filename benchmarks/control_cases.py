"""The cases of ``control.py``: each returns its rows, and what the peers say of their versions and settings."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import say
from control_problems import Problem, cart_pole, circle, quadratic, quadrotor
from control_process import Peer
from control_solves import Ours, Solver, compared
from torch import Tensor

from residual_mbrl.costs import QuadraticCost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.function_cost import FunctionCost
from residual_mbrl.physics.cartpole import CartPole
from residual_mbrl.planners import ILQR, MPPI, ILQROptions, Limits, MPPIOptions, shift
from residual_mbrl.rollouts import rollout

Result = dict[str, Any]
TICKS, SEEDS = 150, 3
LAPS = 400
WARM = 20
"""Ticks that are not counted."""


def opened(folder: Path, environment: str, script: str, arguments: Sequence[object]) -> Peer | None:
    """Start a peer; None, and a word about it, where its environment is missing."""
    try:
        return Peer(folder, environment, script, arguments)
    except FileNotFoundError as error:
        say(str(error))
        return None


def swing_up_case(folder: Path, quick: bool) -> Result:
    """ILQR on the cart-pole with a network, to the same cost."""
    problem = cart_pole()
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "problem.npz"
        problem.save(path)
        peers = [opened(folder, "casadi", "casadi_ipopt.py", [path, folder / "casadi_code", "ipopt", "ipopt c", "sqp c", "fatrop c"]),
                 opened(folder, "mpc_pytorch", "mpc_pytorch_ilqr.py", [path])]
    return solved(problem_planner(problem), problem.cost_of, peers, quick)


def problem_planner(problem: Problem) -> Ours:
    """Return ours for a problem: ILQR in single precision."""
    dynamics = copy.deepcopy(problem.dynamics).float()
    cost, start = quadratic(problem), problem.start.float()
    limits = Limits(action_lower=problem.limits[0], action_upper=problem.limits[1])

    def planner(iterations: int) -> Callable[[], Tensor]:
        ilqr = ILQR(dynamics, cost, ILQROptions(iterations=iterations), steps=problem.horizon, limits=limits, initial_action=problem.guess[0])
        return lambda: ilqr.plan(start).actions

    return Ours(planner, problem.cost_of, iterations=300)


def solved(ours: Ours, judge: Callable[[Tensor], float], peers: Sequence[Peer | None], quick: bool) -> Result:
    """Compare with every solver of the peers, and end them."""
    running = [p for p in peers if p is not None]
    solvers = [Solver(f"{_name(p)} {n}".strip(), lambda p=p, n=n: p.solve(n)) for p in running for n in p.solvers]  # type: ignore[misc]
    found = compared(ours, solvers, judge, rounds=3 if quick else 15, seconds=5.0 if quick else 20.0)
    result = {"rows": found, "peers": [p.about for p in running]}
    for p in running:
        p.close()
    return result


def _name(peer: Peer) -> str:
    for package, name in (("mpc", "mpc.pytorch"), ("casadi", "CasADi"), ("crocoddyl", "crocoddyl")):
        if package in peer.about.get("versions", {}):
            return name
    return "crocoddyl"


def crocoddyl_case(folder: Path, quick: bool, start: Sequence[float], terminal: Sequence[float]) -> Result:
    """ILQR on crocoddyl's cart-pole: residuals w [sin, 1 - cos, y, dy, dangle, f] from its upright angle, 50 steps of 0.05 s."""
    running = (1.0, 1.0, 0.1, 0.001, 0.001, 1.0)
    dynamics, steps = ResidualDynamics(CartPole(dt=0.05)), 50
    weights = 0.5 * torch.tensor([running] * steps + [[*terminal]], dtype=torch.float64).square()

    def squares(x: Tensor, u: Tensor | None) -> list[Tensor]:  # the angle is from hanging down
        y, angle, speed, rate = x[..., 0], x[..., 1], x[..., 2], x[..., 3]
        return [v * v for v in (torch.sin(angle), 1 + torch.cos(angle), y, speed, rate, *(() if u is None else (u[..., 0],)))]

    def stage(x: Tensor, u: Tensor, r: Tensor) -> Tensor:
        return sum((r[..., i] * v for i, v in enumerate(squares(x, u))), torch.zeros_like(x[..., 0]))

    def last(x: Tensor, r: Tensor) -> Tensor:
        return sum((r[..., i] * v for i, v in enumerate(squares(x, None))), torch.zeros_like(x[..., 0]))

    exact = FunctionCost(space=dynamics.space, running=stage, terminal=last, reference=weights, trajectory=True)
    single = exact.with_reference(weights.float(), trajectory=True)
    first = torch.tensor(start, dtype=torch.float64) + torch.tensor([0.0, np.pi, 0.0, 0.0], dtype=torch.float64)

    def judge(actions: Tensor) -> float:
        states = rollout(dynamics, first, actions.double(), backend="torch")
        return float(exact.total(states, actions.double()))

    def planner(iterations: int) -> Callable[[], Tensor]:
        ilqr = ILQR(dynamics, single, ILQROptions(iterations=iterations), steps=steps, initial_action=0.0)
        state = first.float()
        return lambda: ilqr.plan(state).actions

    arguments = [*start, *terminal]
    peers = [opened(folder, "", "crocoddyl_cart_pole", arguments),
             opened(folder, "crocoddyl", "crocoddyl_problems.py", ["cart-pole", *arguments])]
    return solved(Ours(planner, judge, iterations=500), judge, peers, quick)


def mppi_case(folder: Path, quick: bool) -> Result:
    """Time of a command with 1024 samples over 50 steps, and the cost of the closed loop that the commands make."""
    problem, ticks, seeds = cart_pole(50), TICKS, 1 if quick else SEEDS
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "problem.npz"
        problem.save(path)
        peer = opened(folder, "pytorch_mppi", "pytorch_mppi_command.py", [path])
    settings = peer.about["settings"][peer.solvers[0]] if peer else {"noise_sigma": 5.0, "temperatures": ()}
    tried = {}  # its temperature, chosen on seeds that are not reported
    for temperature in settings["temperatures"]:
        assert peer is not None
        tried[temperature] = np.mean([_loop_cost(problem, peer.solve(peer.solvers[0], seed=100, ticks=ticks, temperature=temperature)["actions"])])
    best = min(tried, key=lambda n: tried[n]) if tried else None
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], **{f"pytorch_mppi {n}": [] for n in (peer.solvers if peer else [])}}
    for seed in range(seeds):
        runs["ours"].append(_own_loop(problem, seed, ticks, settings["noise_sigma"]))
        for n in peer.solvers if peer else []:
            assert peer is not None
            runs[f"pytorch_mppi {n}"].append(peer.solve(n, seed=seed, ticks=ticks, temperature=best))
    if peer:
        peer.close()
    rows, own = [], 0.0
    for name, found in runs.items():
        times = 1e3 * np.concatenate([r["times"][WARM:] for r in found])
        own = own or float(np.median(times))
        rows.append({"planner": name, "command [ms]": float(np.median(times)), "p95 [ms]": float(np.quantile(times, 0.95)),
                     "times ours": float(np.median(times)) / own, "closed-loop cost": float(np.mean([_loop_cost(problem, r["actions"]) for r in found]))})
    return {"rows": rows, "peers": [peer.about] if peer else [], "temperature": best, "tried": {str(k): float(v) for k, v in tried.items()},
            "ticks": ticks, "seeds": seeds}


def _own_loop(problem: Problem, seed: int, ticks: int, noise: float) -> dict[str, Any]:
    dynamics, cost = copy.deepcopy(problem.dynamics).float(), quadratic(problem)
    mppi = MPPI(dynamics, cost, MPPIOptions(samples=1024, std=noise, seed=seed), steps=problem.horizon,
                limits=Limits(action_lower=problem.limits[0], action_upper=problem.limits[1]), initial_action=problem.guess[0])
    x, plan, times, actions = problem.start, None, [], []
    for _ in range(ticks):
        begun = time.perf_counter()
        plan = mppi.plan(x.float(), warm=None if plan is None else shift(plan, 1))
        u = plan.actions[0].double()
        times.append(time.perf_counter() - begun)
        actions.append(u.tolist())
        x = rollout(problem.dynamics, x, u.unsqueeze(0), backend="torch")[1]
    return {"times": times, "actions": actions}


def _loop_cost(problem: Problem, actions: Sequence[Sequence[float]], goals: Tensor | None = None) -> float:
    """Return the running cost of all ticks of a closed loop, in float64."""
    u = torch.tensor(actions, dtype=torch.float64).clamp(*problem.limits)
    states = rollout(problem.dynamics, problem.start, u, backend="torch")
    goal = problem.goal.expand(len(states), -1) if goals is None else goals[: len(states)]
    square = problem.dynamics.space.difference(states, goal).square()
    return float((square[:-1] @ problem.state).sum() + (u.square() @ problem.action).sum())


def quadrotor_case(folder: Path, quick: bool) -> Result:
    """One iteration a tick along a circle, each from the last one's shifted plan."""
    problem, ticks = quadrotor(), LAPS // 4 if quick else LAPS
    goals = circle(torch.arange(ticks + problem.horizon + 1, dtype=torch.float64) * problem.dynamics.dt)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "problem.npz"
        problem.save(path)
        peer = opened(folder, "casadi", "casadi_ipopt.py", [path, folder / "casadi_code", "rti c", "rti hpipm c"])
    rounds = 1 if quick else 3
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], **{f"CasADi {n}": [] for n in (peer.solvers if peer else [])}}
    for _ in range(rounds):
        runs["ours"].append(_own_laps(problem, goals, ticks))
        for n in peer.solvers if peer else []:
            assert peer is not None
            runs[f"CasADi {n}"].append(peer.solve(n, goals=goals[: ticks + problem.horizon].tolist()))
    if peer:
        peer.close()
    rows = []
    for name, found in runs.items():
        times = 1e3 * np.concatenate([r["times"][WARM:] for r in found])
        rows.append({"solver": name, "median [ms]": float(np.median(times)), "p95 [ms]": float(np.quantile(times, 0.95)),
                     "largest [ms]": float(times.max()), "closed-loop cost": _loop_cost(problem, found[-1]["actions"], goals)})
    return {"rows": rows, "peers": [peer.about] if peer else [], "median_ms": rows[0]["median [ms]"], "p95_ms": rows[0]["p95 [ms]"],
            "ticks": ticks, "rounds": rounds}


def _own_laps(problem: Problem, goals: Tensor, ticks: int) -> dict[str, Any]:
    dynamics = copy.deepcopy(problem.dynamics).float()
    space, q, r, last = dynamics.space, problem.state.float(), problem.action.float(), problem.terminal.float()
    ilqr = ILQR(dynamics, quadratic(problem), ILQROptions(iterations=1), steps=problem.horizon,
                limits=Limits(action_lower=problem.limits[0], action_upper=problem.limits[1]), initial_action=problem.guess[0])
    x, plan, times, actions, targets = problem.start, None, [], [], goals.float()
    for t in range(ticks):
        begun = time.perf_counter()
        cost = QuadraticCost(space=space, state=q, action=r, terminal=last, target=targets[t : t + problem.horizon + 1], trajectory=True)
        plan = ilqr.plan(x.float(), warm=None if plan is None else shift(plan, 1), cost=cost)
        u = plan.actions[0].double()
        times.append(time.perf_counter() - begun)
        actions.append(u.tolist())
        x = rollout(problem.dynamics, x, u.unsqueeze(0), backend="torch")[1]
    return {"times": times, "actions": actions}
