"""CasADi on the problem at a path: IPOPT, its SQP method and fatrop, with the network as CasADi expressions and C code generated from them.

Direct multiple shooting: states and actions are variables, the dynamics constraints, the network a part of them. The step is one
expression mapped over the horizon, so its derivatives are too. C code of all functions that a solver calls is generated, compiled by gcc
and kept in the folder given; compiling is not timed. The SQP method takes Gauss-Newton Hessians and OSQP: its exact Hessians, HPIPM and
qrqp took longer here, and so did IPOPT with L-BFGS.

Usage: casadi_ipopt.py PROBLEM FOLDER [VARIANT ...]
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import casadi as ca
import numpy as np
from casadi_models import final_cost, gauss_newton, rollout, stage_cost, step_function
from problem import Clock, Lines, Problem, now, serve

FLAGS = ["-O3", "-march=native", "-ffast-math", "-fPIC", "-shared"]
LIBRARIES = ["-lmvec", "-lm"]
IPOPT = {"ipopt.print_level": 0, "ipopt.sb": "yes", "ipopt.max_iter": 300, "ipopt.tol": 1e-6, "ipopt.linear_solver": "mumps"}
SQP = {"print_header": False, "print_iteration": False, "print_status": False, "max_iter": 100, "tol_du": 1e-4, "tol_pr": 1e-6}
OSQP = {"qpsol": "osqp", "qpsol_options": {"error_on_fail": False, "osqp.verbose": False}}
HPIPM = {"qpsol": "hpipm", "qpsol_options": {"error_on_fail": False}}
FATROP = {"structure_detection": "auto", "fatrop.print_level": 0, "fatrop.tol": 1e-6, "fatrop.max_iter": 300}
RTI = {**SQP, "max_iter": 1, "max_iter_ls": 0}
VARIANTS = {
    "ipopt": ("MX", "ipopt", IPOPT, False),
    "ipopt sx": ("SX", "ipopt", IPOPT, False),
    "ipopt c": ("SX", "ipopt", IPOPT, True),
    "ipopt mx c": ("MX", "ipopt", IPOPT, True),
    "sqp c": ("MX", "sqpmethod", {**SQP, **OSQP, "gauss_newton": True}, True),
    "sqp hpipm c": ("MX", "sqpmethod", {**SQP, **HPIPM, "gauss_newton": True}, True),
    "fatrop c": ("MX", "fatrop", FATROP, True),
    "rti c": ("MX", "sqpmethod", {**RTI, **OSQP, "gauss_newton": True}, True),
    "rti hpipm c": ("MX", "sqpmethod", {**RTI, **HPIPM, "gauss_newton": True}, True),
}
"""By name: form of the step, solver of ``nlpsol``, its options, and whether C code is compiled."""


class Shooting:
    """One solver of one problem; goals are a parameter.

    Args:
        problem: The problem.
        folder: Where compiled code is kept.
        form: "SX" or "MX", what the step is written in.
        solver: Of ``nlpsol``.
        options: Its options.
        compiled: Whether C code is generated and compiled.
    """

    def __init__(self, problem: Problem, folder: Path, form: str, solver: str, options: dict, compiled: bool) -> None:
        self.problem, self.step = problem, step_function(problem, getattr(ca, form))
        horizon, nx, nu = problem.horizon, problem.nx, problem.nu
        x = [ca.MX.sym(f"x{t}", nx) for t in range(horizon + 1)]
        u = [ca.MX.sym(f"u{t}", nu) for t in range(horizon)]
        z = ca.vertcat(*(v for t in range(horizon) for v in (x[t], u[t])), x[-1])  # in the order of time, as structured solvers want it
        flat = ca.MX.sym("goals", nx * (horizon + 1))
        goal = ca.reshape(flat, nx, horizon + 1)
        xs, us = ca.horzcat(*x[:-1]), ca.horzcat(*u)
        cost = ca.sum2(stage_cost(problem).map(horizon)(xs, us, goal[:, :-1])) + final_cost(problem)(x[-1], goal[:, -1])
        gaps = ca.vec(ca.horzcat(*x[1:]) - self.step.map(horizon)(xs, us))
        self.lower = np.concatenate([np.concatenate([np.full(nx, -np.inf), problem.limits[0]]) for _ in u] + [np.full(nx, -np.inf)])
        self.upper = np.concatenate([np.concatenate([np.full(nx, np.inf), problem.limits[1]]) for _ in u] + [np.full(nx, np.inf)])
        self.history = History("history", len(self.lower), horizon * nx)
        settings = {**options, "print_time": False, "calc_lam_p": False}
        if solver != "fatrop":
            settings["iteration_callback"] = self.history
        else:
            settings["equality"] = [True] * (horizon * nx)
        if settings.pop("gauss_newton", False):
            settings["hess_lag"] = self.hessian(x, u, flat)
        nlp = {"x": z, "f": cost, "g": gaps, "p": flat}
        begun = time.perf_counter()
        self.nlp = ca.nlpsol("solver", solver, nlp, settings)
        if compiled:
            code = str(library(self.nlp, folder))
            if solver == "sqpmethod":  # takes these two from its options alone
                settings |= {"hess_lag": ca.external("nlp_hess_l", code), "jac_fg": ca.external("nlp_jac_fg", code)}
            self.nlp = ca.nlpsol("solver", solver, code, settings)
        self.building = time.perf_counter() - begun
        self.first = self.packed(rollout(problem, self.step, problem.guess), problem.guess)

    def hessian(self, x: list[ca.MX], u: list[ca.MX], goals: ca.MX) -> ca.Function:
        """Return the Hessian of the Lagrangian without the curvature of the dynamics."""
        first, last = gauss_newton(self.problem)
        goal, blocks, z = ca.reshape(goals, self.problem.nx, -1), [], []
        for t, action in enumerate(u):
            blocks += [first(x[t], goal[:, t]), ca.MX(ca.diag(ca.DM(2 * self.problem.action)))]
            z += [x[t], action]
        blocks.append(last(x[-1], goal[:, -1]))
        weight, gaps = ca.MX.sym("lam_f"), ca.MX.sym("lam_g", self.problem.horizon * self.problem.nx)
        symbols = ca.MX.sym("x", sum(v.numel() for v in (*z, x[-1])))
        value = ca.Function("blocks", [ca.vertcat(*z, x[-1]), goals, weight], [weight * ca.diagcat(*blocks)])
        return ca.Function("nlp_hess_l", [symbols, goals, weight, gaps], [value(symbols, goals, weight)], ["x", "p", "lam_f", "lam_g"],
                           ["hess_gamma_x_x"])

    def packed(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Return states [H + 1, nx] and actions [H, nu] in the order of the variables."""
        return np.concatenate([np.concatenate([states[:-1], actions], 1).reshape(-1), states[-1]])

    def unpacked(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return states and actions."""
        nx, rows = self.problem.nx, z[: -self.problem.nx].reshape(self.problem.horizon, -1)
        return np.concatenate([rows[:, :nx], z[None, -nx:]]), rows[:, nx:]

    def solved(self, start: np.ndarray, first: np.ndarray, goal: np.ndarray, **duals: ca.DM) -> dict:
        """Return what the solver found."""
        nx = len(start)
        self.lower[:nx] = self.upper[:nx] = start
        return self.nlp(x0=first, lbx=self.lower, ubx=self.upper, lbg=0, ubg=0, p=goal.reshape(-1), **duals)

    def __call__(self, request: dict) -> dict:
        """Solve from the guess, or control for some ticks where the request has goals."""
        if "goals" in request:
            return self.control(np.array(request["goals"]))
        clock = self.history.clock = Clock()
        found = self.solved(self.problem.start, self.first, self.problem.goal)
        seconds, stats = clock.seconds, self.nlp.stats()
        _, actions = self.unpacked(np.asarray(found["x"]).reshape(-1))
        return {"seconds": seconds, "history": clock.history, "actions": actions.tolist(), "iterations": int(stats.get("iter_count", -1)),
                "status": str(stats.get("return_status")), "claimed": float(found["f"]), "build_seconds": self.building}

    def control(self, goals: np.ndarray) -> dict:
        """Run a closed loop with one solve for each row of goals that has a horizon after it, each from the last one's shifted solution."""
        problem, x = self.problem, self.problem.start
        horizon, times, actions, z, duals = problem.horizon, [], [], self.first, {}
        for t in range(len(goals) - horizon):
            begun = now()
            found = self.solved(x, z, goals[t : t + horizon + 1], **duals)
            z = np.asarray(found["x"]).reshape(-1)
            states, us = self.unpacked(z)
            u = np.clip(us[0], *problem.limits)
            states = np.concatenate([states[1:], states[-1:]])
            z = self.packed(states, np.concatenate([us[1:], us[-1:]]))
            duals = {"lam_x0": found["lam_x"], "lam_g0": found["lam_g"]}
            times.append(now() - begun)
            actions.append(u.tolist())
            x = np.asarray(self.step(x, u)).reshape(-1)
        return {"times": times, "actions": actions, "build_seconds": self.building}


def library(solver: ca.Function, folder: Path) -> Path:
    """Return the shared library of the functions that a solver calls, compiled unless the same code was before."""
    with tempfile.TemporaryDirectory() as temporary:
        before = Path.cwd()
        os.chdir(temporary)  # it takes no path
        generator = ca.CodeGenerator("functions.c")
        generator.add(solver.oracle())
        for name in solver.get_function():
            generator.add(solver.get_function(name))
        generator.generate()
        os.chdir(before)
        source = Path(temporary) / "functions.c"
        key = hashlib.sha256(source.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:20]
        found = folder / f"{key}.so"
        if not found.exists():
            folder.mkdir(parents=True, exist_ok=True)
            written = found.with_suffix(f".{os.getpid()}")
            subprocess.run(["gcc", *FLAGS, str(source), "-o", str(written), *LIBRARIES], check=True)
            written.rename(found)
        return found


class History(ca.Callback):
    """Notes the cost of each iterate whose gaps are closed to 1e-3."""

    def __init__(self, name: str, n: int, m: int) -> None:
        super().__init__()
        self.clock = Clock()
        self.n, self.m = n, m
        self.construct(name, {})

    def get_n_in(self) -> int:
        """Return the number of inputs."""
        return ca.nlpsol_n_out()

    def get_n_out(self) -> int:
        """Return the number of outputs."""
        return 1

    def get_name_in(self, i: int) -> str:
        """Return the name of an input."""
        return ca.nlpsol_out(i)

    def get_sparsity_in(self, i: int) -> ca.Sparsity:
        """Return the shape of an input."""
        rows = {"f": 1, "x": self.n, "lam_x": self.n, "g": self.m, "lam_g": self.m}.get(ca.nlpsol_out(i), 0)
        return ca.Sparsity.dense(rows) if rows else ca.Sparsity(0, 0)

    def eval(self, arguments: list) -> list:
        """Note."""
        found = dict(zip(ca.nlpsol_out(), arguments, strict=True))
        if float(ca.norm_inf(found["g"])) < 1e-3:
            self.clock.note(float(found["f"]))
        return [0]


def main(path: str, folder: str, names: list[str]) -> None:
    """Build the named variants, all where none is named, and serve them; each solves once first."""
    lines, problem = Lines(), Problem(path)
    chosen = {n: v for n, v in VARIANTS.items() if n in names or not names}
    error = max(problem.error(step_function(problem, s)) for s in (ca.SX, ca.MX))
    solvers = {n: Shooting(problem, Path(folder), *v) for n, v in chosen.items()}
    for solver in solvers.values():
        solver({})
    serve(lines, solvers, {"dynamics_error": error, "settings": {n: str((*v, FLAGS)) for n, v in chosen.items()}}, ("casadi", "numpy"))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
