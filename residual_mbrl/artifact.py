"""A calibration as a folder: what was known, what was learned, from which data, and how well it does. No pickle.

- ``calibration.json``: schema version, baseline, parameters with units and intervals, residuals, sensor, rate, names, data hashes
- ``weights.safetensors``: float64 weights and normalisers of the residuals
- ``metrics.json``: see ``write_metrics``
- ``report.html``, ``figures/``: written by the report
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from residual_mbrl import descriptions, files
from residual_mbrl.baselines import Baseline
from residual_mbrl.descriptions import Entries
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.environment import describe_environment
from residual_mbrl.errors import ArtifactError
from residual_mbrl.identifiability import Estimate
from residual_mbrl.metrics import Metric
from residual_mbrl.model import Model
from residual_mbrl.residuals import Certificate, Residual
from residual_mbrl.spaces import StateSpace

SCHEMA_VERSION = 1
CALIBRATION, WEIGHTS, METRICS = "calibration.json", "weights.safetensors", "metrics.json"
REPORT = (METRICS, "report.html", "figures")
"""What an evaluation writes."""
ENTRIES = (CALIBRATION, WEIGHTS, *REPORT)
"""What an artefact may hold."""

CONVENTIONS = {"state": "[q, v, a]", "quaternion": "w-x-y-z, body to world", "angular_velocity": "body frame",
               "linear_velocity": "world frame", "units": "SI where no unit says otherwise"}


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A calibrated model and where it comes from.

    Args:
        model: Identified dynamics with residuals, seen through the sensor.
        identified: The same without residuals, with the values that identification alone found.
        estimates: One row a parameter, as ``estimate_table`` gives them: name, value, std, interval, unit, at_bound, nominal.
        unidentifiable: Combinations of parameters that the data cannot tell apart, in words.
        data: SHA-256 of each log's file, by log name.
        preset: Name of the preset, or "".
        seeds: Every seed that was used, by what it seeded.
        environment: Versions and machine, as ``describe_environment`` gives them.
        notes: Free text.
        mapping: Text of the ``mapping.toml`` by which logs were read, or "".
    """

    model: Model
    identified: Model
    estimates: tuple[Mapping[str, object], ...] = ()
    unidentifiable: tuple[str, ...] = ()
    data: Mapping[str, str] = field(default_factory=dict)
    preset: str = ""
    seeds: Mapping[str, int] = field(default_factory=dict)
    environment: Mapping[str, object] = field(default_factory=describe_environment)
    notes: str = ""
    mapping: str = ""

    @property
    def space(self) -> StateSpace:
        """State space of the baseline, without residual memory."""
        return self.model.dynamics.baseline.space

    @property
    def dt(self) -> float:
        """Seconds per step."""
        return self.model.dynamics.dt

    def require(self, *, dt: float | None = None, actions: Sequence[str] | None = None, states: Sequence[str] | None = None,
                units: Mapping[str, str] | None = None) -> None:
        """Check that this calibration fits a plant; whatever is None is not checked.

        Args:
            dt: Seconds per step.
            actions: Action names in order.
            states: State names in order.
            units: Unit of any state or action.

        Raises:
            ArtifactError: naming what the calibration has and what was asked for.
        """
        kind = f"this {type(self.model.dynamics.baseline).__name__} calibration"
        if dt is not None and not math.isclose(dt, self.dt, rel_tol=1e-6):
            raise ArtifactError(f"{kind} steps {self.dt:g} s ({1 / self.dt:g} Hz); received {dt:g} s")
        for what, own, asked in (("actions", self.space.action, actions), ("states", self.space.state_names, states)):
            if asked is not None and tuple(asked) != own:
                raise ArtifactError(f"{kind} has {what} {list(own)} in this order; received {list(asked)}")
        for name, unit in (units or {}).items():
            if name not in self.space.state_names + self.space.action:
                raise ArtifactError(f"{kind} has no state or action {name!r}; there are {[*self.space.state_names, *self.space.action]}")
            if unit != self.space.unit(name):
                raise ArtifactError(f"{kind} has {name} in {self.space.unit(name)}; received {unit}")


def estimate_table(estimates: Sequence[Estimate]) -> tuple[dict[str, object], ...]:
    """Return estimates as plain rows."""
    return tuple({"name": e.parameter.name, "value": e.value, "std": e.std, "interval": list(e.interval), "unit": e.parameter.unit,
                  "at_bound": e.at_bound, "nominal": e.parameter.nominal} for e in estimates)


def save(path: Path, calibration: Calibration) -> None:
    """Save a calibration as a folder, atomically; an older artefact there is replaced once the new one is complete.

    Raises:
        ArtifactError: if something in it cannot be saved so that it loads as it is.
        OutputError: if it cannot be written.
    """
    with files.folder(path, replaces=ENTRIES) as temporary:
        write(temporary, calibration)


def write(folder: Path, calibration: Calibration) -> None:
    """Write calibration.json and weights.safetensors into a folder that is being built, and load them back to be sure.

    Raises:
        ArtifactError: if something in it cannot be saved so that it loads as it is.
        OutputError: if it cannot be written.
    """
    dynamics = calibration.model.dynamics
    weights = {n: _stored(x) for n, x in dynamics.state_dict().items()}
    data = safetensors.torch.save(weights)
    digest = hashlib.sha256(data).hexdigest()
    try:
        document = _document(calibration, digest)
        files.write_json(folder / CALIBRATION, {"checksum": _checksum(document), **document})
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"this calibration cannot be saved: {error}") from error
    files.write_bytes(folder / WEIGHTS, data)
    again = load(folder, baselines=[type(dynamics.baseline)], residuals=[type(r) for r in descriptions.residuals_of(dynamics)])
    lost = descriptions.lost(dynamics, again.model.dynamics)
    if lost:
        raise ArtifactError(f"this calibration would not load as it is: describe() leaves out or changes {', '.join(lost)}")


def load(path: Path, *, baselines: Sequence[type[Baseline]] = (), residuals: Sequence[type[Residual]] = ()) -> Calibration:
    """Load a calibration; its predictions are those of the one saved, bit for bit.

    Args:
        path: Folder of the artefact.
        baselines: Baseline classes beyond ``descriptions.BASELINES``, built as ``cls(parameters=..., **describe())``.
        residuals: Residual classes beyond ``descriptions.RESIDUALS``, built as ``cls(**describe())``.

    Raises:
        ArtifactError: naming the file, what was expected and what was found.
    """
    path = Path(path)
    entries = _read_calibration(path / CALIBRATION)
    weights = _read_weights(path / WEIGHTS, entries.get("weights", dict))
    baseline = descriptions.build_baseline(entries, baselines)
    sensor = descriptions.build_sensor(entries, baseline.space)
    dynamics = descriptions.build_dynamics(entries, baseline, residuals)
    try:
        dynamics.load_state_dict(weights)
    except RuntimeError as error:
        raise ArtifactError(f"{path / WEIGHTS}: does not fit the residuals in {CALIBRATION}: {error}") from error
    found, fitted = entries.get("identified", dict), entries.get("calibrated", dict)
    model = entries.build("calibrated", lambda: Model(dynamics=dynamics, sensor=sensor, sensor_values=fitted["sensor_values"]))
    identified = entries.build("identified", lambda: Model(
        dynamics=ResidualDynamics(baseline, (), found["values"]), sensor=sensor, sensor_values=found["sensor_values"]))
    return Calibration(model=model, identified=identified, estimates=tuple(entries.get("estimates", list)),
                       unidentifiable=tuple(entries.get("unidentifiable", list)), data=entries.get("data", dict),
                       preset=entries.get("preset", str), seeds=entries.get("seeds", dict),
                       environment=entries.get("environment", dict), notes=entries.get("notes", str),
                       mapping=str(entries.values.get("mapping", "")))


def write_metrics(path: Path, *, dataset: str, split: str, metrics: Sequence[Metric], certificates: Sequence[Certificate] = (),
                  seconds: float, environment: Mapping[str, object] | None = None) -> None:
    """Write metrics.json atomically.

    Args:
        path: The file.
        dataset: Name of the data set.
        split: Which part of it was scored.
        metrics: The numbers.
        certificates: What each residual was found to do at worst, in the order of the residuals.
        seconds: Wall time of the evaluation.
        environment: As ``describe_environment`` gives it; that of this process where None.
    """
    files.write_json(path, {
        "dataset": dataset, "split": split, "metrics": [asdict(m) for m in metrics],
        "certificates": {f"{i}.{c.residual}": {**asdict(c), "holds": c.holds} for i, c in enumerate(certificates)},
        "seconds": seconds, "environment": describe_environment() if environment is None else environment})


def read_metrics(path: Path) -> dict[str, Any]:
    """Read metrics.json; "metrics" holds ``Metric`` objects, everything else plain data.

    Raises:
        ArtifactError: if the file is missing, truncated or of another form.
    """
    entries = Entries.read(Path(path))
    rows = entries.build("metrics", lambda: [Metric(**{**m, "ci95": m["ci95"] and tuple(m["ci95"])}) for m in entries.get("metrics", list)])
    return {**entries.values, "metrics": rows}


def _stored(x: Tensor) -> Tensor:
    """Return a tensor as weights.safetensors holds it: its own memory, float64 (exact from float32)."""
    x = x.detach().cpu()
    return (x.double() if x.is_floating_point() else x).clone(memory_format=torch.contiguous_format)


def _document(calibration: Calibration, weights_hash: str) -> dict[str, object]:
    model, identified = calibration.model, calibration.identified
    own, other = model.dynamics.baseline, identified.dynamics.baseline
    same_baseline = type(own) is type(other) and own.describe() == other.describe() and own.parameters.names == other.parameters.names
    if not same_baseline or model.sensor.describe() != identified.sensor.describe():
        raise ValueError("model and identified must share one baseline and one sensor")
    return {
        "schema_version": SCHEMA_VERSION, "preset": calibration.preset, "notes": calibration.notes, "mapping": calibration.mapping,
        "dt": float(calibration.dt),
        "space": asdict(calibration.space), "conventions": CONVENTIONS,
        "baseline": descriptions.baseline_as_json(own), "sensor": model.sensor.describe(),
        "identified": {"values": identified.dynamics.values, "sensor_values": identified.sensor_values},
        "calibrated": {"values": model.dynamics.values, "sensor_values": model.sensor_values},
        "estimates": calibration.estimates, "unidentifiable": calibration.unidentifiable,
        "residuals": descriptions.residuals_as_json(model.dynamics), "members": descriptions.members_of(model.dynamics),
        "weights": {"file": WEIGHTS, "sha256": weights_hash},
        "data": calibration.data, "seeds": calibration.seeds, "environment": calibration.environment}


def _checksum(document: Mapping[str, object]) -> str:
    """Hash of the content whatever its layout: line endings and indentation may change on the way."""
    return hashlib.sha256(files.dump_json({k: document[k] for k in sorted(document)}, indent=None).encode()).hexdigest()


def _read_calibration(path: Path) -> Entries:
    entries = Entries.read(path)
    schema = entries.get("schema_version", int)
    if schema > SCHEMA_VERSION:
        raise ArtifactError(f"{path}: has schema version {schema}, this residual_mbrl reads up to {SCHEMA_VERSION}: upgrade it")
    if schema < 1:
        raise ArtifactError(f"{path}: expected a schema version from 1 to {SCHEMA_VERSION}, found {schema}")
    expected, found = entries.get("checksum", str), _checksum({k: x for k, x in entries.values.items() if k != "checksum"})
    if found != expected:
        raise ArtifactError(f"{path}: was changed after it was written (SHA-256 {found[:12]}, expected {expected[:12]})")
    conventions = entries.get("conventions", dict)
    if conventions != CONVENTIONS:
        raise ArtifactError(f"{path}: expected conventions {CONVENTIONS}, found {conventions}")
    for key in ("identified", "calibrated"):
        values = entries.get(key, dict)
        bad = [n for kind in ("values", "sensor_values") for n, x in values.get(kind, {}).items() if not math.isfinite(x)]
        if bad:
            raise ArtifactError(f"{path}: expected finite numbers under {key!r}; {bad} are not")
    return entries


def _read_weights(path: Path, expected: Mapping[str, object]) -> dict[str, Tensor]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}; expected the weights of an artefact") from error
    found = hashlib.sha256(data).hexdigest()
    if found != expected.get("sha256"):
        raise ArtifactError(f"{path}: truncated or changed after it was written: {len(data)} bytes with SHA-256 {found[:12]}, "
                            f"{CALIBRATION} expects {str(expected.get('sha256'))[:12]}")
    try:
        weights: dict[str, Tensor] = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise ArtifactError(f"{path}: expected safetensors: {error}") from error
    for name, x in weights.items():
        if not bool(torch.isfinite(x).all()):
            raise ArtifactError(f"{path}: {name!r} holds values that are not finite")
    return weights
