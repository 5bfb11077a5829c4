"""Where an optimisation stands, as tensors in one file that is whole or absent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from residual_mbrl.errors import ModelError
from residual_mbrl.files import dump_json, load_json, write_bytes


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], fingerprint: str) -> None:
    """Write tensors and JSON, whole or not at all.

    Args:
        path: The file.
        tensors: By name.
        meta: What JSON holds.
        fingerprint: Identifies the problem that they belong to.
    """
    own = {n: t.detach().contiguous().clone() for n, t in tensors.items()}
    write_bytes(path, save(own, {"meta": dump_json(dict(meta), indent=None), "fingerprint": fingerprint}))


def load_tensors(path: Path, fingerprint: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return what ``save_tensors`` wrote; None where there is nothing.

    Raises:
        ModelError: if the file is damaged or belongs to another problem.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            described = file.metadata()
            tensors = {n: file.get_tensor(n) for n in file.keys()}  # no mapping
        owner, meta = described["fingerprint"], load_json(described["meta"])
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path}: not a checkpoint ({error}); delete it to start anew") from error
    if owner != fingerprint or not isinstance(meta, dict):
        raise ModelError(f"{path}: checkpoint of another model, task or options; delete it to start anew")
    return tensors, meta


def optimizer_tensors(name: str, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return a module's weights and what its optimiser remembers of them, by name."""
    found = {f"{name}.{n}": t for n, t in module.state_dict().items()}
    for n, p in module.named_parameters():
        for key, what in optimizer.state.get(p, {}).items():
            found[f"{name}.adam.{key}.{n}"] = torch.as_tensor(what)
    return found


def restore(name: str, module: nn.Module, optimizer: torch.optim.Optimizer | None, tensors: Mapping[str, Tensor]) -> None:
    """Set a module and its optimiser to what ``optimizer_tensors`` returned."""
    module.load_state_dict({n: tensors[f"{name}.{n}"] for n in module.state_dict()})
    if optimizer is None:
        return
    for n, p in module.named_parameters():
        prefix = f"{name}.adam."
        keys = {k.removeprefix(prefix).split(".", 1)[0] for k in tensors if k.startswith(prefix) and k.endswith(f".{n}")}
        if keys:
            optimizer.state[p] = {k: tensors[f"{prefix}{k}.{n}"].clone() for k in keys}
