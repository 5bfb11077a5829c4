"""Plan with a calibrated model: how shall the goal of a position-controlled servo move, so that its loaded arm is soon at rest at 60°?

The model is an artefact of real logs, friction learned on top. iLQR follows its gradients, MPPI samples; both keep the limits exactly.
Run it on any artefact of a servo: ``python examples/13_plan_with_a_calibrated_model.py benchmarks/artifacts/servo``.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated

import torch
import tyro

from residual_mbrl import artifact
from residual_mbrl.costs import QuadraticCost
from residual_mbrl.planners import ILQR, MPPI, ILQROptions, Limits, MPPIOptions, Planner
from residual_mbrl.rollouts import rollout_cost

TARGET, GAIN, SECONDS = math.radians(60), 400.0, 0.5


def main(folder: Annotated[Path, tyro.conf.Positional]) -> dict[str, float]:
    """Plan with both, from the arm hanging at rest.

    Args:
        folder: The artefact.
    """
    calibration = artifact.load(folder)
    calibration.require(dt=0.005, actions=("goal", "enabled", "gain"), states=("angle", "rate"), units={"angle": "rad", "goal": "rad"})
    dynamics = calibration.model.dynamics.float()
    dynamics.requires_grad_(False)
    steps = round(SECONDS / dynamics.dt)

    # the goal is free within a turn and may move by 20 rad/s; the drive stays on, its gain as it is
    limits = Limits(action_lower=[-math.pi, 1.0, GAIN], action_upper=[math.pi, 1.0, GAIN], action_rate=[20.0, 1.0, 1.0])
    cost = QuadraticCost(space=dynamics.space, state=torch.tensor([1.0, 0.001]), action=torch.tensor([0.01, 0.0, 0.0]),
                         terminal=torch.tensor([50.0, 0.5]), target=torch.tensor([TARGET, 0.0]))
    start, previous = torch.zeros(2), torch.tensor([0.0, 1.0, GAIN])

    # a start from which the arm moves: where friction holds it, small changes of the goal change nothing and gradients are zero
    jump = torch.tensor([TARGET, 1.0, GAIN])
    costs = {"goal at the target at once, which the rate limit forbids": float(rollout_cost(dynamics, start, jump.expand(steps, 3), cost))}
    planners: dict[str, Planner] = {
        "iLQR": ILQR(dynamics, cost, ILQROptions(iterations=50), steps=steps, limits=limits, initial_action=jump),
        "MPPI": MPPI(dynamics, cost, MPPIOptions(samples=1024, iterations=20, std=[0.3, 0.1, 0.1], colour=1.5), steps=steps, limits=limits,
                     initial_action=jump)}
    for name, planner in planners.items():
        planner.plan(start, previous=previous)  # compiles
        begun = time.perf_counter()
        plan = planner.plan(start, previous=previous)
        milliseconds = 1e3 * (time.perf_counter() - begun)
        costs[name] = float(plan.cost)
        goals = plan.actions[:, 0]
        print(f"{name}: cost {costs[name]:.3f} after {plan.iterations} iterations in {milliseconds:.1f} ms ({plan.outcome.name.lower()}); "
              f"the goal goes up to {math.degrees(float(goals.max())):.0f}°")
    for name, value in costs.items():
        print(f"cost {value:8.3f}  {name}")
    return costs


if __name__ == "__main__":
    tyro.cli(main)
