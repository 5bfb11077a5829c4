"""Audit the gradient of a model before training with it: a ball on a springy floor whose contact force has lost its slope.

The simulation is right, a loss goes down, and yet no policy ever learns to land: the classic silent failure. The audit says where.
"""

from __future__ import annotations

import torch
import tyro
from torch import Tensor

from residual_mbrl import gradient_audit
from residual_mbrl.baselines import Parameter, Parameters, Values
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.physics.double_pendulum import DoublePendulum
from residual_mbrl.physics.mechanical import MechanicalBaseline
from residual_mbrl.residuals import Conservative
from residual_mbrl.spaces import StateSpace

SPACE = StateSpace(position=("height",), velocity=("speed",), action=("thrust",), units={"height": "m", "speed": "m/s", "thrust": "N"})
PARAMETERS = Parameters(Parameter(name="mass", nominal=0.5, lower=0.1, upper=5.0, unit="kg"),
                        Parameter(name="stiffness", nominal=800.0, lower=1.0, upper=1e6, unit="N/m"))


class Ball(MechanicalBaseline):
    """``m dv/dt = u - m g + k max(-h, 0)``: everything is right here."""

    def __init__(self, parameters: Parameters = PARAMETERS, *, dt: float = 0.01) -> None:
        super().__init__(SPACE, parameters, dt=dt)

    def mass_matrix(self, q: Tensor, p: Values) -> Tensor:
        return p["mass"].expand(q.shape[:-1])[..., None, None]

    def smooth_force(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        return u - 9.81 * p["mass"].unsqueeze(-1) + self.floor(q, p["stiffness"].unsqueeze(-1))

    def potential_energy(self, q: Tensor, p: Values) -> Tensor:
        return 9.81 * p["mass"] * q[..., 0] + 0.5 * p["stiffness"] * (-q[..., 0]).clamp_min(0.0) ** 2

    def floor(self, height: Tensor, stiffness: Tensor) -> Tensor:
        return stiffness * (-height).clamp_min(0.0)

    def describe_contacts(self, state: Tensor) -> tuple[str, ...]:
        return ("floor/ball",) if state[0] < 0 else ()


class Broken(Ball):
    """The depth takes a detour through numpy, as it does in code that calls a collision library."""

    def floor(self, height: Tensor, stiffness: Tensor) -> Tensor:
        depth = (-height).detach().numpy().clip(min=0.0)
        return stiffness * torch.from_numpy(depth)


def main(steps: int = 40) -> dict[str, object]:
    """Audit the broken model, the repaired one with a residual, and a double pendulum over so long that it is chaotic.

    Args:
        steps: Horizon.
    """
    state = torch.tensor([[0.2, 0.0], [0.5, 0.0], [3.0, 0.0]], dtype=torch.float64)  # three worlds; the last one stays in the air
    thrust = torch.zeros(steps, 1, dtype=torch.float64)

    broken = gradient_audit(ResidualDynamics(Broken()), state, thrust)
    print(broken)
    repaired = gradient_audit(ResidualDynamics(Ball(), [Conservative(nq=1, units=6)]), state, thrust)
    print(repaired)
    upright = torch.tensor([2.5, 2.5, 0.0, 0.0], dtype=torch.float64)
    exploding = gradient_audit(ResidualDynamics(DoublePendulum(dt=0.02)), upright, torch.zeros(10 * steps, 2, dtype=torch.float64))
    print(exploding)
    return {"broken": [(f.kind.value, f.world, f.step, f.input) for f in broken.findings], "repaired": repaired.ok,
            "cut": exploding.horizon_cut}


if __name__ == "__main__":
    tyro.cli(main)
