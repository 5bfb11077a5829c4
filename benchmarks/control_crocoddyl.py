"""The cases of ``control.py`` without a network: crocoddyl's own examples."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from control_process import opened
from control_solves import Ours, solved
from scipy.linalg import solve_discrete_are
from serial_arm import Chain, ReachCost, SerialArm
from torch import Tensor

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.function_cost import FunctionCost
from residual_mbrl.physics.cartpole import CartPole
from residual_mbrl.planners import ILQR, ILQROptions, Plan
from residual_mbrl.rollouts import linearise, rollout

Result = dict[str, Any]


def crocoddyl_case(folder: Path, quick: bool, start: Sequence[float], terminal: Sequence[float], *, near: bool) -> Result:
    """ILQR on crocoddyl's cart-pole: residuals w [sin, 1 - cos, y, dy, dangle, f] from its upright angle, 50 steps of 0.05 s.

    From a rollout without force the pole falls, and solvers stay in the optimum where it hangs; where the start is near the upright, ours
    begins with a linear regulator, as crocoddyl's own start does.
    """
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

    def planner(iterations: int, warm: Plan | None = None) -> Callable[[], Tensor]:
        ilqr = ILQR(dynamics, single, ILQROptions(iterations=iterations), steps=steps, initial_action=0.0)
        state = first.float()
        return lambda: ilqr.plan(state, warm).actions

    arguments = [*start, *terminal]
    peers = [opened(folder, "", "crocoddyl_cart_pole", arguments),
             opened(folder, "crocoddyl", "crocoddyl_problems.py", ["cart-pole", *arguments])]
    rest = Ours(planner, judge, iterations=500)
    if not near:
        return solved(rest, judge, peers, quick)
    warm = upright_feedback(dynamics, weights[0], steps)
    return solved(Ours(lambda k: planner(k, warm), judge, iterations=500), judge, peers, quick, own={"ours, rolled out": rest})


def upright_feedback(dynamics: ResidualDynamics, weights: Tensor, steps: int) -> Plan:
    """Return a start near the upright, as crocoddyl's first iteration makes one: the linear regulator about it."""
    up, still = torch.tensor([0.0, np.pi, 0.0, 0.0], dtype=torch.float64), torch.zeros(steps, 1, dtype=torch.float64)
    states = up.expand(steps + 1, 4)
    with torch.no_grad():
        A, B = (m[0].numpy() for m in linearise(dynamics, states, still))
    Q, R = np.diag(2 * weights[[2, 0, 3, 4]].numpy()), 2 * weights[5:].numpy()[None]  # of sin² the slope, of (1 - cos)² none
    P = solve_discrete_are(A, B, Q, R)
    gain = -np.linalg.solve(R + B.T @ P @ B, B.T @ P @ A)
    return Plan(actions=still.float(), states=states.float(), cost=torch.zeros(()), status=torch.zeros((), dtype=torch.int64), iterations=0,
                seconds=0.0, dt=dynamics.dt, gains=torch.tensor(gain, dtype=torch.float32).expand(steps, 1, 4))


def arm_case(folder: Path, quick: bool) -> Result:
    """ILQR on crocoddyl's arm (Kinova, six hinges): 100 steps of 0.01 s, from the torques that hold it.

    The bodies come from crocoddyl's process, and its rollout is repeated to 1e-6 before anything is timed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "arm.json"
        peer = opened(folder, "crocoddyl", "crocoddyl_problems.py", ["arm", path])
        if peer is None:
            return {"rows": [], "peers": []}
        saved = json.loads(path.read_text())
    arm = SerialArm(Chain(saved["bodies"], saved["frame"], saved["gravity"]), dt=0.01)
    dynamics, start = ResidualDynamics(arm), torch.tensor(saved["start"], dtype=torch.float64)
    exact, single = (ReachCost(arm, x, saved["goal"]) for x in (start, start.float()))
    hold = torch.tensor([float(t) for t in arm.chain.bias(torch, start[: arm.chain.n], start[arm.chain.n :])], dtype=torch.float64)
    states = rollout(dynamics, start, torch.tensor(saved["check_actions"], dtype=torch.float64))
    error = float((states - torch.tensor(saved["check_states"], dtype=torch.float64)).abs().max())
    assert error < 1e-6, f"the rollout differs from crocoddyl's by {error:.1e}"

    def judge(actions: Tensor) -> float:
        return float(exact.total(rollout(dynamics, start, actions.double()), actions.double()))

    def planner(iterations: int) -> Callable[[], Tensor]:
        ilqr = ILQR(dynamics, single, ILQROptions(iterations=iterations, backend="fused"), steps=100, initial_action=hold)
        state = start.float()
        return lambda: ilqr.plan(state).actions

    return {**solved(Ours(planner, judge, iterations=300), judge, [peer], quick), "dynamics_error": error}
