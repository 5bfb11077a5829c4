"""The models of the problems as CasADi expressions, networks included, and the optimal control problem of each."""

from __future__ import annotations

import casadi as ca
import numpy as np
from problem import Problem

ROTORS = ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1))


def step_function(problem: Problem, symbol: type = ca.SX) -> ca.Function:
    """Return ``step(x, u)`` over one time step, as scalar (SX) or matrix (MX) expressions."""
    x, u = symbol.sym("x", problem.nx), symbol.sym("u", problem.nu)
    inputs, step = (ca.vertcat(x, u), cart_pole) if problem.name == "cartpole" else (ca.vertcat(x[7:10], x[3:7], x[10:], u), quadrotor)
    return ca.Function("step", [x, u], [step(problem, x, u, network(problem, inputs))], ["x", "u"], ["next"])


def network(problem: Problem, h: ca.SX | ca.MX) -> ca.SX | ca.MX:
    """Return ``bound tanh(net(h))``."""
    for w, b in zip(problem.weights, problem.biases, strict=True):
        h = ca.tanh(ca.DM(w.T) @ h + ca.DM(b))
    return problem.bound * h


def cart_pole(problem: Problem, x: ca.SX, u: ca.SX, force: ca.SX) -> ca.SX:
    """Return the next state by semi-implicit Euler."""
    p, h = problem.parameters, problem.dt
    s, c, w = ca.sin(x[1]), ca.cos(x[1]), x[3]
    moment = p["pole_mass"] * p["length"]
    b1, b2 = u[0] + force[0] + moment * w * w * s, force[1] - moment * p["gravity"] * s
    m11, m12, m22 = p["cart_mass"] + p["pole_mass"], moment * c, p["pole_inertia"] + moment * p["length"]
    det = m11 * m22 - m12 * m12
    v = x[2:] + h * ca.vertcat((m22 * b1 - m12 * b2) / det, (m11 * b2 - m12 * b1) / det)
    return ca.vertcat(x[:2] + h * v, v)


def quadrotor(problem: Problem, x: ca.SX, u: ca.SX, force: ca.SX) -> ca.SX:
    """Return the next state by Runge-Kutta of fourth order with force and thrusts held."""
    p, h = problem.parameters, problem.dt
    rotors = np.array(ROTORS, float)
    torque = ca.vertcat(p["arm"] * ca.dot(ca.DM(rotors[:, 1]), u), -p["arm"] * ca.dot(ca.DM(rotors[:, 0]), u),
                        -p["drag_torque"] * ca.dot(ca.DM(rotors[:, 2]), u)) + force[3:]
    inertia = ca.DM([p["inertia_x"], p["inertia_y"], p["inertia_z"]])
    lift = ca.sum1(u) / p["mass"]

    def rate(s: ca.SX) -> ca.SX:
        a, b, c, d, k, m, n = s[3], s[4], s[5], s[6], s[10], s[11], s[12]
        w = s[10:]
        turn = 0.5 * ca.vertcat(-b * k - c * m - d * n, a * k + c * n - d * m, a * m + d * k - b * n, a * n + b * m - c * k)
        up = ca.vertcat(2 * (b * d + a * c), 2 * (c * d - a * b), a * a - b * b - c * c + d * d)
        return ca.vertcat(s[7:10], turn, up * lift - ca.DM([0, 0, p["gravity"]]) + force[:3] / p["mass"],
                          (torque - ca.cross(w, inertia * w)) / inertia)

    k1 = rate(x)
    k2 = rate(x + 0.5 * h * k1)
    k3 = rate(x + 0.5 * h * k2)
    k4 = rate(x + h * k3)
    y = x + h / 6 * (k1 + 2 * (k2 + k3) + k4)
    return ca.vertcat(y[:3], y[3:7] / ca.norm_2(y[3:7]), y[7:])


def difference(problem: Problem, x: ca.SX, goal: ca.SX) -> ca.SX:
    """Return ``x ⊖ goal`` on the tangent space."""
    if problem.name == "cartpole":
        return x - goal
    e = x[3:7]
    scalar = goal[3] * e[0] + goal[4] * e[1] + goal[5] * e[2] + goal[6] * e[3]
    vector = goal[3] * e[1:] - e[0] * goal[4:7] - ca.cross(goal[4:7], e[1:])
    size = ca.sqrt(ca.sumsqr(vector) + 1e-16)
    turn = 2 * ca.atan2(size, scalar) / size * vector
    return ca.vertcat(x[:3] - goal[:3], turn, x[7:] - goal[7:])


def stage_cost(problem: Problem) -> ca.Function:
    """Return ``cost(x, u, goal)`` of one step."""
    x, u, g = ca.SX.sym("x", problem.nx), ca.SX.sym("u", problem.nu), ca.SX.sym("g", problem.nx)
    d = difference(problem, x, g)
    return ca.Function("cost", [x, u, g], [ca.dot(ca.DM(problem.state), d * d) + ca.dot(ca.DM(problem.action), u * u)])


def final_cost(problem: Problem) -> ca.Function:
    """Return ``cost(x, goal)`` of the last state."""
    x, g = ca.SX.sym("x", problem.nx), ca.SX.sym("g", problem.nx)
    d = difference(problem, x, g)
    return ca.Function("final", [x, g], [ca.dot(ca.DM(problem.terminal), d * d)])


def gauss_newton(problem: Problem) -> tuple[ca.Function, ca.Function]:
    """Return ``h(x, goal)``, the Gauss-Newton Hessians of a step's and of the last state's cost by the state."""
    x, g = ca.SX.sym("x", problem.nx), ca.SX.sym("g", problem.nx)
    slope = ca.jacobian(difference(problem, x, g), x)
    first, last = (2 * slope.T @ ca.diag(ca.DM(w)) @ slope for w in (problem.state, problem.terminal))
    return ca.Function("first", [x, g], [first]), ca.Function("last", [x, g], [last])


def rollout(problem: Problem, step: ca.Function, actions: np.ndarray) -> np.ndarray:
    """Return the states [H + 1, nx] of actions [H, nu]."""
    x = [problem.start]
    for u in actions:
        x.append(np.asarray(step(x[-1], u)).reshape(-1))
    return np.stack(x)


def cost_of(problem: Problem, step: ca.Function, actions: np.ndarray) -> float:
    """Return the cost of actions, clipped to the limits, by single shooting."""
    u = np.clip(actions, *problem.limits)
    x, stage, final = rollout(problem, step, u), stage_cost(problem), final_cost(problem)
    goal = problem.goal
    return float(sum(float(stage(x[t], u[t], goal[t])) for t in range(len(u))) + float(final(x[-1], goal[-1])))
