"""The shipped cube with what is identified of it: a few numbers of one shape and one friction law for its eight corners."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from residual_mbrl.baselines import Parameter, Parameters
from residual_mbrl.datasets.cube import HALF_WIDTH
from residual_mbrl.models import CUBE
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator

FRICTION = "friction:floor.slide"
RADIUS = 0.002
"""Of the shipped model's corners [m]."""

SIGNS = tuple((x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1))
"""Where corner k of the shipped model is."""

SHAPE = (*(Parameter(name=f"half_width.{a}", nominal=HALF_WIDTH, lower=0.045, upper=0.06, unit="m", prior_std=3e-4) for a in "xyz"),
         *(Parameter(name=f"offset.{a}", nominal=0.0, lower=-0.005, upper=0.005, unit="m", prior_std=3e-4) for a in "xyz"),
         Parameter(name="corner_radius", nominal=RADIUS, lower=1e-4, upper=0.02, unit="m", prior_std=1.5e-3))

LAW = (Parameter(name="impact_friction", nominal=0.15, lower=0.05, upper=0.4, prior_std=0.008),
       Parameter(name="impact_speed", nominal=0.5, lower=0.05, upper=5.0, unit="m/s", prior_std=0.1),
       Parameter(name="depth_rate", nominal=100.0, lower=0.0, upper=500.0, unit="1/s", prior_std=30.0))
"""The friction law's further numbers, see ``toss_rollout.load_friction``; a model without them has one friction."""

SPREADS = {
    FRICTION: 0.02, "solref:floor.timeconst": 0.0015, "solref:floor.dampratio": 0.08, "solimp:floor.dmin": 0.03, "solimp:floor.dmax": 0.02,
    "solimp:floor.width": 0.0005, **dict.fromkeys((f"pseudo_inertia:cube.d{k}" for k in (1, 2, 3)), 0.03),
    **dict.fromkeys((f"pseudo_inertia:cube.t{k}" for k in (1, 2, 3)), 0.0004), "pos:floor.z": 0.0004,
    "gravity.x": 0.02, "gravity.y": 0.02, "gravity.z": 0.02, "opt.impratio": 4.0}
"""What is identified of the engine's own numbers, and a typical change of each.

A table out of level is gravity out of the vertical; a wrong clock is gravity times the square of its scale, for everything else
in the model that has a time (the contact's time constant, the law's speed) is free. Contact of a rigid body with a plane does not
depend on its mass.
"""

BOUNDS = {"solref:floor.timeconst": (0.005, 0.1), "solref:floor.dampratio": (0.1, 10.0), "solimp:floor.dmin": (0.3, 0.98),
          "solimp:floor.dmax": (0.5, 0.99), "solimp:floor.width": (1e-5, 0.01), "opt.impratio": (0.5, 100.0)}


def build() -> MujocoSimulator:
    """Return the shipped model, one step a row of the log; in one thread, for steps too short to be shared out."""
    found = MujocoSimulator(CUBE, [*SPREADS, "pos:corner*", "size:corner*"]).parameters
    chosen = []
    for p in found:
        lower, upper = BOUNDS.get(p.name, (p.lower, p.upper))
        chosen.append(replace(p, lower=lower, upper=upper, prior_std=SPREADS.get(p.name), free=p.name in SPREADS))
    return MujocoSimulator(CUBE, Parameters(*chosen), dt=0.0068, threads=1)


def searched(simulator: MujocoSimulator) -> list[Parameter]:
    """Return what a search may change."""
    return [*simulator.parameters.free(), *SHAPE, *LAW]


def expand(simulator: MujocoSimulator, values: Mapping[str, float]) -> dict[str, float]:
    """Return values of the engine's parameters alone: the shape is written to every corner.

    Args:
        simulator: The model.
        values: Of ``searched``; nominal where missing.
    """
    shape = {p.name: values.get(p.name, p.nominal) for p in SHAPE}
    found = {**simulator.parameters.nominal(), **{n: x for n, x in values.items() if n in SPREADS}}
    for k, signs in enumerate(SIGNS):
        found[f"size:corner{k}.0"] = shape["corner_radius"]
        for a, sign in zip("xyz", signs, strict=True):
            found[f"pos:corner{k}.{a}"] = sign * (shape[f"half_width.{a}"] - shape["corner_radius"]) + shape[f"offset.{a}"]
    return found
