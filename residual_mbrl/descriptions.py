"""Baselines, residuals and sensors as JSON describes them, and back; every complaint names the file and the entry."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from inspect import isabstract
from pathlib import Path
from typing import Any, TypeVar

import torch

from residual_mbrl import files
from residual_mbrl import residuals as types
from residual_mbrl.baselines import Baseline, Parameter, Parameters
from residual_mbrl.dynamics import ResidualDynamics, ensemble
from residual_mbrl.effects import EFFECTS, Effect
from residual_mbrl.errors import ArtifactError
from residual_mbrl.residuals import Feature, Residual
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.spaces import StateSpace

BASELINES = {"Servo": "servo", "LinearDrive": "linear_drive", "Pendulum": "pendulum", "DoublePendulum": "double_pendulum",
             "CartPole": "cartpole", "Quadrotor": "quadrotor", "MujocoSimulator": "mujoco_simulator"}
"""Baselines that load without being named, and the file of ``residual_mbrl.physics`` that each is in."""

RESIDUALS: dict[str, type[Residual]] = {
    n: c for n in types.__all__ if isinstance(c := getattr(types, n), type) and issubclass(c, Residual) and not isabstract(c)}
"""Residuals that load without being named."""

T = TypeVar("T")


@dataclass(frozen=True)
class Entries:
    """The entries of a JSON file, checked as they are taken.

    Args:
        path: The file, for messages.
        values: What it holds.
    """

    path: Path
    values: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Entries:
        """Read a JSON object.

        Raises:
            ArtifactError: if the file is missing, truncated or holds something else.
        """
        try:
            values = files.load_json(path.read_bytes())
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read: {error.strerror}; expected the folder of an artefact") from error
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{path}: expected JSON; the file is truncated or damaged: {error}") from error
        if not isinstance(values, dict):
            raise ArtifactError(f"{path}: expected a JSON object, found {type(values).__name__}")
        return cls(path, values)

    def get(self, key: str, kind: type[T]) -> T:
        """Return an entry of a given type.

        Raises:
            ArtifactError: if it is missing or of another type.
        """
        value = self.values.get(key)
        if not isinstance(value, kind):
            found = f"{type(value).__name__} {value!r:.60}" if key in self.values else "nothing"
            raise ArtifactError(f"{self.path}: expected {kind.__name__} under {key!r}, found {found}")
        return value

    def build(self, key: str, make: Callable[[], T]) -> T:
        """Build something from an entry; a missing key or what a constructor says becomes an ArtifactError naming the entry."""
        try:
            return make()
        except ArtifactError:
            raise
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            said = f"missing {error}" if isinstance(error, KeyError) else error
            raise ArtifactError(f"{self.path}: {key!r} cannot be built: {said}") from error


def baseline_as_json(baseline: Baseline) -> dict[str, object]:
    """Return type, constructor arguments and parameters of a baseline."""
    return {"type": type(baseline).__name__, "arguments": baseline.describe(), "parameters": [asdict(p) for p in baseline.parameters]}


def residuals_as_json(dynamics: ResidualDynamics) -> list[dict[str, object]]:
    """Return type and constructor arguments of every residual."""
    return [{"type": type(r).__name__, "arguments": r.describe()} for r in residuals_of(dynamics)]


def residuals_of(dynamics: ResidualDynamics) -> list[Residual]:
    """Return the residuals in order."""
    return [r for r in dynamics.residuals if isinstance(r, Residual)]


def reseeded(residual: Residual, seed: int) -> Residual:
    """Return the same residual with first weights drawn from another seed, where it draws any; its normaliser is not set."""
    described = _arguments(residual.describe())
    return type(residual)(**{**described, **({"seed": seed} if "seed" in described else {})})


def members_of(dynamics: ResidualDynamics) -> int | None:
    """Return how many ensemble members the weights carry; None for a single model.

    Raises:
        ArtifactError: if describe() of a residual rebuilds it with other sizes.
    """
    for own in residuals_of(dynamics):
        plain = type(own)(**_arguments(own.describe()))
        for (name, a), (_, b) in zip(own.named_parameters(), plain.named_parameters(), strict=True):
            if a.shape[1:] == b.shape and a.ndim > b.ndim:
                return int(a.shape[0])
            if a.shape != b.shape:
                raise ArtifactError(f"{own.name} cannot be saved: {name} has shape {tuple(a.shape)}, but describe() rebuilds it with "
                                    f"{tuple(b.shape)}")
    return None


def lost(before: ResidualDynamics, after: ResidualDynamics) -> list[str]:
    """Return the names of weights, parameter values and plain attributes that differ between a model and its rebuilt form."""
    weights = after.state_dict()
    names = [n for n, x in before.state_dict().items() if not torch.equal(x.detach().cpu().to(weights[n].dtype), weights[n])]
    pairs = [(before, after), (before.baseline, after.baseline), *zip(residuals_of(before), residuals_of(after), strict=True)]
    for a, b in pairs:
        others = _attributes(b)
        names += [f"{type(a).__name__}.{n}" for n, x in _attributes(a).items() if others.get(n, x) != x]
    return names


def build_baseline(entries: Entries, extra: Sequence[type[Baseline]] = ()) -> Baseline:
    """Build the baseline of a calibration and check it against the states, actions, units and rate that were saved with it.

    Raises:
        ArtifactError: if it is unknown, or its code has changed since.
    """
    described = entries.get("baseline", dict)
    cls: Any = _baseline_class(entries, extra)
    baseline: Baseline = entries.build("baseline", lambda: cls(
        parameters=Parameters(*(Parameter(**p) for p in described["parameters"])), **described["arguments"]))
    space, saved = files.load_json(files.dump_json(asdict(baseline.space))), entries.get("space", dict)
    if space != saved:
        raise ArtifactError(f"{entries.path}: expected the states, actions and units of {cls.__name__}, {space}, found {saved}")
    dt = entries.get("dt", float)
    if not math.isclose(baseline.dt, dt, rel_tol=1e-9):
        raise ArtifactError(f"{entries.path}: dt is {dt:g} s, but its {cls.__name__} steps {baseline.dt:g} s")
    return baseline


def build_dynamics(entries: Entries, baseline: Baseline, extra: Sequence[type[Residual]] = ()) -> ResidualDynamics:
    """Build the calibrated dynamics, weights as they are before training.

    Raises:
        ArtifactError: if a residual is unknown or does not fit the baseline.
    """
    known = {**RESIDUALS, **{c.__name__: c for c in extra}}
    values, members = entries.get("calibrated", dict), entries.values.get("members")

    def make() -> ResidualDynamics:
        residuals = []
        for described in entries.get("residuals", list):
            if described["type"] not in known:
                raise ValueError(f"unknown residual {described['type']!r}; expected one of {list(known)}, or pass its class: "
                                 f"load(path, residuals=[...])")
            residuals.append(known[described["type"]](**_arguments(described["arguments"])))
        return ResidualDynamics(baseline, residuals, values["values"])

    return entries.build("residuals", lambda: make() if members is None else ensemble([make() for _ in range(members)]))


def build_sensor(entries: Entries, space: StateSpace) -> Sensor:
    """Build the sensor.

    Raises:
        ArtifactError: if an effect is unknown or a column shows no state of the space.
    """
    described = entries.get("sensor", dict)
    return entries.build("sensor", lambda: Sensor(
        space=space, columns=tuple(Column(**{**c, "effects": _effects(c["effects"])}) for c in described["columns"]),
        commands={n: _effects(es) for n, es in described["commands"].items()}))


def _baseline_class(entries: Entries, extra: Sequence[type[Baseline]]) -> type[Baseline]:
    name = str(entries.get("baseline", dict).get("type"))
    given = {c.__name__: c for c in extra}
    if name in given:
        return given[name]
    if name not in BASELINES:
        raise ArtifactError(f"{entries.path}: unknown baseline {name!r}; expected one of {[*BASELINES, *given]}, or pass its class: "
                            f"load(path, baselines=[...])")
    try:
        found: type[Baseline] = getattr(importlib.import_module(f"residual_mbrl.physics.{BASELINES[name]}"), name)
    except (ImportError, AttributeError) as error:
        raise ArtifactError(f"{entries.path}: this installation has no baseline {name!r}: {error}") from error
    return found


def _attributes(thing: object) -> dict[str, object]:
    """Return public attributes of plain types; a network's training flag is no part of what it computes."""
    plain = (bool, int, float, str, tuple, list, dict, frozenset, type(None))
    return {n: x for n, x in vars(thing).items() if not n.startswith("_") and n != "training" and isinstance(x, plain)}


def _arguments(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return a residual's constructor arguments: features are rebuilt, everything else is as JSON holds it."""
    return {k: [Feature(**f) for f in x] if k == "features" else x for k, x in described.items()}


def _effects(described: Sequence[Mapping[str, Any]]) -> tuple[Effect, ...]:
    for d in described:
        if d["type"] not in EFFECTS:
            raise ValueError(f"unknown effect {d['type']!r}; expected one of {list(EFFECTS)}")
    return tuple(EFFECTS[d["type"]](**{k: x for k, x in d.items() if k != "type"}) for d in described)
