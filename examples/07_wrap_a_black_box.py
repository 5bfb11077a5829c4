"""Your simulator is a function in numpy that nobody can see inside: a winch with a load, which really hangs in water.

Wrapped, it has a batch, a gradient by differences and a parameter to identify; what it lacks is learned as a correction of its next
state. Where it fails, that world alone does.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from residual_mbrl.baselines import Parameter, Parameters
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.evaluation import evaluate
from residual_mbrl.fitting import FitOptions, fit
from residual_mbrl.identification import IdentifyOptions, identify
from residual_mbrl.model import Model
from residual_mbrl.physics.black_box import BlackBox
from residual_mbrl.residuals import Feature, StateDelta
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.spaces import StateSpace
from residual_mbrl.trajectories import Trajectory
from residual_mbrl.windows import cut_windows

DT = 0.02
SPACE = StateSpace(position=("height",), velocity=("rate",), action=("pull",), units={"height": "m", "rate": "m/s", "pull": "N"})
MASS = Parameters(Parameter(name="mass", nominal=2.0, lower=0.5, upper=8.0, unit="kg"))


def simulate(state: np.ndarray, action: np.ndarray, *, parameters: Mapping[str, np.ndarray], water: float = 0.0) -> np.ndarray:
    """Step N worlds, [N, 2] and [N, 1]: the vendor's simulator without water, and the rig that stands in for the real one with it."""
    if np.abs(action).max() > 200:
        raise OverflowError(f"a pull of {np.abs(action).max():.0f} N tears the rope")
    height, rate = state.T
    for _ in range(4):
        rate = rate + DT / 4 * ((action[:, 0] - water * rate * np.abs(rate)) / parameters["mass"] - 9.81)
        height = height + DT / 4 * rate
    return np.stack([height, rate], 1)


def record(log: int) -> Trajectory:
    """Stand in for a log of the real winch: a load of 3 kg in water, 3 s at 50 Hz, heights to the millimetre."""
    time, state = DT * np.arange(151), np.zeros((1, 2))
    pull = 3.0 * 9.81 + 12 * np.sin((2 + 0.4 * log) * time) + 8 * np.sin((5 - 0.3 * log) * time + log)
    height = np.zeros_like(time)
    for k in range(len(time) - 1):
        state = simulate(state, pull[k : k + 1, None], parameters={"mass": np.array([3.0])}, water=6.0)
        height[k + 1] = np.round(state[0, 0], 3)
    return Trajectory(name=f"run{log}", command_time=time, commands=pull[:, None], command_names=("pull",),
                      measurement_time=time, measurements=height[:, None], measurement_names=("height",))


def main() -> dict[str, float]:
    winch = BlackBox(simulate, SPACE, DT, parameters=MASS, batched=True)

    pull = torch.full((3, 50, 1), 2.0 * 9.81, dtype=torch.float64, requires_grad=True)
    after = winch.rollout(torch.zeros(3, 2, dtype=torch.float64), pull)[:, -1, 0]
    slope = float(torch.autograd.grad(after.sum(), pull)[0][0, 0])
    torn = torch.tensor([[20.0], [500.0]], dtype=torch.float64)
    winch.step(torch.zeros(2, 2, dtype=torch.float64), torn)
    by_hand = DT / 2.0 * (1 - 0.375 * DT)
    print(f"one newton more in the first step lifts the load {1e3 * slope:.2f} mm after 1 s, by hand {1e3 * by_hand:.2f} mm")
    print(f"worlds of a batch: {[s.value for s in winch.status]}, because {winch.failures[0].message}")

    sensor = Sensor(space=SPACE, columns=(Column(name="height", source="height", noise=2e-3),))
    logs = [record(i) for i in range(6)]
    train, held = cut_windows(logs[:4], DT, horizon=50), cut_windows(logs[4:], DT, horizon=50)
    found = identify(ResidualDynamics(winch), sensor, train, IdentifyOptions(candidates=16, starts=1))
    delta = StateDelta(nv=1, features=[Feature(source="velocity")], bound=5.0, hidden=(6,))
    start = Model(dynamics=found.dynamics.with_residuals([delta]), sensor=sensor)
    options = FitOptions(rounds=3, iterations=8, ridge=0.002)
    corrected = fit(start, train, options=options, free=[e.parameter for e in found.estimates]).model

    models = {"nominal": Model(dynamics=ResidualDynamics(winch), sensor=sensor),
              "identified": Model(dynamics=found.dynamics, sensor=sensor), "identified+residual": corrected}
    errors = {n: float(s.mae.value[0]) for n, s in evaluate(models, held, split="held-out").scores.items()}
    print(f"mass: nominal 2 kg, identified {found.dynamics.values['mass']:.2f} kg, with the correction "
          f"{corrected.dynamics.values['mass']:.2f} kg, really 3 kg")
    print("error over 1 s on held-out logs [m]: " + ", ".join(f"{n} {e:.4f}" for n, e in errors.items()))
    return {**errors, "mass": corrected.dynamics.values["mass"], "slope": slope}


if __name__ == "__main__":
    main()
