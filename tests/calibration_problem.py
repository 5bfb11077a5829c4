"""A calibration of a few seconds: short simulated servo logs, and the servo preset with hardly any search."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np

from residual_mbrl import fold_fits
from residual_mbrl import simulated_servo as servo
from residual_mbrl.fitting import FitOptions
from residual_mbrl.identification import IdentifyOptions
from residual_mbrl.presets.preset import Preset
from residual_mbrl.presets.servo import SERVO

TINY: Preset = replace(
    servo.SIMULATED_SERVO, name="servo",
    candidates=lambda baseline, seed: {"dry friction": SERVO.candidates(baseline, seed)["dry friction"]},
    identify=IdentifyOptions(candidates=4, starts=2, iterations=3, every=4), fit=FitOptions(rounds=1, iterations=1, every=8))
SECONDS = 0.5


@contextmanager
def quick() -> Iterator[None]:
    """Shorten what the preset does not say: simulated logs, and the training of the ablation without a baseline."""
    with patch.object(servo, "SECONDS", SECONDS), patch.object(fold_fits, "NETWORK", replace(fold_fits.NETWORK, rounds=1, iterations=1)):
        yield


def write_logs(folder: Path, seed: int = 0) -> Path:
    """Write short simulated servo logs into a new folder."""
    folder.mkdir(parents=True)
    with quick():
        servo.simulate_logs(folder, seed)
    return folder


def change_log(folder: Path, name: str, **changes: np.ndarray | None) -> None:
    """Replace arrays of one log; leave out those that are None."""
    with np.load(folder / f"{name}.npz") as file:
        arrays = {**{n: file[n] for n in file.files}, **changes}
    np.savez(folder / f"{name}.npz", **{n: a for n, a in arrays.items() if a is not None})  # type: ignore[arg-type]


def column(folder: Path, log: str, name: str) -> np.ndarray:
    """Return a copy of one array of a log."""
    with np.load(folder / f"{log}.npz") as file:
        return np.array(file[name])


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def values(folder: Path) -> dict[str, object]:
    """Return calibration.json without what depends on the machine and its clock."""
    document = json.loads((folder / "calibration.json").read_text())
    return {n: x for n, x in document.items() if n not in ("environment", "checksum")}


def fit_for_minutes(*_: object) -> None:
    """Stand in for the fits of a fold, in a worker of its own."""
    time.sleep(300)
