"""What a calibration needs to know about a kind of plant, in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from residual_mbrl.artifact import Calibration
from residual_mbrl.baselines import Baseline
from residual_mbrl.datasets.log_set import LogSet, Part
from residual_mbrl.effects import Effect
from residual_mbrl.fitting import FitOptions
from residual_mbrl.identification import IdentifyOptions
from residual_mbrl.metrics import Metric
from residual_mbrl.model import Model
from residual_mbrl.residuals import Residual
from residual_mbrl.sensors import Sensor

Candidates = Mapping[str, Sequence[Residual]]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A kind of plant: how to read its logs, model it, correct it and score it.

    Args:
        name: Name on the command line.
        summary: One line on the plant.
        read: Reads parts of a data folder.
        score: Scores a model on a part by the data set's own metric; None where it has none.
        baseline: Makes the known model.
        sensor: Makes the sensor model of the logs.
        candidates: Makes the residuals to choose from, by name, from a baseline and a seed; validation chooses.
        disturbance: Effects on commands that are estimated together with the residual (a slow drift). Exogenous, not
            passive: reported as a disturbance.
        horizon: Steps of training windows; None takes logs whole.
        leave_group_out: Whether the residual is chosen by leaving out one group of logs at a time, rather than by the
            validation part.
        refit: Whether train and validation data are joined for the final fit.
        identify: Options of identification.
        fit: Options of residual fitting.
        figures: Makes further figures of the report from the calibration, by file stem, with their captions.
        usage: Arguments of ``residual-mbrl calibrate`` that give this plant and its logs; ``NAME --data FOLDER`` where empty.
    """

    name: str
    summary: str
    read: Callable[[Path, Sequence[Part]], LogSet]
    baseline: Callable[[], Baseline]
    sensor: Callable[[Baseline], Sensor]
    candidates: Callable[[Baseline, int], Candidates]
    score: Callable[[Model, Path, Part, str], list[Metric]] | None = None
    disturbance: Mapping[str, Sequence[Effect]] = field(default_factory=dict)
    horizon: int | None = None
    leave_group_out: bool = False
    refit: bool = True
    identify: IdentifyOptions = field(default_factory=IdentifyOptions)
    fit: FitOptions = field(default_factory=FitOptions)
    figures: Callable[[Calibration], Mapping[str, tuple[Figure, str]]] | None = None
    usage: str = ""
