"""Who acts on the plant: a policy that was trained in the model, or a planner that looks ahead in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from residual_mbrl.costs import Cost
from residual_mbrl.dynamics import ResidualDynamics, member_count
from residual_mbrl.planners import (
    ICEM,
    ILQR,
    MPPI,
    CVaR,
    ICEMOptions,
    ILQROptions,
    Limits,
    Mean,
    MPPIOptions,
    Objective,
    Plan,
    Planner,
    Shooting,
    ShootingOptions,
    shift,
)
from residual_mbrl.policies.networks import NetworkPolicy
from residual_mbrl.policies.numpy_form import NumpyPolicy
from residual_mbrl.tasks import Task, Window

Array = NDArray[np.float64]
Act = Callable[[Array, int], Array]
"""From a measured state [nx] and the step's number to an action [nu]."""
Guard = Callable[[Act, ResidualDynamics], Act]
"""From who would act, and the model as it is known, to who may: ``Veto`` is one."""
PlannerOptions = ICEMOptions | ILQROptions | MPPIOptions | ShootingOptions


@dataclass(frozen=True, kw_only=True)
class Planning:
    """Model-predictive control in the model as it is known: at every step a plan, begun where the last one left off.

    With ``ICEMOptions``, an ensemble and a model without a baseline (``network_alone``) it is PETS (Chua et al. 2018).

    Args:
        steps: Horizon.
        options: Of the planner; their kind says which one.
        opening: Of the first plan of an episode; the same where missing.
        cost: What is planned with, such as the task's with an end of its own; the task's where missing. References that change from step
            to step are those of the episode's steps, the last one held.
        fraction: Of an ensemble's members, the worst, whose mean cost is minimised; 1 for all of them.
        dtype: Of the rollouts.
    """

    steps: int
    options: PlannerOptions = field(default_factory=ICEMOptions)
    opening: PlannerOptions | None = None
    cost: Cost | None = None
    fraction: float = 1.0
    dtype: torch.dtype = torch.float32

    def describe(self) -> dict[str, object]:
        """Return what says which planner it is, but the cost."""
        return {"kind": type(self.options).__name__, "steps": self.steps, "options": asdict(self.options), "fraction": self.fraction,
                "opening": None if self.opening is None else asdict(self.opening), "dtype": str(self.dtype)}

    def actor(self, dynamics: ResidualDynamics, task: Task, seed: int) -> Act:
        """Return who plans through one episode.

        Args:
            dynamics: Planned in; an ensemble where its weights have members.
            task: Gives range and, where it is missing here, the cost.
            seed: Of the planner's own random numbers.
        """
        cost, members = self.cost or task.cost, member_count(dynamics)
        changes = cost.references.shape[-2] > 2  # one for all steps and one for the end
        objective: Objective | None = None
        if members:
            objective = Mean(members=members) if self.fraction == 1 else CVaR(members=members, fraction=self.fraction)

        def ahead(t: int) -> Cost:
            return Window(cost, t, self.steps) if changes else cost

        def made(options: PlannerOptions) -> Planner:
            limits = Limits(action_lower=task.low.double(), action_upper=task.high.double())
            return _planner(dynamics, ahead(0), options, seed)(steps=self.steps, limits=limits, objective=objective)

        usual = made(self.options)
        opening, last = usual if self.opening is None else made(self.opening), list[Plan]()

        def act(state: Array, t: int) -> Array:
            x = torch.tensor(state, dtype=self.dtype)
            plan = (usual if last else opening).plan(x, shift(last.pop(), 1) if last else None, cost=ahead(t))
            last.append(plan)
            action: Array = plan.actions[0].double().numpy()
            return action

        return act


PolicyOrPlanning = NetworkPolicy | Planning
"""What ``learn`` is given to act with."""


def actor(controller: PolicyOrPlanning, dynamics: ResidualDynamics, task: Task, seed: int) -> Act:
    """Return who acts in one episode; the seed is of the policy's noise or the planner's samples."""
    if isinstance(controller, Planning):
        return controller.actor(dynamics, task, seed)
    form, rng, size = NumpyPolicy(controller), np.random.default_rng(seed), controller.noise_size
    return lambda state, t: form(state, None, rng.standard_normal(size) if size else None)


def _planner(dynamics: ResidualDynamics, cost: Cost, options: PlannerOptions, seed: int) -> Callable[..., Planner]:
    """Return the constructor of the planner that options are of, all but the common arguments given."""
    if isinstance(options, ICEMOptions):
        return lambda **common: ICEM(dynamics, cost, replace(options, seed=seed), **common)
    if isinstance(options, MPPIOptions):
        return lambda **common: MPPI(dynamics, cost, replace(options, seed=seed), **common)
    if isinstance(options, ShootingOptions):
        return lambda **common: Shooting(dynamics, cost, options, **common)
    return lambda **common: ILQR(dynamics, cost, options, **common)
