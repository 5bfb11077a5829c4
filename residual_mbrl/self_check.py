"""Synthetic-truth check of an identification: does the same search find the parameters of a plant that is known?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.effects import Quantisation
from residual_mbrl.identification import Identification, IdentifyOptions, identify
from residual_mbrl.model import Model
from residual_mbrl.sensors import Sensor
from residual_mbrl.windows import Windows


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """How well one parameter was found again.

    Args:
        name: Name of the parameter.
        truth: Value that the synthetic logs were made with.
        found: Value that the search found on them.
        scale: The parameter's typical change, in its unit.
        unit: Unit of all three.
    """

    name: str
    truth: float
    found: float
    scale: float
    unit: str

    @property
    def error(self) -> float:
        """Error in scaled units."""
        return abs(self.found - self.truth) / self.scale


def synthetic_windows(model: Model, windows: Windows, seed: int = 0) -> Windows:
    """Return windows with the same commands and gaps whose measurements are the model's, with the sensor's noise and rounding.

    Args:
        model: The plant of the synthetic logs.
        windows: Where commands, first samples, times and gaps come from.
        seed: Seed of the noise.
    """
    predicted = model.predict(windows).measurements
    noise = torch.tensor([c.noise if c.noise < float("inf") else 0.0 for c in model.sensor.columns], dtype=predicted.dtype)
    noisy = predicted + noise * torch.randn(predicted.shape, dtype=predicted.dtype, generator=torch.Generator().manual_seed(seed))
    noisy[:, 0] = predicted[:, 0]  # windows start from their first sample: noise there would be a different plant state
    columns = []
    for column, values in zip(model.sensor.columns, noisy.unbind(-1), strict=True):
        for effect in column.effects:
            values = effect.round(values) if isinstance(effect, Quantisation) else values  # noqa: PLW2901
        columns.append(values)
    return replace(windows, measurements=torch.stack(columns, -1) * windows.recorded)


def recover(found: Identification, sensor: Sensor, windows: Windows, options: IdentifyOptions, seed: int = 0) -> tuple[Recovery, ...]:
    """Identify a plant that is known: logs simulated from an identification, searched from the nominal values as before.

    A search that cannot find its own answer again, on logs that the model explains but for noise, cannot be trusted on real
    ones: too few starts, too short windows, or parameters that the commands do not excite.

    Args:
        found: The identification; its model becomes the truth.
        sensor: The sensor it was made with.
        windows: The windows it was made on.
        options: The options it was made with; screening is kept, one start is refined.
        seed: Seed of the noise.

    Returns:
        One entry per identified parameter.
    """
    truth = Model(dynamics=found.dynamics, sensor=sensor, sensor_values=found.sensor_values)
    synthetic = synthetic_windows(truth, windows, seed)
    nominal = ResidualDynamics(found.dynamics.baseline).with_residuals(list(found.dynamics.residuals))  # type: ignore[arg-type]
    again = identify(nominal, sensor, synthetic, replace(options, starts=1))
    values = {**again.dynamics.values, **again.sensor_values}
    return tuple(Recovery(name=e.parameter.name, truth=e.value, found=values[e.parameter.name], scale=e.parameter.scale,
                          unit=e.parameter.unit) for e in found.estimates)
