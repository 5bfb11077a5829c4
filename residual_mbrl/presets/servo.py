"""A position servo with a pendulum load, on logs in the form of Rhoban's BAM."""

from __future__ import annotations

import math

from residual_mbrl.baselines import Baseline
from residual_mbrl.datasets import bam
from residual_mbrl.fitting import FitOptions
from residual_mbrl.identification import IdentifyOptions
from residual_mbrl.physics.servo import Servo
from residual_mbrl.presets.preset import Candidates, Preset
from residual_mbrl.residuals import Conservative, DryFriction, EffortActuator, Feature
from residual_mbrl.sensors import Column, Sensor

ERROR_SCALE = 0.03
"""Angle error [rad] at which the robust loss turns from quadratic to linear: about a model's error, far above the encoder's."""


def sensor(baseline: Baseline) -> Sensor:
    """Angle from the encoder; the rate that the servo reports lags by 20 ms and only serves first states."""
    return Sensor(space=baseline.space, columns=(Column(name="q", source="angle", noise=ERROR_SCALE, largest=4 * math.pi),
                                                 Column(name="dq", source="rate", noise=math.inf, largest=100.0)))


def candidates(baseline: Baseline, seed: int) -> Candidates:
    """Dry friction that learns Stribeck, load and switch-off; what the drive makes of its current; a potential."""
    friction = [Feature(source="rate", transform="abs"), Feature(source="rate", transform="slow", width=0.3),
                Feature(source="motor_torque", transform="abs"), Feature(source="load_torque", transform="abs"),
                Feature(source="enabled")]
    drive = [Feature(source="duty", transform="abs"), Feature(source="current", transform="abs"), Feature(source="rate", transform="abs")]
    return {"dry friction": [DryFriction(nv=1, features=friction, bound=0.05, hidden=(4,), seed=seed)],
            "actuator": [EffortActuator(signal="motor_torque", nv=1, features=drive, gain_bound=0.15, bias_bound=0.05, hidden=(4,),
                                        seed=seed)],
            "potential": [Conservative(nq=1, periodic=(0,), units=6, scale=0.05, seed=seed)]}


SERVO = Preset(name="servo", summary="position servo with a pendulum load (BAM logs, 5 ms)", read=bam.read, score=bam.score,
               baseline=Servo, sensor=sensor, candidates=candidates, leave_group_out=True,
               identify=IdentifyOptions(candidates=192, starts=3, iterations=25, every=2),
               fit=FitOptions(rounds=2, iterations=5, every=4, ridge=0.05, parameters=False))
