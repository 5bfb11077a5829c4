"""The main job in Python: what ``residual-mbrl calibrate servo --data FOLDER --out OUT`` does.

With RESIDUAL_MBRL_DATA set it calibrates on the servo logs in its folder bam_xl330; without, on simulated ones. Either takes minutes.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import tyro

from residual_mbrl.artifact import METRICS, read_metrics
from residual_mbrl.calibration import calibrate
from residual_mbrl.identification import IdentifyOptions
from residual_mbrl.presets import PRESETS, Preset
from residual_mbrl.simulated_servo import SIMULATED_SERVO, simulate_logs


def run(preset: Preset, data: Path, out: Path, *, residual: bool = True) -> dict[str, float]:
    """Calibrate, and return each model's error on logs held out [rad]; ``out`` then holds the artefact and report.html."""
    calibration = calibrate(preset, data, out, residual=residual, seed=0)
    print(calibration.notes)
    for e in calibration.estimates:
        low, high = e["interval"]  # type: ignore[misc]
        print(f"{e['name']:18} {e['nominal']:8.4g} -> {e['value']:8.4g} {e['unit']}  (95 % interval {low:.4g} to {high:.4g})")
    for combination in calibration.unidentifiable:
        print(f"not determined by these logs: {combination}")
    return {m.model: m.value for m in read_metrics(out / METRICS)["metrics"] if m.metric == "mae_q"}


def main(data: Path | None = None, out: Path = Path("servo_calibration"), quick: bool = False) -> dict[str, float]:
    """Calibrate a servo.

    Args:
        data: Folder of logs; see above where it is not given.
        out: Folder of the artefact.
        quick: Only identify, on simulated logs and with a short search, to see that everything runs.
    """
    root = os.environ.get("RESIDUAL_MBRL_DATA")
    with tempfile.TemporaryDirectory() as simulated:
        preset = PRESETS["servo"]
        if data is None and root and not quick:
            data = Path(root) / "bam_xl330"
        elif data is None:
            data, preset = Path(simulated), SIMULATED_SERVO
            simulate_logs(data)
        if quick:
            preset = replace(preset, identify=IdentifyOptions(candidates=4, starts=1, iterations=3, every=4))
        errors = run(preset, data, out, residual=not quick)
    if errors:
        print("mean angle error on held-out logs [rad]: " + ", ".join(f"{n} {e:.4f}" for n, e in errors.items()))
        print("Smaller is better. nominal is the data sheet; network has no physics; residual is without identification.")
    print(f"the verdict in words, with figures: {out / 'report.html'}")
    return errors


if __name__ == "__main__":
    tyro.cli(main)
