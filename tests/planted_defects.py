"""Small models with a defect of their gradient in a known place, and the same without it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from residual_mbrl.baselines import Baseline, Parameter, Parameters, Port, Values
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.physics.numeric_step import Gradients, Inputs
from residual_mbrl.residuals.base import Certificate, Context, Residual
from residual_mbrl.spaces import StateSpace

SPACE = StateSpace(position=("height",), velocity=("speed",), action=("thrust",), units={"height": "m", "speed": "m/s", "thrust": "N"})
PARAMETERS = Parameters(Parameter(name="mass", nominal=1.0, lower=0.1, upper=10.0, unit="kg"),
                        Parameter(name="stiffness", nominal=400.0, lower=1.0, upper=1e4, unit="N/m"))


class Ball(Baseline):
    """A ball over a springy floor, ``m dv/dt = u - m g + k max(-h, 0)``, semi-implicit Euler."""

    space, parameters, ports = SPACE, PARAMETERS, frozenset(Port)

    def __init__(self, dt: float = 0.02, nominal: dict[str, float] | None = None) -> None:
        self.dt = dt
        self.parameters = PARAMETERS.replaced(**{n: {"nominal": x, "upper": 1e9} for n, x in (nominal or {}).items()})

    def contact(self, height: Tensor, stiffness: Tensor) -> Tensor:
        """Force of the floor [N]."""
        return stiffness * (-height).clamp_min(0.0)

    def drive(self, thrust: Tensor) -> Tensor:
        """Force of the drive [N]."""
        return thrust

    def drag(self, speed: Tensor) -> Tensor:
        """Force of the air [N]."""
        return -0.1 * speed

    def step(self, state: Tensor, action: Tensor, force: Tensor | None = None, parameters: Values | None = None) -> Tensor:
        p = self.parameters.resolve(parameters, state)
        h, v = state.unbind(-1)
        total = self.drive(action[..., 0]) - p["mass"] * 9.81 + self.contact(h, p["stiffness"]) + self.drag(v)
        if force is not None:
            total = total + force[..., 0]
        v = v + self.dt * total / p["mass"]
        return torch.stack([h + self.dt * v, v], -1)

    def describe_contacts(self, state: Tensor) -> tuple[str, ...]:
        return ("floor/ball",) if state[0] < 0 else ()


class DeadContact(Ball):
    """The height's part in the contact force is lost to reverse mode."""

    def contact(self, height: Tensor, stiffness: Tensor) -> Tensor:
        return super().contact(height.detach(), stiffness)


class SquareRootDrag(Ball):
    """Drag ``√|v|``: its derivative at rest is infinite, and NaN in reverse mode."""

    def drag(self, speed: Tensor) -> Tensor:
        return -speed.abs().sqrt() * speed.sign()


class _Negated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


class WrongSign(Ball):
    """The thrust's gradient has the wrong sign."""

    def drive(self, thrust: Tensor) -> Tensor:
        return _Negated.apply(thrust)


class LongRolloutDrops(Ball):
    """Single steps are right, but a rollout of several loses the gradient by the fourth action, as a loop in a kernel may."""

    def rollout(self, state: Tensor, actions: Tensor, parameters: Values | None = None) -> Tensor:
        kept = torch.ones(actions.shape[-2], 1, dtype=torch.bool)
        kept[3:4] = False
        return super().rollout(state, torch.where(kept, actions, actions.detach()), parameters)


class Overflow(Ball):
    """The speed is lost below a height, as in a simulation that fails."""

    def drag(self, speed: Tensor) -> Tensor:
        return torch.where(speed < -1.0, torch.inf, 0.0) - 0.1 * speed


class DeadMujocoContact(MujocoSimulator):
    """One entry of the position's tangent has no gradient."""

    dead = 2

    def pull_back(self, inputs: Inputs, cotangent: Any, wanted: frozenset[str]) -> Gradients:
        found = super().pull_back(inputs, cotangent, wanted)
        if found.state is not None:
            found.state[:, self.dead] = 0.0
        return found


class Push(Residual):
    """A learned force ``w (1 - v²) + b``."""

    port = Port.FORCE

    def __init__(self, weight: float = 0.3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight], dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor([0.1], dtype=torch.float64))

    def seen(self, weight: Tensor, context: Context) -> Tensor:
        """The weight as the force sees it."""
        return weight

    def forward(self, context: Context) -> Tensor:
        return (self.seen(self.weight, context) * (1 - context.v**2) + self.bias).to(context.state)

    def describe(self) -> dict[str, object]:
        return {}

    def certificate(self, context: Context, baseline: Baseline) -> Certificate:
        raise NotImplementedError


class DeadWeight(Push):
    """The weight is cut off."""

    def seen(self, weight: Tensor, context: Context) -> Tensor:
        return weight.detach()


class WrongWeightBelow(Push):
    """The weight's gradient is doubled below the floor."""

    def seen(self, weight: Tensor, context: Context) -> Tensor:
        return torch.where(context.q < 0, 2 * weight - weight.detach(), weight)


class _Poisoned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, where: Tensor) -> Tensor:
        ctx.save_for_backward(where)
        return x.expand(where.shape).clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (where,) = ctx.saved_tensors
        return torch.where(where, torch.nan, gradient).sum().reshape(1), None


class NotFiniteWeightBelow(Push):
    """The weight's gradient is NaN below the floor."""

    def seen(self, weight: Tensor, context: Context) -> Tensor:
        return _Poisoned.apply(weight, context.q < 0)


class BetweenSlopes(Ball):
    """At the kink where contact begins the slope is three quarters of one side's: no side's, and no defect that differences could tell."""

    def contact(self, height: Tensor, stiffness: Tensor) -> Tensor:
        return super().contact(height.detach(), stiffness) + torch.where(height == 0, -0.75 * stiffness * (height - height.detach()), 0.0) \
            + torch.where(height < 0, -stiffness * (height - height.detach()), 0.0)
