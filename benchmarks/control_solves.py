"""Solves to the same cost: rounds in which ours and the peers take turns, and what is made of their times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from control_process import Peer, now
from torch import Tensor

SAME = 1.01
"""A cost counts as that of the best solver up to this factor."""
EQUAL = 1.0001
"""And as that of one other solver up to this one."""


class Solver(NamedTuple):
    """A peer's solver."""

    name: str
    solve: Callable[[], dict[str, Any]]


class Ours:
    """Our planner, cut after any number of iterations.

    Args:
        planner: ``planner(iterations)`` returns a function that plans from the start and returns the actions.
        judge: Cost of actions.
        iterations: More than it needs.
    """

    def __init__(self, planner: Callable[[int], Callable[[], Tensor]], judge: Callable[[Tensor], float], *, iterations: int) -> None:
        self.planner, self.full = planner, planner(iterations)
        self.cost, self.costs = judge(self.full()), list[float]()
        while not self.costs or self.costs[-1] > self.cost * (1 + 1e-6):
            self.costs.append(judge(planner(len(self.costs) + 1)()))
            if len(self.costs) >= iterations:
                break

    def reported(self) -> dict[str, Any]:
        """Return a whole solve as a peer reports it."""
        begun = now()
        actions = self.full()
        return {"seconds": now() - begun, "history": [], "actions": actions.tolist(), "iterations": len(self.costs)}

    def cut(self, cost: float) -> Callable[[], Tensor] | None:
        """Return the shortest solve that reaches a cost; None where none does."""
        enough = [k for k, c in enumerate(self.costs, 1) if c <= cost]
        return self.planner(enough[0]) if enough else None


def solved(ours: Ours, judge: Callable[[Tensor], float], peers: Sequence[Peer | None], quick: bool,
           own: Mapping[str, Ours] | None = None) -> dict[str, Any]:
    """Compare with every solver of the peers, and with others of ours; end the peers."""
    running = [p for p in peers if p is not None]
    solvers = [Solver(f"{_name(p)} {n}".strip(), lambda p=p, n=n: p.solve(n)) for p in running for n in p.solvers]  # type: ignore[misc]
    solvers = [Solver(n, o.reported) for n, o in (own or {}).items()] + solvers
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


def compared(ours: Ours, solvers: Sequence[Solver], judge: Callable[[Tensor], float], *, rounds: int,
             seconds: float) -> list[dict[str, Any]]:
    """Return a row for each solver, ours first.

    Args:
        ours: Ours.
        solvers: The peers'.
        judge: Cost of actions.
        rounds: Repeats of each at most.
        seconds: Of each, after which it is not repeated any more.
    """
    runs = {s.name: [s.solve()] for s in solvers}
    ends = {n: judge(torch.tensor(r[0]["actions"], dtype=torch.float64)) for n, r in runs.items()}
    target = SAME * min([ours.cost, *ends.values()])
    own = {"full": ours.full, "target": ours.cut(target), **{n: ours.cut(c * EQUAL) for n, c in ends.items()}}
    times: dict[str, list[float]] = {n: [] for n in own}
    for _ in range(rounds):
        for name, solve in own.items():
            if solve is not None:
                times[name] += [_timed(solve) for _ in range(3)]
        for s in solvers:
            if sum(r["seconds"] for r in runs[s.name]) < seconds:
                runs[s.name].append(s.solve())
    ms = {n: 1e3 * float(np.median(t)) if t else None for n, t in times.items()}
    rows: list[dict[str, Any]] = [{"solver": "ours", "cost": ours.cost, "iterations": len(ours.costs), "solve [ms]": ms["full"],
                                   "to 1.01 [ms]": ms["target"], "times ours": 1.0 if ms["target"] else None,
                                   "ours to its cost [ms]": ms["full"], "solve, times that": 1.0, "repeats": len(times["full"])}]
    for s in solvers:
        found = runs[s.name][1:] or runs[s.name]  # the first may have warmed up
        whole = 1e3 * float(np.median([r["seconds"] for r in found]))
        reached = [_reached(r, target, ends[s.name]) for r in found]
        until = 1e3 * float(np.median([t for t in reached if t is not None])) if None not in reached else None
        goal, its = ms["target"], ms[s.name]
        rows.append({"solver": s.name, "cost": ends[s.name], "iterations": found[-1]["iterations"], "solve [ms]": whole,
                     "to 1.01 [ms]": until, "times ours": until / goal if until and goal else None, "ours to its cost [ms]": its,
                     "solve, times that": whole / its if its else None, "repeats": len(found)})
    return rows


def _reached(run: dict[str, Any], target: float, end: float) -> float | None:
    for seconds, cost in run["history"]:
        if cost <= target:
            return float(seconds)
    return float(run["seconds"]) if end <= target else None


def _timed(solve: Callable[[], object]) -> float:
    begun = now()
    solve()
    return now() - begun
