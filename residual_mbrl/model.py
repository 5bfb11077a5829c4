"""A model that predicts what a log holds: dynamics seen through a sensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.observation import Prediction, observe
from residual_mbrl.rollouts import rollout
from residual_mbrl.sensors import Sensor
from residual_mbrl.windows import Windows


@dataclass(frozen=True, kw_only=True)
class Model:
    """Dynamics, the sensor that shows them, and the identified values of the sensor's effects."""

    dynamics: ResidualDynamics
    sensor: Sensor
    sensor_values: Mapping[str, float] = field(default_factory=dict)

    def values(self, like: Tensor) -> dict[str, Tensor]:
        """Return the sensor's parameter values as tensors like ``like``."""
        return {n: torch.tensor(x, dtype=like.dtype, device=like.device) for n, x in self.sensor_values.items()}

    def parts(self, windows: Windows) -> list[tuple[ResidualDynamics, slice]]:
        """Return the dynamics that predict the windows, each with the rows of ``windows`` that it predicts, in their order."""
        return [(self.dynamics, slice(0, len(windows)))]

    def predict(self, windows: Windows) -> Prediction:
        """Simulate each window from its own first recorded sample, without gradients."""
        def roll(state: Tensor, actions: Tensor, lead: Tensor) -> Tensor:
            return rollout(self.dynamics, state, actions, lead=lead)

        with torch.no_grad():
            return observe(roll, self.sensor, windows, self.values(windows.measurements))
