"""Your own equations in one kernel: a boat as plain torch, and beside it the same step as a Warp function.

The torch form is the model; everything works with it alone. ``warp_step`` states it once more for one boat, entry by entry, and a
rollout with its gradient is then two launches, the learned force included. The example prints how well both agree, and the speed ratio.
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

Boats = wp.types.vector(length=6, dtype=wp.float32)


class Boat(Baseline):
    """``m du/dt = thrust - c u|u| + m v r``, ``m dv/dt = -20 c v - m u r``, ``dr/dt = rudder u - r``: surge u, sway v, turning r."""

    ports, dt = frozenset(Port), 0.05
    space = StateSpace(position=("x", "y", "heading"), velocity=("surge", "sway", "turning"), action=("thrust", "rudder"))
    parameters = Parameters(Parameter(name="mass", nominal=20.0, lower=5.0, upper=80.0, unit="kg"),
                            Parameter(name="drag", nominal=4.0, lower=0.1, upper=40.0, unit="N·s²/m²"))

    def step(self, state, action, force=None, parameters=None):  # noqa: ANN001, ANN201
        p = self.parameters.resolve(parameters, state)
        x, y, heading, u, v, r = state.unbind(-1)
        push, side, twist = (0.0, 0.0, 0.0) if force is None else force.unbind(-1)
        u, v, r = (u + self.dt * ((action[..., 0] + push - p["drag"] * u * u.abs()) / p["mass"] + v * r),
                   v + self.dt * ((side - 20.0 * p["drag"] * v) / p["mass"] - u * r), r + self.dt * (action[..., 1] * u - r + twist))
        heading = heading + self.dt * r
        cos, sin = torch.cos(heading), torch.sin(heading)
        return torch.stack([x + self.dt * (u * cos - v * sin), y + self.dt * (u * sin + v * cos), heading, u, v, r], -1)

    def warp_step(self) -> WarpStep:
        dt = self.dt

        @wp.func
        def substep(x: Any, a: Any, force: Any, p: Any) -> Any:  # p in the order of the parameters
            u = x[3] + dt * ((a[0] + force[0] - p[1] * x[3] * wp.abs(x[3])) / p[0] + x[4] * x[5])
            v = x[4] + dt * ((force[1] - 20.0 * p[1] * x[4]) / p[0] - x[3] * x[5])
            r = x[5] + dt * (a[1] * x[3] - x[5] + force[2])
            heading = x[2] + dt * r
            c, s = wp.cos(heading), wp.sin(heading)
            return Boats(x[0] + dt * (u * c - v * s), x[1] + dt * (u * s + v * c), heading, u, v, r)

        return WarpStep(substep)


def main() -> dict[str, float]:
    force = Unstructured(nv=3, features=[Feature(source="velocity"), Feature(source="action")], sizes=[3, 2], bound=5.0)
    dynamics = ResidualDynamics(Boat(), [force])
    state, thrust = torch.zeros(256, 6), torch.tensor([15.0, 0.4]).repeat(256, 100, 1).requires_grad_()
    states, slopes, seconds = {}, {}, {}
    for backend in ("torch", "fused", "torch", "fused"):  # the first of each compiles or warms up
        start = time.perf_counter()
        states[backend] = rollout(dynamics, state, thrust, backend=backend)
        slopes[backend] = torch.autograd.grad(states[backend][:, -1, 0].sum(), thrust)[0]
        seconds[backend] = time.perf_counter() - start
    error = max(float((a["fused"] - a["torch"]).norm() / a["torch"].norm()) for a in (states, slopes))
    ratio = seconds["torch"] / seconds["fused"]
    print(f"256 boats, 100 steps, and the gradient: torch {1e3 * seconds['torch']:.0f} ms, fused {1e3 * seconds['fused']:.1f} ms "
          f"({ratio:.0f} times as fast); they agree to {error:.0e}")
    return {"error": error, "ratio": ratio}


if __name__ == "__main__":
    main()
