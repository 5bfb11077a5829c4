"""Policies and values on disk: a folder of JSON and safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from residual_mbrl import files
from residual_mbrl.errors import ModelError
from residual_mbrl.policies.networks import GaussianPolicy, LinearPolicy, MLPPolicy, NetworkPolicy
from residual_mbrl.policies.value import Value
from residual_mbrl.residuals.features import Feature
from residual_mbrl.spaces import StateSpace

SCHEMA = 1
KINDS: Mapping[str, type[NetworkPolicy] | type[Value]] = {"mlp": MLPPolicy, "gaussian": GaussianPolicy, "linear": LinearPolicy,
                                                         "value": Value}
NAMES = ("policy.json", "weights.safetensors")


def save_policy(path: Path, policy: NetworkPolicy | Value, *, dt: float) -> None:
    """Write a folder ``policy.json``, ``weights.safetensors``, whole or not at all; an older one is replaced.

    Args:
        path: The folder.
        policy: A network policy or a value.
        dt: Seconds for which the policy's actions are held.

    Raises:
        ValueError: if the policy is of a kind that is not known here.
        OutputError: if it cannot be written.
    """
    kind = next((n for n, k in KINDS.items() if type(policy) is k), None)
    if kind is None:
        raise ValueError(f"save_policy: expected one of {[k.__name__ for k in KINDS.values()]}, received {type(policy).__name__}")
    described = {"schema": SCHEMA, "kind": kind, "dt": dt, "space": asdict(policy.space), "options": policy.describe()}
    with files.folder(path, replaces=NAMES) as folder:
        files.write_json(folder / NAMES[0], described)
        files.write_bytes(folder / NAMES[1], save_tensors({n: t.contiguous() for n, t in policy.state_dict().items()}))


def load_policy(path: Path, *, dt: float | None = None) -> NetworkPolicy | Value:
    """Read a folder that ``save_policy`` wrote.

    Args:
        path: The folder.
        dt: Seconds of a step that the caller counts on.

    Raises:
        ModelError: if it is damaged, of another schema, or made for another step.
    """
    path = Path(path)
    try:
        described: Any = files.load_json((path / NAMES[0]).read_bytes())
        tensors = load_tensors((path / NAMES[1]).read_bytes())
        if described["schema"] != SCHEMA:
            raise ModelError(f"{path}: expected schema {SCHEMA}, found {described['schema']}")
        entries: dict[str, Any] = {n: tuple(tuple(y) if isinstance(y, list) else y for y in x) if isinstance(x, list) else x
                                   for n, x in described["space"].items()}
        space, options = StateSpace(**entries), dict(described["options"])
        features = [Feature(**f) for f in options.pop("features")]
        kind = KINDS[described["kind"]]
        if kind is LinearPolicy:
            options.pop("hidden")
        made = kind(space=space, features=features, **options)
        made.load_state_dict(tensors)
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{path}: not a saved policy ({error})") from error
    if dt is not None and abs(described["dt"] - dt) > 1e-9 * dt:
        raise ModelError(f"{path}: the policy holds an action for {described['dt']:g} s, expected {dt:g} s")
    return made.to(next(iter(tensors.values())).dtype) if _one_dtype(tensors) else made


def _one_dtype(tensors: Mapping[str, torch.Tensor]) -> bool:
    return len({t.dtype for t in tensors.values()}) == 1

