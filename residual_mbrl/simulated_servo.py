"""A simulated servo whose load, friction and sag nobody told the model: logs in the form of the servo preset, without hardware."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from residual_mbrl import files
from residual_mbrl.baselines import Baseline
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.fitting import FitOptions
from residual_mbrl.identification import IdentifyOptions
from residual_mbrl.physics.servo import PARAMETERS, Servo
from residual_mbrl.presets import PRESETS
from residual_mbrl.presets.preset import Candidates
from residual_mbrl.rollouts import rollout

Array = NDArray[np.float64]

TRUTH = {"load_mass": 0.49 * 1.3, "armature": 0.0018, "angle_offset": 0.013, "viscous": 0.0066, "coulomb": 0.008,
         "motor_friction": 0.09, "load_friction": 0.15, "load_friction_off": 0.03, "stribeck_friction": 0.2, "supply_resistance": 2.0}
"""What the simulated servo really is: heavier load, load-dependent friction and a supply that sags, none of it in the model."""

ENCODER_STEP = 2 * np.pi / 4096
PARTS = {"train": ("sine_g200", "steps_g200", "chirp_g400", "drop_g400", "steps_g800"), "val": ("chirp_g200", "sine_g800"),
         "test": ("sine_g400", "steps_g400")}
SECONDS = 3.0


def baseline() -> Servo:
    """Make a servo model as a data sheet gives it: motor known, load guessed, plain friction, no sag."""
    unknown = ("motor_friction", "load_friction", "load_friction_off", "stribeck_friction", "supply_resistance", "stribeck_rate")
    fixed = {n: {"nominal": 0.0, "free": False} for n in unknown if n != "stribeck_rate"}
    known = {n: {"free": False} for n in ("torque_constant", "resistance", "stribeck_rate")}
    return Servo(PARAMETERS.replaced(**fixed, **known, load_mass={"free": True}, coulomb={"nominal": 0.03}))


def candidates(model: Baseline, seed: int) -> Candidates:
    """Offer friction and drive residuals of the servo preset, and both together."""
    offered = PRESETS["servo"].candidates(model, seed)
    friction, drive = offered["dry friction"], offered["actuator"]
    return {"dry friction": friction, "actuator": drive, "dry friction and actuator": [*friction, *drive]}


SIMULATED_SERVO = replace(
    PRESETS["servo"], name="simulated_servo", summary="simulated servo with unknown load, friction and sag", baseline=baseline,
    candidates=candidates, leave_group_out=False, identify=IdentifyOptions(candidates=32, starts=1, iterations=20, every=2),
    fit=FitOptions(rounds=2, iterations=6, every=4, ridge=0.02, parameters=True))


def simulate_logs(folder: Path, seed: int = 0) -> None:
    """Write logs of the simulated servo and their split, in the form of the servo preset.

    Args:
        folder: Where to.
        seed: Seed of the encoder's noise.
    """
    plant = ResidualDynamics(Servo(), values=TRUTH)
    rng = np.random.default_rng(seed)
    time = plant.dt * np.arange(round(SECONDS / plant.dt) + 1, dtype=np.float64)
    for name in (n for names in PARTS.values() for n in names):
        shape, gain = name.split("_g")
        goal, enabled = _command(shape, time), np.where((shape == "drop") & (time > 1.5), 0.0, 1.0)
        actions = np.stack([goal, enabled, np.full(len(time), float(gain))], 1)
        states = rollout(plant, torch.zeros(2, dtype=torch.float64), torch.tensor(actions[:-1])).numpy()
        angle = np.round((states[:, 0] + 1e-3 * rng.standard_normal(len(time))) / ENCODER_STEP) * ENCODER_STEP
        rate = states[:, 1] + 0.02 * rng.standard_normal(len(time))
        np.savez(folder / f"{name}.npz", t=time, q=angle, dq=rate, q_goal=goal, torque_on=enabled, kp=float(gain))
    files.write_text(folder / "split.json", json.dumps(PARTS))


def _command(shape: str, time: Array) -> Array:
    if shape == "sine":
        return np.asarray(1.2 * np.sin(2.5 * time) + 0.4 * np.sin(7.0 * time))
    if shape == "chirp":
        return np.asarray(0.9 * np.sin((1.0 + 1.5 * time) * time))
    if shape == "drop":
        return np.full_like(time, 1.6) * np.minimum(time / 0.8, 1.0)
    steps: Array = 1.4 * np.sign(np.sin(2 * np.pi * time / 1.7)) * (0.5 + 0.5 * (time % 3.4 < 1.7))
    return steps
