"""Kinds of plants that the command line knows by name."""

from residual_mbrl.presets.drive import DRIVE
from residual_mbrl.presets.pendulums import DOUBLE_PENDULUM, PENDULUM
from residual_mbrl.presets.preset import Preset
from residual_mbrl.presets.servo import SERVO

PRESETS: dict[str, Preset] = {p.name: p for p in (SERVO, DRIVE, PENDULUM, DOUBLE_PENDULUM)}

__all__ = ["PRESETS", "Preset"]
