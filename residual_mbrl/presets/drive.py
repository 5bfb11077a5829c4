"""A motor-driven linear axis, on the EMPS record."""

from __future__ import annotations

import math

from residual_mbrl.baselines import Baseline
from residual_mbrl.datasets import emps
from residual_mbrl.effects import Drift
from residual_mbrl.fitting import FitOptions
from residual_mbrl.identification import IdentifyOptions
from residual_mbrl.physics.linear_drive import LinearDrive
from residual_mbrl.presets.preset import Candidates, Preset
from residual_mbrl.residuals import DryFriction, Feature
from residual_mbrl.sensors import Column, Sensor


def sensor(baseline: Baseline) -> Sensor:
    """Position from the encoder; the speed is differentiated from it and only serves first states."""
    return Sensor(space=baseline.space, columns=(Column(name="position", source="position", noise=2e-4, largest=10.0),
                                                 Column(name="speed", source="speed", noise=math.inf, largest=10.0)))


def candidates(baseline: Baseline, seed: int) -> Candidates:
    """Dry friction along the screw: a table over position that is common to both directions, or one for each."""
    along = Feature(source="position", transform="hats", knots=8)
    directed = Feature(source="position", transform="hats", knots=8, direction="speed")
    slow = [Feature(source="speed", transform="slow", width=0.01), Feature(source="speed", transform="slow", width=0.01, direction="speed")]
    return {"friction along the axis": [DryFriction(nv=1, features=[along], bound=3.0, hidden=(), seed=seed)],
            "friction along the axis, by direction": [DryFriction(nv=1, features=[along, directed], bound=3.0, hidden=(), seed=seed)],
            "Stribeck friction by direction": [DryFriction(nv=1, features=slow, bound=3.0, hidden=(), seed=seed)]}


DRIVE = Preset(name="drive", summary="linear axis on a ball screw (EMPS record, 1 ms)", read=emps.read, score=emps.score,
               baseline=LinearDrive, sensor=sensor, candidates=candidates,
               disturbance={"force": (Drift(lower=-0.5, upper=0.5, prior_std=0.02),)}, horizon=emps.WINDOW, leave_group_out=True,
               identify=IdentifyOptions(candidates=1, starts=1, iterations=20, every=10, loss="linear"),
               fit=FitOptions(rounds=2, iterations=6, every=10, ridge=0.1, loss="linear"))
