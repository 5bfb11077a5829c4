"""From an MJCF and a folder of logs to an artefact, through the same functions as any preset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from robot_problem import TRUTH, write_robot

from residual_mbrl import artifact
from residual_mbrl.calibration import calibrate, evaluate_logs
from residual_mbrl.cli import main
from residual_mbrl.column_map import read_map
from residual_mbrl.errors import ArtifactError, LogError
from residual_mbrl.identification import IdentifyOptions
from residual_mbrl.mjcf_export import export_mjcf
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.presets.simulator import read_logs, simulator_preset
from residual_mbrl.rollouts import rollout

FREE = list(TRUTH)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_robot(tmp_path_factory.mktemp("robot"))


@pytest.fixture(scope="module")
def calibrated(files, tmp_path_factory):
    """An artefact of identified parameters."""
    robot, logs, mapping = files
    simulator = MujocoSimulator(robot, FREE)
    prepared = read_logs(simulator, logs, read_map(mapping, simulator.space))
    preset = simulator_preset(simulator, prepared, logs, identify=IdentifyOptions(candidates=1, starts=1, iterations=30))
    out = tmp_path_factory.mktemp("artefact") / "out"
    calibrate(preset, Path(), out, residual=False, mapping=mapping.read_text())
    return out


def test_finds_what_the_robot_really_is(calibrated):
    """Mass, damping and dry friction are found within five per cent."""
    values = artifact.load(calibrated).identified.dynamics.values
    assert values == pytest.approx(TRUTH, rel=0.05)


def test_artefact_holds_the_model(calibrated, files):
    """Loaded where the MJCF is not, the artefact predicts bit for bit as the model that was calibrated."""
    robot, _, _ = files
    loaded = artifact.load(calibrated).identified.dynamics
    own = replace_values(MujocoSimulator(robot, FREE), loaded.values)
    state, actions = torch.zeros(4, dtype=torch.float64), torch.ones(20, 2, dtype=torch.float64)
    assert torch.equal(rollout(loaded, state, actions), rollout(own, state, actions))


def replace_values(simulator, values):
    from residual_mbrl.dynamics import ResidualDynamics
    return ResidualDynamics(simulator, values=values)


def test_scores_other_logs(calibrated, tmp_path):
    """Logs of another day are read as the calibration's were, and the identified model is the better one on them."""
    _, logs, _ = write_robot(tmp_path / "new", runs=2)
    metrics = {(m.model, m.metric): m.value for m in evaluate_logs(calibrated, logs, tmp_path / "scored") if m.horizon is None}
    assert metrics["identified", "mae_shoulder"] < 0.1 * metrics["nominal", "mae_shoulder"]
    assert (tmp_path / "scored" / "report.html").is_file()


def test_exported_mjcf_is_the_identified_model(calibrated, tmp_path):
    """What ``export`` writes moves as the identified model."""
    calibration = artifact.load(calibrated)
    assert main(["export", str(calibrated), str(tmp_path / "robot.xml")]) == 0
    again = replace_values(MujocoSimulator(tmp_path / "robot.xml"), {})
    state, actions = torch.zeros(4, dtype=torch.float64), torch.ones(50, 2, dtype=torch.float64)
    assert torch.allclose(rollout(again, state, actions), rollout(calibration.identified.dynamics, state, actions), rtol=0, atol=1e-12)
    assert sorted(export_mjcf(calibration, tmp_path / "same.xml")) == sorted(FREE)


def test_dry_run_shows_and_stops(files, tmp_path, capsys, monkeypatch):
    """The dry run prints joints, units and rates, and writes nothing."""
    monkeypatch.setenv("COLUMNS", "200")
    robot, logs, mapping = files
    given = [str(robot), *map(str, logs), "--map", str(mapping), "--dry-run", "--out", str(tmp_path / "out")]
    assert main(["calibrate", *given]) == 0
    shown = capsys.readouterr().out
    assert all(x in shown for x in ("shoulder", "q[0]", "rad/s", "200", "4 log(s)"))
    assert not (tmp_path / "out").exists()


def test_last_logs_are_held_out(files):
    """A quarter of the logs validates, none is a test; with one log, windows do."""
    robot, logs, mapping = files
    simulator = MujocoSimulator(robot, FREE)
    prepared = read_logs(simulator, logs, read_map(mapping, simulator.space))
    preset = simulator_preset(simulator, prepared, logs)
    read = preset.read(Path(), ("train", "val"))
    assert [len(read.logs[p]) for p in ("train", "val")] == [3, 1]
    with pytest.raises(LogError, match="no test part"):
        preset.read(Path(), ("test",))
    single = simulator_preset(simulator, replace(prepared, trajectories=prepared.trajectories[:1]), logs[:1])
    assert set(single.read(Path(), ("train", "val")).logs) == {"train"}


def test_candidates_fit_the_model(files):
    """Every residual that is offered joins the model, and certifies itself on it."""
    from residual_mbrl.dynamics import ResidualDynamics
    simulator = MujocoSimulator(files[0])
    state, action = torch.randn(5, 4, dtype=torch.float64), torch.zeros(5, 2, dtype=torch.float64)
    offered = simulator_preset(simulator, read_logs(simulator, files[1]), files[1]).candidates(simulator, 0)
    assert set(offered) == {"dry friction", "damping", "potential"}
    for residuals in offered.values():
        assert all(c.holds for c in ResidualDynamics(simulator, residuals).certificates(state, action))


def test_refuses_other_calibrations(tmp_path):
    """Logs cannot score a calibration that is not of a MuJoCo model."""
    from test_cli import calibrated as pendulum
    artifact.save(tmp_path / "a", pendulum())
    with pytest.raises(ArtifactError, match="a calibration of Pendulum"):
        evaluate_logs(tmp_path / "a", [tmp_path / "x.npz"], tmp_path / "out")
