"""Planners: actions that minimise a cost over a horizon under a model."""

from residual_mbrl.planners.base import Planner
from residual_mbrl.planners.constraints import Inequalities
from residual_mbrl.planners.differentiable import differentiable_actions
from residual_mbrl.planners.icem import ICEM, ICEMOptions
from residual_mbrl.planners.ilqr import ILQR, ILQROptions
from residual_mbrl.planners.limits import Limits
from residual_mbrl.planners.mppi import MPPI, MPPIOptions
from residual_mbrl.planners.objectives import CVaR, Mean, Objective, Worst
from residual_mbrl.planners.plan import Plan, shift
from residual_mbrl.planners.shooting import Shooting, ShootingOptions
from residual_mbrl.planners.starts import best_from_starts
from residual_mbrl.status import PlanStatus

__all__ = ["ICEM", "ILQR", "MPPI", "CVaR", "ICEMOptions", "ILQROptions", "Inequalities", "Limits", "MPPIOptions", "Mean", "Objective",
           "Plan", "PlanStatus", "Planner", "Shooting",
           "ShootingOptions", "Worst", "best_from_starts", "differentiable_actions", "shift"]
