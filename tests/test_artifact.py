"""A calibration comes back as it was saved, bit for bit, or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
from copy import deepcopy
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from residual_mbrl import artifact, descriptions, files
from residual_mbrl.artifact import CALIBRATION, WEIGHTS, Calibration, load, save
from residual_mbrl.baselines import Parameter
from residual_mbrl.check import ARGUMENTS, build
from residual_mbrl.dynamics import ResidualDynamics, ensemble
from residual_mbrl.effects import Bias, ClockScale, Delay, Differentiated, Drift, LowPass, Quantisation, Scale, Smoothing
from residual_mbrl.errors import ArtifactError, OutputError
from residual_mbrl.identifiability import Estimate
from residual_mbrl.metrics import Metric
from residual_mbrl.model import Model
from residual_mbrl.physics.pendulum import Pendulum
from residual_mbrl.residuals import (
    CommandActuator,
    Conservative,
    Dissipative,
    DryFriction,
    EffortActuator,
    Feature,
    StateDelta,
    Unstructured,
)
from residual_mbrl.rollouts import rollout
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.windows import Windows

FEATURES = [Feature(source="position", transform="sin"), Feature(source="velocity", transform="hats", knots=4),
            Feature(source="rate", transform="slow", width=0.3), Feature(source="torque")]


def every_residual():
    return [CommandActuator(nu=1, channels=[0], dt=0.02, max_delay=0.05, limit=2.0), Conservative(nq=1, periodic=[0], units=4),
            Dissipative(nv=1, features=FEATURES, bound=0.5, hidden=(5,)), DryFriction(nv=1, features=FEATURES, bound=0.2, hidden=()),
            EffortActuator(signal="torque", nv=1, features=FEATURES), StateDelta(nv=1, features=FEATURES, bound=0.1, hidden=(3, 3)),
            Unstructured(nv=1, features=FEATURES, bound=0.3, hidden=(4,), seed=3)]


def randomise(dynamics, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for w in (*dynamics.parameters(), *(b for b in dynamics.buffers() if b.is_floating_point())):
            w.add_(0.3 * torch.rand(w.shape, generator=generator, dtype=w.dtype))
    return dynamics


def calibrated(residuals=None):
    baseline = Pendulum(dt=0.02)
    values = {"inertia": 1 / 3, "viscous": 0.1}
    sensor = Sensor(space=baseline.space, columns=(
        Column(name="encoder", source="angle", noise=1e-3, effects=(Bias(0.01), Scale(1.1), Delay(0.003), Quantisation(step=1e-4))),
        Column(name="tachometer", source="rate", noise=1e-2,
               effects=(Differentiated(order=0), LowPass(), Smoothing(1e-5), ClockScale(), Drift()))),
        commands={"torque": (Scale(0.9, prior_std=0.1),)})
    sensor_values = {"encoder.bias": 0.1 + 0.2, "encoder.delay": 0.0071}
    dynamics = randomise(ResidualDynamics(baseline, every_residual() if residuals is None else residuals, {**values, "coulomb": 1e-3 / 7}))
    estimate = Estimate(parameter=baseline.parameters["inertia"], value=1 / 3, std=math.inf, at_bound=False)
    identified = Model(dynamics=ResidualDynamics(baseline, (), values), sensor=sensor, sensor_values={"encoder.bias": 0.2})
    return Calibration(model=Model(dynamics=dynamics, sensor=sensor, sensor_values=sensor_values), identified=identified,
                       estimates=artifact.estimate_table([estimate]), unidentifiable=("inertia: the data do not determine it",),
                       data={"swing": "ab" * 32}, preset="pendulum", seeds={"search": 4}, notes="a note")


def windows(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    n, steps = 3, 40
    actions = torch.rand(n, steps, 1, generator=generator, dtype=dtype)
    return Windows(actions=actions, lead=actions[:, :0], trail=actions[:, :0],
                   measurements=torch.rand(n, steps + 1, 2, generator=generator, dtype=dtype),
                   recorded=torch.ones(n, steps + 1, 2, dtype=torch.bool),
                   time=0.02 * torch.arange(steps + 1, dtype=dtype).expand(n, -1), log=torch.zeros(n, dtype=torch.long),
                   start=torch.zeros(n, dtype=torch.long), names=("swing",), groups=("",), dt=0.02)


@pytest.fixture
def saved(tmp_path):
    save(tmp_path / "out", calibrated())
    return tmp_path / "out"


def rewrite(folder, change, *, checksum=True):
    """Change calibration.json, with a checksum that fits unless told."""
    document = json.loads((folder / CALIBRATION).read_text())
    change(document)
    if checksum:
        document["checksum"] = artifact._checksum(files.load_json(json.dumps({k: x for k, x in document.items() if k != "checksum"})))
    (folder / CALIBRATION).write_text(json.dumps(document))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_predictions_come_back_bit_for_bit(saved, dtype):
    """Measurements, states and executed commands of both models are equal to the last bit, in float64 and float32."""
    before, after = calibrated(), load(saved)
    for a, b in ((before.model, after.model), (before.identified, after.identified)):
        for x, y in zip(a.predict(windows(dtype)), b.predict(windows(dtype)), strict=True):
            assert torch.equal(x, y)
            assert torch.isfinite(x).all()


def test_everything_else_comes_back(saved):
    """Estimates, hashes, seeds, versions, preset and notes are as they were, infinite errors included."""
    before, after = calibrated(), load(saved)
    assert after.estimates[0]["std"] == math.inf
    for name in ("unidentifiable", "data", "preset", "seeds", "environment", "notes", "dt", "space"):
        assert getattr(after, name) == getattr(before, name)
    assert list(after.estimates) == list(before.estimates)
    assert after.model.sensor == before.model.sensor
    assert after.model.sensor_values == before.model.sensor_values


@pytest.mark.parametrize("residuals", [[], [Dissipative(nv=1, features=FEATURES, bound=0.5)]])
def test_saves_without_and_with_one_residual(tmp_path, residuals):
    """A calibration that needs no residual is an artefact like any other."""
    save(tmp_path / "out", calibrated(residuals))
    assert len(load(tmp_path / "out").model.dynamics.residuals) == len(residuals)


@pytest.mark.parametrize("name", descriptions.BASELINES)
def test_every_baseline_comes_back(tmp_path, name):
    """Each baseline of the package is built again with its arguments, parameters and values."""
    baseline = type(build(name))(*ARGUMENTS.get(name, ()), dt=0.004)
    own = {p.name: p.nominal + 0.01 * p.scale for p in baseline.parameters}
    model = Model(dynamics=ResidualDynamics(baseline, (), own), sensor=Sensor(space=baseline.space, columns=()))
    save(tmp_path / "out", Calibration(model=model, identified=model))
    after = load(tmp_path / "out").model.dynamics
    assert after.values == own
    state, actions = torch.full((baseline.space.nx,), 0.3), torch.full((5, baseline.space.nu), 0.2)
    assert torch.equal(rollout(after, state, actions), rollout(model.dynamics, state, actions))


def test_ensembles_come_back(tmp_path):
    """Weights with a leading member dimension are built again as an ensemble."""
    residual = Dissipative(nv=1, features=FEATURES, bound=0.5)
    joined = ensemble([randomise(ResidualDynamics(Pendulum(dt=0.02), [deepcopy(residual)]), seed) for seed in range(3)])
    before = calibrated([])
    save(tmp_path / "out", replace(before, model=replace(before.model, dynamics=joined)))
    state, actions = torch.full((3, 4, 2), 0.3), torch.full((3, 4, 6, 1), 0.2)
    assert torch.equal(rollout(load(tmp_path / "out").model.dynamics, state, actions), rollout(joined, state, actions))


class Tilted(Pendulum):
    """A plant that the package does not know."""


class Hidden(Dissipative):
    """A residual whose describe() forgets an argument that no shape shows."""

    def describe(self):
        return {**super().describe(), "bound": 1.0}


def test_other_baselines_are_named(tmp_path):
    """An unknown baseline is refused with the ones that are known, and loads when its class is given."""
    baseline = Tilted(dt=0.02)
    model = Model(dynamics=ResidualDynamics(baseline), sensor=Sensor(space=baseline.space, columns=()))
    save(tmp_path / "out", Calibration(model=model, identified=model))
    with pytest.raises(ArtifactError, match=r"calibration\.json: unknown baseline 'Tilted'; expected one of \['Servo'"):
        load(tmp_path / "out")
    assert isinstance(load(tmp_path / "out", baselines=[Tilted]).model.dynamics.baseline, Tilted)


def test_baseline_missing_from_the_installation(saved, monkeypatch):
    """A known name whose module is not there says so."""
    monkeypatch.setitem(descriptions.BASELINES, "Pendulum", "no_such_module")
    with pytest.raises(ArtifactError, match="this installation has no baseline 'Pendulum'"):
        load(saved)


class Resized(Dissipative):
    """A residual whose describe() rebuilds it with other sizes."""

    def describe(self):
        return {**super().describe(), "hidden": [2]}


@pytest.mark.parametrize(("kind", "message"), [(Hidden, r"changes Hidden\.bound"),
                                               (Resized, r"Resized cannot be saved: network\.weights\.0 has")])
def test_incomplete_description_is_refused_when_saving(tmp_path, kind, message):
    """What would load as something else is not saved at all."""
    with pytest.raises(ArtifactError, match=message):
        save(tmp_path / "out", calibrated([kind(nv=1, features=FEATURES, bound=0.5, hidden=(8,))]))
    assert os.listdir(tmp_path) == []


def test_unserialisable_notes_are_refused_when_saving(tmp_path):
    """What JSON cannot hold is an ArtifactError, and no folder appears."""
    with pytest.raises(ArtifactError, match="cannot be saved"):
        save(tmp_path / "out", replace(calibrated([]), seeds={"search": object()}))
    assert os.listdir(tmp_path) == []


def test_nan_weights_are_refused(tmp_path):
    """Weights that are not finite are refused when saved and, whatever wrote them, when loaded."""
    before = calibrated()
    with torch.no_grad():
        next(before.model.dynamics.parameters()).fill_(math.nan)
    with pytest.raises(ArtifactError, match=r"weights\.safetensors.*not finite"):
        save(tmp_path / "out", before)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_truncated_weights(saved, size):
    """Weights cut short are refused by their hash."""
    (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:size])
    with pytest.raises(ArtifactError, match=r"weights\.safetensors: truncated or changed.*expects"):
        load(saved)


@pytest.mark.parametrize("place", [3, 200, -1])
def test_flipped_byte_in_weights(saved, place):
    """One changed byte is refused, in the header and in the data."""
    data = bytearray((saved / WEIGHTS).read_bytes())
    data[place] ^= 1
    (saved / WEIGHTS).write_bytes(data)
    with pytest.raises(ArtifactError, match="truncated or changed"):
        load(saved)


def test_any_flipped_byte_in_calibration(saved):
    """A changed byte in calibration.json never loads as another model: it is refused, or was layout only."""
    data = (saved / CALIBRATION).read_bytes()
    reference = load(saved).model.dynamics.values
    for place in range(0, len(data), max(1, len(data) // 150)):
        changed = bytearray(data)
        changed[place] ^= 1
        (saved / CALIBRATION).write_bytes(changed)
        try:
            assert load(saved).model.dynamics.values == reference
        except ArtifactError as error:
            assert CALIBRATION in str(error)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_calibration(saved, share):
    """calibration.json cut short is refused by name."""
    data = (saved / CALIBRATION).read_bytes()
    (saved / CALIBRATION).write_bytes(data[: int(share * len(data))])
    with pytest.raises(ArtifactError, match=r"calibration\.json: expected JSON"):
        load(saved)


def test_layout_may_change(saved):
    """Other indentation and line endings are the same artefact."""
    text = json.dumps(json.loads((saved / CALIBRATION).read_text()), indent=7).replace("\n", "\r\n")
    (saved / CALIBRATION).write_bytes(text.encode())
    load(saved)


def test_newer_schema(saved):
    """A newer schema is refused before anything else is looked at."""
    rewrite(saved, lambda d: d.update(schema_version=2), checksum=False)
    with pytest.raises(ArtifactError, match="schema version 2, this residual_mbrl reads up to 1: upgrade"):
        load(saved)


@pytest.mark.parametrize("key", ["schema_version", "checksum", "dt", "space", "conventions", "baseline", "sensor", "residuals",
                                 "identified", "calibrated", "weights", "estimates", "data", "preset", "seeds", "environment", "notes"])
def test_missing_key(saved, key):
    """Each missing entry is named."""
    rewrite(saved, lambda d: d.pop(key), checksum=key != "checksum")
    with pytest.raises(ArtifactError, match=rf"calibration\.json: expected \w+ under '{key}', found nothing"):
        load(saved)


def test_entry_of_another_type(saved):
    """An entry of another type is named with what was found."""
    rewrite(saved, lambda d: d.update(residuals="none"))
    with pytest.raises(ArtifactError, match="expected list under 'residuals', found str 'none'"):
        load(saved)


@pytest.mark.parametrize(("change", "message"), [
    (lambda d: d["residuals"][0].update(type="Magic"), "'residuals' cannot be built: unknown residual 'Magic'"),
    (lambda d: d["residuals"][2]["arguments"].pop("bound"), "'residuals' cannot be built.*bound"),
    (lambda d: d["residuals"][2]["arguments"].update(hidden=[4]), r"weights\.safetensors: does not fit"),
    (lambda d: d["sensor"]["columns"][0]["effects"][0].update(type="Magic"), "'sensor' cannot be built: unknown effect 'Magic'"),
    (lambda d: d["sensor"]["columns"][0].update(source="temperature"), "'sensor' cannot be built.*temperature"),
    (lambda d: d["baseline"]["parameters"][0].update(lower=7.0), "'baseline' cannot be built.*inertia"),
    (lambda d: d["baseline"]["parameters"].pop(), "cannot be built.*torque_offset"),
    (lambda d: d["baseline"]["arguments"].update(colour="red"), "'baseline' cannot be built.*colour"),
    (lambda d: d["calibrated"]["values"].update(inertia="NaN"), r"finite numbers under 'calibrated'; \['inertia'\]"),
    (lambda d: d["identified"].pop("sensor_values"), "'identified' cannot be built: missing 'sensor_values'"),
    (lambda d: d["conventions"].update(quaternion="x-y-z-w"), "expected conventions"),
    (lambda d: d["space"]["units"].update(torque="mN·m"), "expected the states, actions and units of Pendulum"),
    (lambda d: d.update(dt=0.01), "dt is 0.01 s, but its Pendulum steps 0.02 s"),
    (lambda d: d.update(schema_version=0), "expected a schema version from 1 to 1, found 0")])
def test_changed_content(saved, change, message):
    """What does not fit together is refused even where the checksum was made to fit."""
    rewrite(saved, change)
    with pytest.raises(ArtifactError, match=message):
        load(saved)


def test_value_changed_by_hand(saved):
    """An edited value without its checksum is refused."""
    rewrite(saved, lambda d: d["calibrated"]["values"].update(inertia=2.0), checksum=False)
    with pytest.raises(ArtifactError, match="was changed after it was written"):
        load(saved)


@pytest.mark.parametrize("name", [CALIBRATION, WEIGHTS])
def test_missing_file(saved, name):
    """A missing file is named."""
    (saved / name).unlink()
    with pytest.raises(ArtifactError, match=rf"{name}: cannot be read"):
        load(saved)


def test_weights_that_are_no_safetensors(saved):
    """Bytes of another format are refused even with their right hash; nothing is ever unpickled."""
    (saved / WEIGHTS).write_bytes(b"\x80\x04K\x01.")
    rewrite(saved, lambda d: d["weights"].update(sha256=files.sha256(saved / WEIGHTS)))
    with pytest.raises(ArtifactError, match=r"weights\.safetensors: expected safetensors"):
        load(saved)


def test_weights_are_float64(saved):
    """The weights file is plain safetensors in float64."""
    assert {x.dtype for x in safetensors.torch.load_file(saved / WEIGHTS).values()} == {torch.float64}


def test_require(saved):
    """The right plant passes; another rate, order or unit is refused, naming both."""
    calibration = load(saved)
    calibration.require(dt=0.02, actions=["torque"], states=["angle", "rate"], units={"torque": "N·m"})
    for asked, message in (({"dt": 0.01}, r"steps 0\.02 s \(50 Hz\); received 0\.01 s"),
                           ({"states": ["rate", "angle"]}, r"states \['angle', 'rate'\] in this order; received \['rate', 'angle'\]"),
                           ({"actions": ["force"]}, r"actions \['torque'\].*received \['force'\]"),
                           ({"units": {"torque": "mN·m"}}, "torque in N·m; received mN·m"),
                           ({"units": {"load": "kg"}}, "no state or action 'load'")):
        with pytest.raises(ArtifactError, match=message):
            calibration.require(**asked)


def test_full_disk_keeps_the_older_artefact(saved, monkeypatch):
    """When a new artefact cannot be written, the older one still loads and nothing else is there."""
    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        save(saved, calibrated([]))
    monkeypatch.undo()
    assert len(load(saved).model.dynamics.residuals) == 7
    assert os.listdir(saved.parent) == ["out"]


def test_saving_again_replaces(saved):
    """An older artefact is replaced, its metrics and report with it; a folder with anything else is not."""
    (saved / "metrics.json").write_text("{}")
    save(saved, calibrated([]))
    assert sorted(os.listdir(saved)) == [CALIBRATION, WEIGHTS]
    (saved / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        save(saved, calibrated([]))


def test_models_must_belong_together(tmp_path):
    """An identified model of another rate is refused."""
    before = calibrated([])
    other = replace(before.identified, dynamics=ResidualDynamics(Pendulum(dt=0.01)))
    with pytest.raises(ArtifactError, match="one baseline and one sensor"):
        save(tmp_path / "out", replace(before, identified=other))


def test_metrics_come_back(tmp_path):
    """metrics.json holds the schema and reads back as it was; NaN and intervals included."""
    metrics = [Metric(model="identified", metric="mae_rad", value=0.1 + 0.2, unit="rad", horizon=10, ci95=(0.2, 0.4)),
               Metric(model="network", metric="mae_rad", value=math.inf, unit="rad")]
    dynamics = calibrated().model.dynamics
    state, action = torch.zeros(2, 2).double(), torch.zeros(2, 1).double()
    certificates = dynamics.certificates(dynamics.initial_state(state, action), action)
    artifact.write_metrics(tmp_path / "metrics.json", dataset="swing", split="test", metrics=metrics, certificates=certificates,
                           seconds=1.5)
    read = artifact.read_metrics(tmp_path / "metrics.json")
    assert read["metrics"] == metrics
    assert (read["dataset"], read["split"], read["seconds"]) == ("swing", "test", 1.5)
    assert read["certificates"]["2.Dissipative"]["holds"] is True
    assert "python" in read["environment"]


def test_damaged_metrics(tmp_path):
    """metrics.json of another form is named."""
    (tmp_path / "metrics.json").write_text('{"metrics": [{"model": "identified"}]}')
    with pytest.raises(ArtifactError, match=r"metrics\.json: 'metrics' cannot be built"):
        artifact.read_metrics(tmp_path / "metrics.json")


def test_unknown_parameter_value(saved):
    """A value for a parameter that the baseline lacks is refused by name."""
    rewrite(saved, lambda d: d["identified"]["values"].update(magic=1.0))
    with pytest.raises(ArtifactError, match="magic"):
        load(saved)


def test_parameter_specifications_come_back(saved):
    """Bounds, units, priors and descriptions of every parameter are as they were."""
    after = load(saved).model.dynamics.baseline.parameters
    assert list(after) == list(Pendulum(dt=0.02).parameters)
    assert isinstance(after["inertia"], Parameter)
