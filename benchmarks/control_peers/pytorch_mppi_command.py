"""pytorch_mppi on the cart-pole at a path: time of a command, and the closed loop that its commands make on the same model.

It charges the state after a step, so the first state's cost is left out and the last one's is what the terminal weight exceeds the running
weight by; its own cost of perturbations comes on top, as it does in its algorithm.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import torch
from problem import Lines, Problem, now, serve
from pytorch_mppi import MPPI
from torch import Tensor
from torch_cart_pole import CartPole, errors

SAMPLES = 1024
NOISE = 5.0
TEMPERATURES = (0.1, 0.3, 1.0, 3.0)


def solver(problem: Problem, *, compiled: bool) -> Callable[[dict], dict]:
    """Return a closed loop of so many ticks from the start."""
    dtype = torch.float32
    dynamics, exact = CartPole(problem, dtype), CartPole(problem, torch.float64)
    q, r, last, goal = (torch.tensor(a, dtype=dtype) for a in (problem.state, problem.action, problem.terminal, problem.goal[-1]))
    lower, upper = (torch.tensor(a, dtype=dtype) for a in problem.limits)

    def running(x: Tensor, u: Tensor) -> Tensor:
        return (x - goal).square() @ q + u.square() @ r

    def terminal(states: Tensor, actions: Tensor) -> Tensor:
        return (states[:, :, -1] - goal).square() @ (last - q)

    step = dynamics.forward
    if compiled:
        step, running = torch.compile(step), torch.compile(running)

    def loop(request: dict) -> dict:
        torch.manual_seed(request["seed"])
        mppi = MPPI(step, running, problem.nx, torch.eye(problem.nu) * NOISE**2, num_samples=SAMPLES, horizon=problem.horizon,
                    terminal_state_cost=terminal, lambda_=request["temperature"], u_min=lower, u_max=upper,
                    U_init=torch.tensor(problem.guess, dtype=dtype))
        x, states, actions, times = torch.tensor(problem.start), [], [], []
        for _ in range(request["ticks"]):
            begun = now()
            u = mppi.command(x.to(dtype))
            times.append(now() - begun)
            u = u.double().clamp(*torch.tensor(problem.limits))
            states.append(x.tolist())
            actions.append(u.tolist())
            x = exact(x[None], u[None])[0]
        return {"times": times, "actions": actions, "seconds": float(np.sum(times))}

    with torch.no_grad():
        loop({"seed": 0, "ticks": 3, "temperature": 1.0})  # compiles
    return torch.no_grad()(loop)


def main(path: str, names: list[str]) -> None:
    """Serve the named variants, all where none is named."""
    lines, problem = Lines(), Problem(path)
    torch.set_num_threads(1)
    chosen = [n for n in ("eager", "compiled") if n in names or not names]
    settings = {"num_samples": SAMPLES, "horizon": problem.horizon, "noise_sigma": NOISE, "temperatures": TEMPERATURES, "dtype": "float32"}
    found = errors(problem)
    serve(lines, {n: solver(problem, compiled=n == "compiled") for n in chosen}, {**found, "settings": dict.fromkeys(chosen, settings)},
          ("pytorch-mppi", "torch", "numpy"))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
