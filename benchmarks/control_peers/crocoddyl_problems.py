"""Crocoddyl's own examples, as its wheel ships them: the arm (``examples/arm_manipulation_fwddyn``) and the cart-pole (notebook 02).

Usage: crocoddyl_problems.py arm MODEL.json | cart-pole y angle speed rate w1 ... w6; then one solve for each line. Both are unlimited and
solved by SolverFDDP, as the examples start it, every state the first one, and from a rollout: of the cart-pole without force, of the arm
under the torques that hold it. The arm is C++ throughout; the same rigid bodies are written to MODEL.json. The cart-pole's action
model is Python here as in the notebook; ``crocoddyl_cart_pole.cpp`` is the same in C++.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import crocoddyl
import example_robot_data
import numpy as np
import pinocchio
from problem import Clock, Lines, serve

GOAL = (0.6, 0.2, 0.5)
STEPS = 100


class History(crocoddyl.CallbackAbstract):
    """Notes the cost of each iterate without gaps."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()

    def __call__(self, solver: crocoddyl.SolverAbstract) -> None:
        """Note."""
        if solver.isFeasible:
            self.clock.note(solver.cost)


def solve_with(problem: crocoddyl.ShootingProblem, request: dict) -> dict:
    """Solve as the examples do: from the start, everywhere."""
    solver, history = crocoddyl.SolverFDDP(problem), History()
    solver.setCallbacks([history])
    history.clock = Clock()
    if "rolled out" in request["solver"]:
        still = [np.zeros(1)] * problem.T
        solver.solve(list(problem.rollout(still)), still, 500, True)
    elif "held" in request["solver"]:
        xs = [problem.x0] * (problem.T + 1)
        us = list(problem.quasiStatic(xs[:-1]))
        solver.solve(list(problem.rollout(us)), us, 500, True)
    else:
        solver.solve()
    return {"seconds": history.clock.seconds, "history": history.clock.history, "actions": [u.tolist() for u in solver.us],
            "claimed": solver.cost, "iterations": solver.iter, "states": [x.tolist() for x in solver.xs]}


def arm() -> tuple[crocoddyl.ShootingProblem, dict]:
    """Return the example's problem, and its rigid bodies for ``control_arm.py``."""
    robot = example_robot_data.load("kinova")  # owns the model
    model = robot.model
    state = crocoddyl.StateMultibody(model)
    nu, frame = state.nv, model.getFrameId("j2s6s200_end_effector")
    start = np.concatenate([model.referenceConfigurations["arm_up"], np.zeros(model.nv)])
    running, terminal = crocoddyl.CostModelSum(state), crocoddyl.CostModelSum(state)
    goal = pinocchio.SE3(np.eye(3), np.array(GOAL))
    reach = crocoddyl.CostModelResidual(state, crocoddyl.ResidualModelFramePlacement(state, frame, goal, nu))
    running.addCost("gripperPose", reach, 1)
    running.addCost("xReg", crocoddyl.CostModelResidual(state, crocoddyl.ResidualModelState(state, start, nu)), 1e-1)
    running.addCost("uReg", crocoddyl.CostModelResidual(state, crocoddyl.ResidualModelControl(state, nu)), 1e-1)
    terminal.addCost("gripperPose", reach, 1e3)
    actuation = crocoddyl.ActuationModelFull(state)
    models = [crocoddyl.IntegratedActionModelEuler(crocoddyl.DifferentialActionModelFreeFwdDynamics(state, actuation, c), dt)
              for c, dt in ((running, 1e-2), (terminal, 0.0))]
    problem = crocoddyl.ShootingProblem(start, [models[0]] * STEPS, models[1])
    problem.nthreads = 1
    bodies = [{"name": model.names[j], "place": pose(model.jointPlacements[j]), "mass": model.inertias[j].mass,
               "centre": model.inertias[j].lever.tolist(), "inertia": model.inertias[j].inertia.tolist(),
               "endless": model.nqs[j] == 2} for j in range(1, model.njoints)]
    tool = model.frames[frame]
    assert all(model.parents[j] == j - 1 and model.joints[j].shortname().endswith("Z") for j in range(1, model.njoints))
    assert tool.parentJoint == model.njoints - 1
    rng = np.random.default_rng(0)
    actions = rng.uniform(-0.2, 0.2, (STEPS, nu)) * [1, 1, 1, 0.1, 0.1, 0.01]
    xs = problem.rollout(list(actions))
    cost = problem.calc(xs, list(actions))
    states = np.stack([angles(model, x) for x in xs])
    states[:, : model.nv] = np.unwrap(states[:, : model.nv], axis=0)
    about = {"bodies": bodies, "frame": pose(tool.placement), "gravity": model.gravity.linear.tolist(),
             "start": angles(model, start).tolist(), "goal": list(GOAL), "check_actions": actions.tolist(),
             "check_states": states.tolist(), "check_cost": cost}
    return problem, about


def angles(model: pinocchio.Model, x: np.ndarray) -> np.ndarray:
    """Return a state with an angle for each joint in place of cosine and sine."""
    q = []
    for j in range(1, model.njoints):
        i = model.idx_qs[j]
        q.append(np.arctan2(x[i + 1], x[i]) if model.nqs[j] == 2 else x[i])
    return np.concatenate([q, x[model.nq :]])


def pose(place: pinocchio.SE3) -> dict:
    """Return rotation and translation."""
    return {"rotation": place.rotation.tolist(), "translation": place.translation.tolist()}


class CartPole(crocoddyl.ActionModelAbstract):
    """The notebook's action model: semi-implicit Euler, residuals [sin, 1 - cos, y, dy, dangle, f]."""

    def __init__(self, weights: np.ndarray) -> None:
        super().__init__(crocoddyl.StateVector(4), 1, 6)
        self.w, self.dt, self.cart, self.pole, self.length, self.gravity = weights, 5e-2, 1.0, 0.1, 0.5, 9.81

    def calc(self, data: crocoddyl.ActionDataAbstract, x: np.ndarray, u: np.ndarray | None = None) -> None:
        """Step and cost."""
        f = 0.0 if u is None else u[0]
        y, angle, speed, rate = x
        s, c = np.sin(angle), np.cos(angle)
        if u is None:
            data.xnext[:] = x
        else:
            _, a, b = self.accelerations(s, c, rate, f)
            v, n = speed + self.dt * a, rate + self.dt * b
            data.xnext[:] = np.array([y + self.dt * v, angle + self.dt * n, v, n])
        data.r[:] = self.w * np.array([s, 1 - c, y, speed, rate, f])
        data.cost = 0.5 * float(data.r @ data.r)

    def calcDiff(self, data: crocoddyl.ActionDataAbstract, x: np.ndarray, u: np.ndarray | None = None) -> None:  # noqa: N802
        """Derivatives."""
        f = 0.0 if u is None else u[0]
        y, angle, speed, rate = x
        s, c, q = np.sin(angle), np.cos(angle), self.w**2
        if u is None:
            data.Fx[:] = np.eye(4)
        else:
            mu, a, b = self.accelerations(s, c, rate, f)
            pole, length, gravity, dt = self.pole, self.length, self.gravity, self.dt
            turn, twice = 2 * pole * s * c, c * c - s * s
            a1 = (pole * gravity * twice - pole * length * c * rate * rate - turn * a) / mu
            a3, au = -2 * pole * length * s * rate / mu, 1 / mu
            b1 = (-f / length * s + (self.cart + pole) * gravity / length * c - pole * twice * rate * rate - turn * b) / mu
            b3, bu = -2 * pole * c * s * rate / mu, c / (length * mu)
            low = np.array([[0, dt * a1, 1, dt * a3], [0, dt * b1, 0, 1 + dt * b3]])
            data.Fx[:, :] = np.concatenate([np.eye(4)[:2] + dt * low, low])
            data.Fu[:] = np.array([dt * dt * au, dt * dt * bu, dt * au, dt * bu])
            data.Lu[0], data.Luu[:] = q[5] * f, q[5]
        data.Lx[:] = np.array([q[2] * y, q[0] * s * c + q[1] * (1 - c) * s, q[3] * speed, q[4] * rate])
        for k, value in enumerate((q[2], q[0] * (c * c - s * s) + q[1] * ((1 - c) * c + s * s), q[3], q[4])):
            data.Lxx[k, k] = value

    def accelerations(self, s: float, c: float, rate: float, f: float) -> tuple[float, float, float]:
        """Return effective mass, acceleration of the cart and of the angle."""
        mu = self.cart + self.pole * s * s
        a = (f + self.pole * self.gravity * c * s - self.pole * self.length * s * rate * rate) / mu
        b = (f * c + (self.cart + self.pole) * self.gravity * s) / self.length - self.pole * c * s * rate * rate
        return mu, a, b / mu


def cart_pole(numbers: list[float]) -> crocoddyl.ShootingProblem:
    """Return the notebook's problem from a start, with terminal weights."""
    running = np.array([1.0, 1.0, 0.1, 0.001, 0.001, 1.0])
    return crocoddyl.ShootingProblem(np.array(numbers[:4]), [CartPole(running)] * 50, CartPole(np.array(numbers[4:])))


def main(name: str, arguments: list[str]) -> None:
    """Serve one problem."""
    lines, packages = Lines(), ("crocoddyl", "pin", "example-robot-data", "numpy")
    if name == "arm":
        problem, about = arm()
        Path(arguments[0]).write_text(json.dumps(about))
        names = {"fddp": "SolverFDDP, as its example", "fddp, held": "the same from a rollout of the torques that hold the arm"}
        serve(lines, dict.fromkeys(names, lambda request: solve_with(problem, request)), {"settings": names}, packages)
    else:
        problem = cart_pole([float(a) for a in arguments])
        names = {"python": "SolverFDDP, as its notebook", "python, rolled out": "the same from a rollout without force"}
        serve(lines, dict.fromkeys(names, lambda request: solve_with(problem, request)), {"settings": names}, packages)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
