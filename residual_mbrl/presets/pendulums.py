"""The pendulum and the double pendulum of Schmidt & Lipson, with the filters that their columns went through."""

from __future__ import annotations

import math

from residual_mbrl.baselines import Baseline
from residual_mbrl.datasets import schmidt_lipson
from residual_mbrl.effects import AngleHarmonic, Bias, Differentiated
from residual_mbrl.fitting import FitOptions
from residual_mbrl.identification import IdentifyOptions
from residual_mbrl.physics.double_pendulum import PARAMETERS as DOUBLE_PARAMETERS
from residual_mbrl.physics.double_pendulum import DoublePendulum
from residual_mbrl.physics.pendulum import PARAMETERS as SINGLE_PARAMETERS
from residual_mbrl.physics.pendulum import Pendulum
from residual_mbrl.presets.preset import Candidates, Preset
from residual_mbrl.residuals import Conservative, Dissipative, Feature
from residual_mbrl.sensors import Column, Sensor


def pendulum() -> Pendulum:
    """Make a pendulum of unit inertia in the file's unit of time; its masses and lengths are unknown."""
    parameters = SINGLE_PARAMETERS.replaced(
        inertia={"free": False}, gravity_moment={"nominal": 1.28, "lower": 0.5, "upper": 3.0},
        viscous={"upper": 0.2, "prior_std": 0.05}, coulomb={"free": False},
        torque_offset={"lower": -0.2, "upper": 0.2, "prior_std": 0.05})
    return Pendulum(parameters, dt=schmidt_lipson.SINGLE_STEP)


def pendulum_sensor(baseline: Baseline) -> Sensor:
    """Tracked angle, and an omega that is its quadratic derivative over nine frames, read one frame before their middle.

    The window reproduces the column to rounding (6e-8) wherever no frame is missing.
    """
    omega = Differentiated(order=1, window=9, polynomial=2, position=3)
    return Sensor(space=baseline.space, columns=(Column(name="theta", source="angle", noise=0.01),
                                                 Column(name="omega", source="theta", noise=0.01, effects=(omega,))))


def pendulum_candidates(baseline: Baseline, seed: int) -> Candidates:
    """Damping that depends on rate; a small periodic potential."""
    return {"damping": [Dissipative(nv=1, features=[Feature(source="rate", transform="abs")], bound=0.05, hidden=(4,), seed=seed)],
            "potential": [Conservative(nq=1, periodic=(0,), units=4, scale=0.05, seed=seed)]}


def double_pendulum() -> DoublePendulum:
    """Make a double pendulum whose first inertia is one: without a measured torque only ratios show."""
    return DoublePendulum(DOUBLE_PARAMETERS.replaced(inertia1={"free": False}), dt=schmidt_lipson.DOUBLE_STEP, substeps=2)


def double_pendulum_sensor(baseline: Baseline) -> Sensor:
    """Tracked angles with offsets and, on link 2, an error of four periods a turn; omega and alpha as the file has them.

    omega is the quadratic derivative of theta over five frames and alpha the same of omega: they reproduce the columns to
    rounding, so they say nothing that theta does not and are not fitted.
    """
    derivative = (Differentiated(order=1, window=5, polynomial=2),)
    offset = Bias(lower=-0.03, upper=0.03, prior_std=0.01)
    four = tuple(AngleHarmonic(order=4, phase=phase, prior_std=0.001) for phase in ("cos", "sin"))
    return Sensor(space=baseline.space, columns=(
        Column(name="theta1", source="angle1", noise=0.001, effects=(offset,)),
        Column(name="theta2", source="angle2", noise=0.0015, effects=(offset, *four)),
        *(Column(name=f"omega{i}", source=f"theta{i}", noise=math.inf, effects=derivative) for i in (1, 2)),
        *(Column(name=f"alpha{i}", source=f"omega{i}", noise=math.inf, effects=derivative) for i in (1, 2))))


def double_pendulum_candidates(baseline: Baseline, seed: int) -> Candidates:
    """Joint damping that depends on the rates; a small periodic potential."""
    rates = [Feature(source="velocity", transform="abs")]
    return {"damping": [Dissipative(nv=2, features=rates, sizes=[2], bound=0.05, hidden=(4,), seed=seed)],
            "potential": [Conservative(nq=2, periodic=(0, 1), units=6, scale=0.5, seed=seed)]}


PENDULUM = Preset(name="pendulum", summary="tracked pendulum (Schmidt & Lipson)", read=schmidt_lipson.read_single,
                  score=schmidt_lipson.score_single, baseline=pendulum, sensor=pendulum_sensor, candidates=pendulum_candidates,
                  horizon=1, identify=IdentifyOptions(candidates=16, starts=1, iterations=20, loss="linear"),
                  fit=FitOptions(rounds=2, iterations=6, loss="linear", ridge=0.05))

DOUBLE_PENDULUM = Preset(name="double_pendulum", summary="tracked double pendulum (Schmidt & Lipson)", read=schmidt_lipson.read_double,
                         score=schmidt_lipson.score_double, baseline=double_pendulum, sensor=double_pendulum_sensor,
                         candidates=double_pendulum_candidates, horizon=schmidt_lipson.HORIZONS[-1],
                         identify=IdentifyOptions(candidates=16, starts=1, iterations=20, horizons=(8,)),
                         fit=FitOptions(rounds=2, iterations=5, ridge=0.05, parameters=False))
