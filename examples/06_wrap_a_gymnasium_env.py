"""A Gymnasium environment is a simulator too: its physics, without its task, as a model to calibrate on logs. Needs residual-mbrl[gym].

The rig is the same pendulum with another mass, and a bearing that drags, which the environment has not. Its mass is identified through
the environment's own step; what the bearing does is learned on top.
"""

from __future__ import annotations

import gymnasium
import numpy as np
import torch

from residual_mbrl.baselines import Parameter, Parameters
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.evaluation import evaluate
from residual_mbrl.fitting import FitOptions, fit
from residual_mbrl.identification import IdentifyOptions, identify
from residual_mbrl.model import Model
from residual_mbrl.physics.gymnasium_env import GymnasiumEnv
from residual_mbrl.residuals import Feature, StateDelta
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.trajectories import Trajectory
from residual_mbrl.windows import cut_windows

MASS = Parameters(Parameter(name="m", nominal=1.0, lower=0.3, upper=3.0, unit="kg", description="attribute of the environment"))
ROD = {"g": -9.81}
"""Gymnasium's pendulum stands upright at zero; turned over it hangs."""


def record(log: int, steps: int = 80) -> Trajectory:
    """Stand in for a log of the rig, 4 s at 20 Hz: 1.4 kg, and a bearing that takes 0.15 N·m·s/rad."""
    env = gymnasium.make("Pendulum-v1", **ROD).unwrapped
    env.reset(seed=log)
    env.m, env.state = 1.4, np.array([0.3 * log, 0.0])
    time, angle, torque = env.dt * np.arange(steps + 1), np.zeros(steps + 1), np.zeros(steps + 1)
    for k in range(steps + 1):
        angle[k] = env.state[0]
        torque[k] = np.clip(1.5 * np.sin((2 + 0.5 * log) * time[k]) + 0.8 * np.sin((6 - 0.3 * log) * time[k]), -2, 2)
        env.step([torque[k] - 0.15 * env.state[1]])
    return Trajectory(name=f"run{log}", command_time=time, commands=torque[:, None], command_names=("torque",),
                      measurement_time=time, measurements=np.round(angle, 3)[:, None], measurement_names=("angle",))


def main() -> dict[str, float]:
    pendulum = GymnasiumEnv("Pendulum-v1", options=ROD, parameters=MASS)
    print(f"state {pendulum.space.state_names}, action {pendulum.space.action}, {pendulum.dt} s per step")
    start = pendulum.initial_state(seed=0)
    slope = pendulum.jacobian(start, torch.zeros(1, dtype=torch.float64)).action[1, 0]
    print(f"speed that a newton metre gives in a step: {slope:.4f} rad/s, by hand {3 * pendulum.dt:.4f}")

    sensor = Sensor(space=pendulum.space, columns=(Column(name="angle", source="angle", noise=0.003),))
    logs = [record(i) for i in range(5)]
    train, held = cut_windows(logs[:3], pendulum.dt, horizon=20), cut_windows(logs[3:], pendulum.dt)
    found = identify(ResidualDynamics(pendulum), sensor, train, IdentifyOptions(candidates=4, starts=1))
    delta = StateDelta(nv=1, features=[Feature(source="angle.vel")], bound=5.0, hidden=(2,))
    begin = Model(dynamics=found.dynamics.with_residuals([delta]), sensor=sensor)
    options = FitOptions(rounds=2, iterations=6, ridge=0.002)
    corrected = fit(begin, train, options=options, free=[e.parameter for e in found.estimates]).model

    models = {"nominal": Model(dynamics=ResidualDynamics(pendulum), sensor=sensor),
              "identified": Model(dynamics=found.dynamics, sensor=sensor), "identified+residual": corrected}
    errors = {n: float(s.mae.value[0]) for n, s in evaluate(models, held, split="held-out").scores.items()}
    print(f"mass: nominal 1 kg, identified {found.dynamics.values['m']:.2f} kg, with the correction "
          f"{corrected.dynamics.values['m']:.2f} kg, really 1.4 kg")
    print("error over 4 s on held-out logs [rad]: " + ", ".join(f"{n} {e:.4f}" for n, e in errors.items()))
    return {**errors, "mass": corrected.dynamics.values["m"], "slope": float(slope)}


if __name__ == "__main__":
    main()
