"""Your own equations in one kernel: a boat as plain torch, and beside it the same step as a Warp function of one boat.

Everything works with the torch form alone; with both, a rollout and its gradient are two launches, the learned force included.
"""

import time
from typing import Any

import torch
import warp as wp

from residual_mbrl.baselines import Baseline, Parameter, Parameters, Port, WarpStep
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.residuals import Feature, Unstructured
from residual_mbrl.rollouts import rollout
from residual_mbrl.spaces import StateSpace


class Boat(Baseline):
    """``m du/dt = thrust - c u|u|``, ``dr/dt = rudder u - r``, and the way north is ``dx/dt = u cos(heading)``."""

    ports, dt = frozenset(Port), 0.05
    space = StateSpace(position=("north", "heading"), velocity=("speed", "turning"), action=("thrust", "rudder"))
    parameters = Parameters(Parameter(name="mass", nominal=20.0, lower=5.0, upper=80.0, unit="kg"),
                            Parameter(name="drag", nominal=4.0, lower=0.1, upper=40.0, unit="N·s²/m²"))

    def step(self, state, action, force=None, parameters=None):  # noqa: ANN001, ANN201
        p, dt, (north, heading, u, r) = self.parameters.resolve(parameters, state), self.dt, state.unbind(-1)
        push, twist = (0.0, 0.0) if force is None else force.unbind(-1)
        faster = u + dt * (action[..., 0] + push - p["drag"] * u * u.abs()) / p["mass"]
        turning = r + dt * (action[..., 1] * u - r + twist)
        heading = heading + dt * turning
        return torch.stack([north + dt * faster * torch.cos(heading), heading, faster, turning], -1)

    def warp_step(self) -> WarpStep:
        dt, vector = self.dt, wp.types.vector(length=4, dtype=wp.float32)

        @wp.func
        def substep(x: Any, a: Any, force: Any, p: Any) -> Any:  # p holds the parameters in their order
            faster = x[2] + dt * (a[0] + force[0] - p[1] * x[2] * wp.abs(x[2])) / p[0]
            turning = x[3] + dt * (a[1] * x[2] - x[3] + force[1])
            heading = x[1] + dt * turning
            return vector(x[0] + dt * faster * wp.cos(heading), heading, faster, turning)

        return WarpStep(substep)


def main() -> dict[str, float]:
    learned = Unstructured(nv=2, features=[Feature(source="velocity"), Feature(source="action")], sizes=[2, 2], bound=5.0)
    torch.nn.init.normal_(learned.network.weights[-1], std=0.2, generator=torch.Generator().manual_seed(0))
    dynamics, states, slopes, seconds = ResidualDynamics(Boat(), [learned]), {}, {}, {}
    actions = torch.tensor([15.0, 0.4]).repeat(64, 100, 1).requires_grad_()
    for backend in ("torch", "fused") * 2:  # the first call of each warms up, or compiles
        start = time.perf_counter()
        found = rollout(dynamics, torch.zeros(64, 4), actions, backend=backend)
        states[backend], slopes[backend] = found.detach(), torch.autograd.grad(found[:, -1, 0].sum(), actions)[0]
        seconds[backend] = time.perf_counter() - start
    error = max(float((a["fused"] - a["torch"]).norm() / a["torch"].norm()) for a in (states, slopes))
    ratio = seconds["torch"] / seconds["fused"]
    print(f"64 boats, 100 steps and the gradient: states and gradient agree to {error:.0e}, fused is {ratio:.0f} times as fast as torch")
    return {"error": error, "ratio": ratio}


if __name__ == "__main__":
    main()
