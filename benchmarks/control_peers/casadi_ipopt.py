"""CasADi on the problem at a path: IPOPT, its SQP method and fatrop, with the network as CasADi expressions and C code generated from them.

Direct multiple shooting: states and actions are variables, the dynamics constraints, the network a part of them. The step is one
expression, mapped over the horizon, so its derivatives are too; ``jit`` compiles all functions that a solver calls with gcc.
"""

from __future__ import annotations

import sys
import time

import casadi as ca
import numpy as np
from casadi_models import final_cost, gauss_newton, rollout, stage_cost, step_function
from problem import Clock, Lines, Problem, serve

JIT = {"jit": True, "compiler": "shell", "jit_options": {"compiler": "gcc", "flags": ["-O3", "-march=native", "-ffast-math"],
                                                                "linker_flags": ["-lmvec", "-lm"], "verbose": False}}
QUIET = {"print_time": False}
IPOPT = {"ipopt.print_level": 0, "ipopt.sb": "yes", "ipopt.max_iter": 300, "ipopt.tol": 1e-6, "ipopt.linear_solver": "mumps"}
SQP = {"print_header": False, "print_iteration": False, "print_status": False, "max_iter": 100, "tol_du": 1e-4, "tol_pr": 1e-6}
QP = {"error_on_fail": False, "print_time": False}


def variants(problem: Problem) -> dict[str, tuple[str, str, dict]]:
    """Return for each variant: form of the step, solver, options."""
    approximate = {"ipopt.hessian_approximation": "limited-memory"}
    return {
        "ipopt": ("SX", "ipopt", {**IPOPT, **QUIET}),
        "ipopt jit": ("SX", "ipopt", {**IPOPT, **QUIET, **JIT}),
        "ipopt jit mx": ("MX", "ipopt", {**IPOPT, **QUIET, **JIT}),
        "ipopt jit lbfgs": ("SX", "ipopt", {**IPOPT, **QUIET, **JIT, **approximate}),
        "sqp jit": ("SX", "sqpmethod", {**SQP, **QUIET, **JIT, "qpsol": "hpipm", "qpsol_options": QP}),
        "sqp gn": ("SX", "sqpmethod", {**SQP, **QUIET, **JIT, "qpsol": "hpipm", "qpsol_options": QP, "gauss_newton": True}),
        "sqp gn mx": ("MX", "sqpmethod", {**SQP, **QUIET, **JIT, "qpsol": "hpipm", "qpsol_options": QP, "gauss_newton": True}),
        "sqp gn osqp": ("SX", "sqpmethod", {**SQP, **QUIET, **JIT, "qpsol": "osqp", "qpsol_options": QP, "gauss_newton": True}),
        "sqp jit qrqp": ("SX", "sqpmethod", {**SQP, **QUIET, **JIT, "convexify_strategy": "regularize", "qpsol": "qrqp",
                                       "qpsol_options": {**QP, "print_iter": False, "print_header": False, "print_info": False}}),
        "fatrop jit": ("SX", "fatrop", {**QUIET, **JIT, "structure_detection": "auto", "fatrop.print_level": 0, "fatrop.tol": 1e-6, "fatrop.max_iter": 300}),
    }


class Shooting:
    """One solver of one problem.

    Args:
        problem: The problem.
        form: "SX" or "MX", what the network is written in.
        solver: Of ``nlpsol``.
        options: Its options.
    """

    def __init__(self, problem: Problem, form: str, solver: str, options: dict) -> None:
        self.problem, self.form, self.solver, self.options = problem, form, solver, options
        self.step = step_function(problem, getattr(ca, form))
        horizon, nx, nu = problem.horizon, problem.nx, problem.nu
        z, lower, upper, x, u = [], [], [], [], []
        for t in range(horizon + 1):  # in the order of time, as structured solvers want it
            x.append(ca.MX.sym(f"x{t}", nx))
            z.append(x[-1])
            lower.append(problem.start if t == 0 else np.full(nx, -np.inf))
            upper.append(problem.start if t == 0 else np.full(nx, np.inf))
            if t < horizon:
                u.append(ca.MX.sym(f"u{t}", nu))
                z.append(u[-1])
                lower.append(problem.limits[0])
                upper.append(problem.limits[1])
        xs, us, goal = ca.horzcat(*x[:-1]), ca.horzcat(*u), ca.DM(problem.goal.T)
        following = self.step.map(horizon)(xs, us)
        cost = ca.sum2(stage_cost(problem).map(horizon)(xs, us, goal[:, :-1])) + final_cost(problem)(x[-1], goal[:, -1])
        gaps = ca.vec(ca.horzcat(*x[1:]) - following)
        self.lower, self.upper = np.concatenate(lower), np.concatenate(upper)
        self.history = _History("history", len(self.lower), horizon * nx)
        settings = {**options}
        if solver in ("ipopt",):
            settings["iteration_callback"] = self.history
        if settings.pop("gauss_newton", False):
            settings["hess_lag"] = self.gauss_newton(ca.vertcat(*z), x, goal)
        if solver == "fatrop":
            settings["equality"] = [True] * (horizon * nx)
        begun = time.perf_counter()
        self.nlp = ca.nlpsol("solver", solver, {"x": ca.vertcat(*z), "f": cost, "g": gaps}, settings)
        self.building = time.perf_counter() - begun
        states = rollout(problem, self.step, problem.guess)
        self.first = np.concatenate([v for t in range(horizon) for v in (states[t], problem.guess[t])] + [states[-1]])

    def gauss_newton(self, z: ca.MX, x: list[ca.MX], goal: ca.DM) -> ca.Function:
        """Return the Hessian of the Lagrangian without the curvature of the dynamics."""
        problem = self.problem
        first, last = gauss_newton(problem)
        blocks = []
        for t, state in enumerate(x):
            blocks.append(last(state, goal[:, t]) if t == problem.horizon else first(state, goal[:, t]))
            if t < problem.horizon:
                blocks.append(ca.MX(ca.diag(ca.DM(2 * problem.action))))
        weight = ca.MX.sym("lam_f")
        return ca.Function("hess_lag", [z, ca.MX.sym("p", 0), weight, ca.MX.sym("lam_g", problem.horizon * problem.nx)],
                           [weight * ca.diagcat(*blocks)], ["x", "p", "lam_f", "lam_g"], ["triu_hess_gamma_x_x"])

    def __call__(self, request: dict) -> dict:
        """Solve from the guess."""
        clock = Clock()
        self.history.clock = clock
        found = self.nlp(x0=self.first, lbx=self.lower, ubx=self.upper, lbg=0, ubg=0)
        seconds = clock.seconds
        stats = self.nlp.stats()
        nx, nu = self.problem.nx, self.problem.nu
        z = np.asarray(found["x"]).reshape(-1)
        actions = np.stack([z[t * (nx + nu) + nx : (t + 1) * (nx + nu)] for t in range(self.problem.horizon)])
        return {"seconds": seconds, "history": clock.history, "actions": actions.tolist(), "iterations": int(stats.get("iter_count", -1)),
                "status": str(stats.get("return_status")), "claimed": float(found["f"]), "build_seconds": self.building}


class _History(ca.Callback):
    """Notes cost and largest gap of each iterate of IPOPT."""

    def __init__(self, name: str, n: int, m: int) -> None:
        super().__init__()
        self.clock = Clock()
        self.n, self.m = n, m
        self.construct(name, {})

    def get_n_in(self) -> int:
        return ca.nlpsol_n_out()

    def get_n_out(self) -> int:
        return 1

    def get_name_in(self, i: int) -> str:
        return ca.nlpsol_out(i)

    def get_sparsity_in(self, i: int) -> ca.Sparsity:
        name = ca.nlpsol_out(i)
        rows = {"f": 1, "x": self.n, "lam_x": self.n, "g": self.m, "lam_g": self.m}.get(name, 0)
        return ca.Sparsity.dense(rows) if rows else ca.Sparsity(0, 0)

    def eval(self, arguments: list) -> list:
        found = dict(zip(ca.nlpsol_out(), arguments, strict=True))
        if float(ca.norm_inf(found["g"])) < 1e-3:
            self.clock.note(float(found["f"]))
        return [0]


def main(path: str, names: list[str]) -> None:
    """Build the named variants, all where none is named, and serve them."""
    lines, problem = Lines(), Problem(path)
    chosen = {n: v for n, v in variants(problem).items() if n in names or not names}
    error = max(problem.error(step_function(problem, s)) for s in (ca.SX, ca.MX))
    serve(lines, {n: Shooting(problem, *v) for n, v in chosen.items()}, {"dynamics_error": error, "settings": {n: str(v) for n, v in chosen.items()}},
          ("casadi", "numpy"))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
