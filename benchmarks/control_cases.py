"""The cases of ``control.py`` with a network: each returns its rows, and what the peers say of their versions and settings."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from control_problems import Problem, cart_pole, circle, quadratic, quadrotor
from control_process import now, opened
from control_solves import Ours, solved
from torch import Tensor

from residual_mbrl.costs import QuadraticCost
from residual_mbrl.planners import ILQR, MPPI, ILQROptions, Limits, MPPIOptions, shift
from residual_mbrl.rollouts import rollout

Result = dict[str, Any]
TICKS, SEEDS = 150, 3
LAPS = 400
WARM = 20
"""Ticks that are not counted."""


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
        ilqr = ILQR(dynamics, cost, ILQROptions(iterations=iterations), steps=problem.horizon, limits=limits,
                    initial_action=problem.guess[0])
        return lambda: ilqr.plan(start).actions

    return Ours(planner, problem.cost_of, iterations=300)


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
        run = peer.solve(peer.solvers[0], seed=100, ticks=ticks, temperature=temperature)
        tried[temperature] = _loop_cost(problem, run["actions"])
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
                     "times ours": float(np.median(times)) / own,
                     "closed-loop cost": float(np.mean([_loop_cost(problem, r["actions"]) for r in found]))})
    return {"rows": rows, "peers": [peer.about] if peer else [], "temperature": best, "ticks": ticks, "seeds": seeds,
            "tried": {str(k): v for k, v in tried.items()}}


def _own_loop(problem: Problem, seed: int, ticks: int, noise: float) -> dict[str, Any]:
    dynamics, cost = copy.deepcopy(problem.dynamics).float(), quadratic(problem)
    mppi = MPPI(dynamics, cost, MPPIOptions(samples=1024, std=noise, seed=seed), steps=problem.horizon,
                limits=Limits(action_lower=problem.limits[0], action_upper=problem.limits[1]), initial_action=problem.guess[0])
    x, plan, times, actions = problem.start, None, [], []
    for _ in range(ticks):
        begun = now()
        plan = mppi.plan(x.float(), warm=None if plan is None else shift(plan, 1))
        u = plan.actions[0].double()
        times.append(now() - begun)
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
        begun = now()
        cost = QuadraticCost(space=space, state=q, action=r, terminal=last, target=targets[t : t + problem.horizon + 1], trajectory=True)
        plan = ilqr.plan(x.float(), warm=None if plan is None else shift(plan, 1), cost=cost)
        u = plan.actions[0].double()
        times.append(now() - begun)
        actions.append(u.tolist())
        x = rollout(problem.dynamics, x, u.unsqueeze(0), backend="torch")[1]
    return {"times": times, "actions": actions}
