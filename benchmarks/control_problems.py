"""The problems of ``control.py``: models, costs, limits and starts, and the files in which other solvers read them.

The networks are fitted here, in seconds, to what a rigid-body model leaves out: rail friction, drag of the pole and a motor that weakens
with speed; air drag that turns with the body. Every solver receives the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from quadrotor_body import QuadrotorBody
from torch import Tensor

from residual_mbrl.costs import QuadraticCost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.physics.cartpole import CartPole
from residual_mbrl.residuals import Feature, Unstructured
from residual_mbrl.rollouts import rollout

UP = float(np.pi)
Truth = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """``min Σ_t q·(x_t ⊖ g_t)² + r·u_t² + q_H·(x_H ⊖ g_H)²`` within limits of the actions, H steps from ``start``.

    Args:
        name: Name of its model to the other solvers: "cartpole" or "quadrotor".
        dynamics: The model, float64.
        start: First state, shape [nx].
        guess: Actions that every solver starts from, shape [H, nu].
        state: q, shape [ndx].
        action: r, shape [nu].
        terminal: q_H, shape [ndx].
        goal: g, shape [nx], or [H + 1, nx].
        limits: Least and largest action, shape [2, nu].
    """

    name: str
    dynamics: ResidualDynamics
    start: Tensor
    guess: Tensor
    state: Tensor
    action: Tensor
    terminal: Tensor
    goal: Tensor
    limits: Tensor

    @property
    def horizon(self) -> int:
        """Steps."""
        return len(self.guess)

    def cost_of(self, actions: Tensor) -> float:
        """Return the cost of actions [H, nu] clipped to the limits, in float64, by the torch form: the one judge of all solvers."""
        u = actions.double().clamp(*self.limits)
        with torch.no_grad():
            states = rollout(self.dynamics, self.start, u, backend="torch")
        goal = self.goal.expand(self.horizon + 1, -1)
        square = self.dynamics.space.difference(states, goal).square()
        return float((square[:-1] @ self.state).sum() + (u.square() @ self.action).sum() + square[-1] @ self.terminal)

    def save(self, path: Path) -> None:
        """Write the file that ``control_peers/problem.py`` reads, with one rollout that it must repeat."""
        (residual,) = self.dynamics.corrections
        assert isinstance(residual, Unstructured)
        weights = [w.detach().double() for w in residual.network.weights]
        weights[0] = weights[0] / residual.features.spread.unsqueeze(1)  # the normaliser of the inputs
        share = torch.rand(self.guess.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        actions = self.limits[0] + (self.limits[1] - self.limits[0]) * share
        with torch.no_grad():
            states = rollout(self.dynamics, self.start, actions, backend="torch")
        meta = {"name": self.name, "dt": self.dynamics.dt, "horizon": self.horizon, "parameters": self.dynamics.values,
                "bound": residual.bound, "layers": len(weights)}
        arrays = {f"w{i}": w for i, w in enumerate(weights)} | {f"b{i}": b.detach() for i, b in enumerate(residual.network.biases)}
        arrays |= {"start": self.start, "guess": self.guess, "state": self.state, "action": self.action, "terminal": self.terminal,
                   "goal": self.goal.expand(self.horizon + 1, -1), "limits": self.limits, "check_actions": actions,
                   "check_states": states}
        np.savez(path, meta=json.dumps(meta), **{n: a.numpy() for n, a in arrays.items()})


def cart_pole(horizon: int = 100) -> Problem:
    """Return the swing-up of a cart-pole with a residual of two hidden layers of 64 units, 0.02 s a step."""
    def lost(x: Tensor) -> Tensor:
        """Rail friction and weakening of the motor [N], drag of the pole [N·m]."""
        _, _, v, w, u = x.unbind(-1)
        return torch.stack([-0.4 * torch.tanh(10 * v) - 0.3 * v - 0.03 * u * torch.tanh(v / 3).abs(), -0.004 * w - 0.001 * w * w.abs()], -1)

    features = [Feature(source=n) for n in ("cart", "angle", "speed", "rate", "force")]
    residual = Unstructured(nv=2, features=features, bound=5.0, hidden=(64, 64))
    fit(residual, lost, torch.tensor([1.0, 3.5, 4.0, 10.0, 15.0]), torch.tensor([1.0, 0.05]))
    tensor = _tensor
    return Problem(name="cartpole", dynamics=ResidualDynamics(CartPole(dt=0.02), [residual]), start=torch.zeros(4, dtype=torch.float64),
                   guess=torch.zeros(horizon, 1, dtype=torch.float64), state=tensor([0.02, 0.02, 0.002, 0.002]), action=tensor([2e-4]),
                   terminal=tensor([10.0, 50.0, 5.0, 5.0]), goal=tensor([0.0, UP, 0.0, 0.0]),
                   limits=tensor([[-15.0], [15.0]]))


def quadrotor(horizon: int = 20) -> Problem:
    """Return the tracking of a circle by a quadrotor (13 states, 4 thrusts) with a residual of four layers of 64 units, 1 s ahead."""
    body = QuadrotorBody(dt=1.0 / horizon)

    def drag(x: Tensor) -> Tensor:
        """Air drag [N] of a body that is flat, and its torque [N·m]."""
        v, u = x[..., :3], x[..., 10:]
        tilt = torch.stack([x[..., 3] * 0.3, x[..., 4] * 0.3, 0.2 * torch.tanh(u.sum(-1) - 4)], -1)
        return torch.cat([-0.1 * v * (1 + v.abs() / 5) + 0.1 * tilt, -0.002 * x[..., 7:10]], -1)

    names = ("vx", "vy", "vz", "qw", "qx", "qy", "qz", "wx", "wy", "wz", "thrust1", "thrust2", "thrust3", "thrust4")
    residual = Unstructured(nv=6, features=[Feature(source=n) for n in names], bound=5.0, hidden=(64,) * 4)
    fit(residual, drag, torch.tensor([6.0] * 3 + [1.0] * 4 + [4.0] * 3 + [4.0] * 4), torch.tensor([1.0] * 3 + [0.02] * 3))
    dynamics, tensor = ResidualDynamics(body, [residual]), _tensor
    hover = tensor([body.parameters.nominal()["mass"] * body.parameters.nominal()["gravity"] / 4] * 4)
    goal = circle(torch.arange(horizon + 1, dtype=torch.float64) * body.dt)
    start = goal[0] + tensor([0.2, -0.1, 0.1, 0, 0, 0, 0, 0.3, 0, 0, 0, 0, 0])
    weights = tensor([20.0] * 3 + [2.0] * 3 + [1.0] * 3 + [0.5] * 3)
    return Problem(name="quadrotor", dynamics=dynamics, start=start, guess=hover.repeat(horizon, 1), state=weights * body.dt,
                   action=tensor([0.1] * 4) * body.dt, terminal=weights, goal=goal, limits=tensor([[0.0] * 4, [8.0] * 4]))


def circle(time: Tensor, radius: float = 2.0, speed: float = 3.0) -> Tensor:
    """Return the states [time, 13] of a level body that moves along a circle, times [s] of shape [time]."""
    a = speed / radius * time
    goal = torch.zeros(len(time), 13, dtype=torch.float64)
    goal[:, 0], goal[:, 1], goal[:, 3] = radius * torch.cos(a), radius * torch.sin(a), 1.0
    goal[:, 7], goal[:, 8] = -speed * torch.sin(a), speed * torch.cos(a)
    return goal


def fit(residual: Unstructured, truth: Truth, spread: Tensor, scale: Tensor, steps: int = 400) -> None:
    """Fit a residual's network to a known function of its inputs, errors in units of ``scale``, by Adam on random inputs."""
    generator = torch.Generator().manual_seed(0)
    residual.features.spread.copy_(spread / 3**0.5)
    with torch.no_grad():
        residual.network.weights[-1].normal_(std=0.01, generator=generator)
    optimizer = torch.optim.Adam(residual.network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x = spread * (2 * torch.rand(512, len(spread), generator=generator, dtype=torch.float64) - 1)
        found = residual.bound * torch.tanh(residual.network(x / residual.features.spread))
        loss = ((found - truth(x)) / scale).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        for w in residual.network.parameters():
            w.copy_(w.float())  # exact in single precision: solvers of either precision have the same weights
    residual.requires_grad_(False)


def quadratic(problem: Problem, dtype: torch.dtype = torch.float32) -> QuadraticCost:
    """Return the problem's cost as planners take it."""
    moving = problem.goal.ndim > 1
    return QuadraticCost(space=problem.dynamics.space, state=problem.state.to(dtype), action=problem.action.to(dtype),
                         terminal=problem.terminal.to(dtype), target=problem.goal.to(dtype), trajectory=moving)


def shifted(problem: Problem, start: Sequence[float]) -> Problem:
    """Return the problem from another state."""
    return replace(problem, start=_tensor(start))


def _tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
