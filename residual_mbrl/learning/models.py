"""Models of a learning run on disk: parameter values as JSON, weights and normalisers as safetensors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from residual_mbrl import files
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import ModelError

NAMES = ("values.json", "weights.safetensors")


def save_model(path: Path, dynamics: ResidualDynamics) -> None:
    """Write a folder with all that was learned of a model, whole or not at all."""
    with files.folder(path, replaces=NAMES) as folder:
        files.write_json(folder / NAMES[0], dynamics.values)
        files.write_bytes(folder / NAMES[1], save({n: t.detach().contiguous() for n, t in dynamics.state_dict().items()}))


def load_model(path: Path, like: ResidualDynamics) -> ResidualDynamics:
    """Return a model of the same structure with what was learned; the given one is not changed.

    Raises:
        ModelError: if a file is damaged or belongs to another structure.
    """
    try:
        values: Any = files.load_json((path / NAMES[0]).read_bytes())
        made = ResidualDynamics(like.baseline, copy.deepcopy(like).corrections, values)
        made.load_state_dict(load((path / NAMES[1]).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{path}: not a model of this structure ({error})") from error
    return made
