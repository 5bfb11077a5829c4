"""Parameters to and from ``mujoco.sysid``, MuJoCo's own toolbox for identification, and the YAML files that it keeps them in.

Each of our parameters is one number. Theirs may be arrays: ``name`` with two entries is ``name[0]`` and ``name[1]`` here. They
know no units, priors or descriptions; on the way back those come from the parameters that they belong to.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from residual_mbrl import files
from residual_mbrl.baselines import Parameter, Parameters
from residual_mbrl.errors import ModelError

Writer = Callable[[Any, Mapping[str, float]], object]
"""Writes values by parameter name into an ``MjSpec``."""


def to_sysid(parameters: Parameters, values: Mapping[str, float] | None = None, *, write: Writer | None = None) -> Any:
    """Return a ``mujoco.sysid.ParameterDict``.

    Args:
        parameters: Ours; those that are not free are frozen there.
        values: Identified values by name; nominal where missing.
        write: Writes values into a spec; becomes the modifier with which their toolbox applies each parameter.

    Raises:
        ModelError: if the toolbox is not installed, or a value belongs to no parameter.
    """
    sysid = _load_toolbox()
    given = dict(values or {})
    unknown = sorted(given.keys() - set(parameters.names))
    if unknown:
        raise ModelError(f"to_sysid: no parameter named {unknown[0]!r}; there are {parameters.names}")
    found = sysid.ParameterDict()
    for p in parameters:
        theirs = sysid.Parameter(p.name, float(p.nominal), float(p.lower), float(p.upper), frozen=not p.free,
                                 modifier=None if write is None else _modifier(write))
        theirs.update_from_vector(np.array([given.get(p.name, p.nominal)], dtype=np.float64))
        found.add(theirs)
    return found


def from_sysid(theirs: Any, like: Parameters | None = None) -> tuple[Parameters, dict[str, float]]:
    """Return a ``mujoco.sysid.ParameterDict`` as our parameters, and their current values by name.

    Args:
        theirs: The dictionary.
        like: Parameters whose units, priors and descriptions count where names agree.

    Raises:
        ModelError: naming the parameter, if its nominal value lies outside its bounds or they are no interval.
    """
    parameters: list[Parameter] = []
    values: dict[str, float] = {}
    for name, p in theirs.items():
        lower, upper = p.get_bounds()
        rows = zip(_names(name, p.size), p.as_nominal_vector(), lower, upper, p.as_vector(), strict=True)
        for own, nominal, low, high, value in rows:
            known = like[own] if like is not None and own in like.names else None
            try:
                parameters.append(Parameter(
                    name=own, nominal=float(nominal), lower=float(low), upper=float(high), free=not p.frozen,
                    unit="1" if known is None else known.unit, prior_std=None if known is None else known.prior_std,
                    description="" if known is None else known.description))
            except ValueError as e:
                raise ModelError(f"mujoco.sysid: {e}") from e
            values[own] = float(value)
    return Parameters(*parameters), values


def update_sysid(theirs: Any, values: Mapping[str, float]) -> None:
    """Write values into an existing ``mujoco.sysid.ParameterDict``, which keeps its shapes, bounds and modifiers.

    Args:
        theirs: The dictionary; changed in place.
        values: By name, ``name[i]`` for an entry of an array.

    Raises:
        ModelError: if a name is not in it; nothing is changed then.
    """
    known = {own: (p, i) for name, p in theirs.items() for i, own in enumerate(_names(name, p.size))}
    unknown = sorted(values.keys() - known.keys())
    if unknown:
        raise ModelError(f"mujoco.sysid: no parameter named {unknown[0]!r}; there are {list(known)}")
    for own, value in values.items():
        p, i = known[own]
        vector = np.array(p.as_vector(), dtype=np.float64)
        vector[i] = value
        p.update_from_vector(vector)


def save_sysid(path: Path, parameters: Parameters, values: Mapping[str, float] | None = None) -> None:
    """Write the YAML file that ``mujoco.sysid.ParameterDict.load_from_disk`` reads.

    Args:
        path: File, replaced atomically.
        parameters: Ours.
        values: Identified values by name; nominal where missing.

    Raises:
        ModelError: if the toolbox is not installed.
        OutputError: if the file cannot be written.
    """
    theirs = to_sysid(parameters, values)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "parameters.yaml"
        theirs.save_to_disk(written)
        files.write_bytes(path, written.read_bytes())


def load_sysid(path: Path, like: Parameters | None = None) -> tuple[Parameters, dict[str, float]]:
    """Read a YAML file of ``mujoco.sysid``; see ``from_sysid``.

    Raises:
        ModelError: if the toolbox is not installed, or the file holds no parameters.
    """
    sysid = _load_toolbox()
    try:
        theirs = sysid.ParameterDict.load_from_disk(path)
        return from_sysid(theirs, like)
    except ModelError:
        raise
    except OSError as e:
        raise ModelError(f"{path}: cannot be read ({e.strerror})") from e
    except Exception as e:  # whatever YAML and their reader raise over a file that is none of theirs
        raise ModelError(f"{path}: no parameters of mujoco.sysid ({' '.join(str(e).split())})") from e


def _load_toolbox() -> Any:
    """Import ``mujoco.sysid``, which leaves its names out where its own dependencies are missing."""
    try:
        from mujoco import sysid  # noqa: PLC0415  # an extra of MuJoCo
    except ImportError as e:
        raise ModelError("this MuJoCo has no mujoco.sysid: pip install 'mujoco[sysid]>=3.5'") from e
    if not hasattr(sysid, "ParameterDict"):
        raise ModelError("mujoco.sysid lacks its dependencies: pip install 'mujoco[sysid]'")
    return sysid


def _modifier(write: Writer) -> Callable[[Any, Any], object]:
    return lambda spec, p: write(spec, {p.name: float(p.as_vector()[0])})


def _names(name: str, size: int) -> list[str]:
    return [name] if size == 1 else [f"{name}[{i}]" for i in range(size)]
