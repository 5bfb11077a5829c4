"""Identified parameters written back into the user's MJCF."""

from __future__ import annotations

from pathlib import Path

from residual_mbrl import files
from residual_mbrl.artifact import Calibration
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import ModelError
from residual_mbrl.physics.mjcf_text import write_values
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator


def export_mjcf(calibration: Calibration | ResidualDynamics, path: Path) -> list[str]:
    """Write the MJCF with the identified values; residuals stay behind, see ``MujocoPlugin``.

    Files that the text names (meshes, textures) are written beside it, at the places where it names them.

    Args:
        calibration: A calibration of a MuJoCo model (its identified model is written), or dynamics.
        path: The MJCF to write.

    Returns:
        Names of the parameters that were written.

    Raises:
        ModelError: if the baseline is no MuJoCo model with text, or a parameter has no place in it.
        OutputError: if it cannot be written.
    """
    dynamics = calibration.identified.dynamics if isinstance(calibration, Calibration) else calibration
    baseline = dynamics.baseline
    if not isinstance(baseline, MujocoSimulator):
        raise ModelError(f"export: expected a calibration of a MuJoCo model, received one of {type(baseline).__name__}")
    changed = [n for n, x in dynamics.values.items() if x != baseline.parameters[n].nominal]
    text = write_values(baseline.file, baseline.model_with(dynamics.values), changed)
    for name, content in baseline.file.assets.items():
        if not name.endswith(".xml"):
            target = path.parent / name
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                files.write_bytes(target, content)
    files.write_text(path, text)
    return changed
