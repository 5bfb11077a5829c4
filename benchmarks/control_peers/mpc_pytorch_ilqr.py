"""mpc.pytorch (``mpc`` on PyPI) on the cart-pole at a path: its box-constrained iLQR, with autograd and with a Jacobian written out.

Its horizon counts states, so it is given H + 1; the last action costs and does nothing. ``QuadCost`` leaves out the constant of the cost,
which is added to the history. Tried and slower or worse: a finer or coarser line search, trust regions ``delta_u`` of 1 and 3 N, no line
search, dynamics traced by TorchScript.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import torch
from mpc import mpc
from problem import Clock, Lines, Problem, serve
from torch_cart_pole import CartPole, errors

VARIANTS = {
    "autograd": {"grad_method": mpc.GradMethods.AUTO_DIFF, "lqr_iter": 20},
    "jacobian": {"grad_method": mpc.GradMethods.ANALYTIC, "lqr_iter": 20},
    "tuned": {"grad_method": mpc.GradMethods.ANALYTIC, "lqr_iter": 100, "linesearch_decay": 0.7, "max_linesearch_iter": 15,
              "not_improved_lim": 20},
}
"""As its examples use it; with a Jacobian; and as it reaches the optimum soonest."""


class Noted(mpc.MPC):
    """The solver; notes time and cost after each of its iterations."""

    clock: Clock
    constant = 0.0

    def solve_lqr_subproblem(self, *arguments: object, no_op_forward: bool = False) -> tuple:
        """Solve, and note."""
        found = super().solve_lqr_subproblem(*arguments, no_op_forward=no_op_forward)
        if not no_op_forward:
            self.clock.note(float(found[3][0]) + self.constant)
        return found


def solver(problem: Problem, dtype: torch.dtype, settings: dict) -> Callable[[dict], dict]:
    """Return a solve from the guess."""
    horizon, nx, nu, dynamics = problem.horizon, problem.nx, problem.nu, CartPole(problem, dtype)

    def tensor(a: object) -> torch.Tensor:
        return torch.tensor(np.asarray(a), dtype=dtype)

    weight = tensor(np.concatenate([problem.state, problem.action])).repeat(horizon + 1, 1, 1)
    weight[-1, 0, :nx] = tensor(problem.terminal)
    goal = tensor(np.concatenate([problem.goal, np.zeros((horizon + 1, nu))], 1)).unsqueeze(1)
    cost = mpc.QuadCost(torch.diag_embed(2 * weight), -2 * weight * goal)
    constant = float((weight.double() * goal.double().square()).sum())
    guess = torch.cat([tensor(problem.guess), tensor(np.zeros((1, nu)))]).unsqueeze(1)
    lower, upper = (tensor(x).repeat(horizon + 1, 1, 1) for x in problem.limits)
    start = tensor(problem.start).unsqueeze(0)

    def solve(request: dict) -> dict:
        ilqr = Noted(nx, nu, horizon + 1, u_lower=lower, u_upper=upper, u_init=guess, verbose=-1, n_batch=1, exit_unconverged=False,
                     detach_unconverged=False, backprop=False, **settings)
        ilqr.constant, ilqr.clock = constant, Clock()
        with torch.set_grad_enabled(settings["grad_method"] is mpc.GradMethods.AUTO_DIFF):
            _, actions, costs = ilqr(start, cost, dynamics)
        return {"seconds": ilqr.clock.seconds, "history": ilqr.clock.history, "actions": actions[:-1, 0].detach().tolist(),
                "iterations": len(ilqr.clock.history), "status": "", "claimed": float(costs[0]) + constant}

    return solve


def main(path: str, names: list[str]) -> None:
    """Serve the named variants, all where none is named; single precision, its default, for the first two."""
    lines, problem = Lines(), Problem(path)
    torch.set_num_threads(1)
    chosen = {n: v for n, v in VARIANTS.items() if n in names or not names}
    precision = {n: torch.float64 if n == "tuned" else torch.float32 for n in chosen}
    solvers = {n: solver(problem, precision[n], v) for n, v in chosen.items()}
    settings = {n: {**{k: str(x) for k, x in v.items()}, "dtype": str(precision[n])} for n, v in chosen.items()}
    serve(lines, solvers, {**errors(problem), "settings": settings}, ("mpc", "torch", "numpy"))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
