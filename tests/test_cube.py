"""The tosses are read as the files hold them, scored as the data's own metric does, and refused where they are no such data."""

from __future__ import annotations

import importlib.util
import json

import mujoco
import numpy as np
import pytest
import torch

from residual_mbrl.datasets import cube
from residual_mbrl.errors import LogError
from residual_mbrl.free_flight import examine
from residual_mbrl.models import CUBE
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator

ROWS = (60, 70, 65, 80)


@pytest.fixture
def folder(tmp_path):
    """Four tosses of the shipped model, the third in the test part."""
    simulator, rng, tosses = MujocoSimulator(CUBE, dt=0.0068), np.random.default_rng(0), []
    for rows in ROWS:
        quaternion = rng.standard_normal(4)
        state = np.concatenate([[0, 0, 0.3], quaternion / np.linalg.norm(quaternion), rng.uniform(-1, 1, 3), rng.uniform(-5, 5, 3)])
        tosses.append(simulator.rollout(torch.from_numpy(state), torch.zeros(rows - 1, 0, dtype=torch.float64)).numpy())
    x = np.concatenate(tosses)
    np.savez(tmp_path / "cube.npz", offsets=np.cumsum([0, *ROWS]), pos=x[:, :3], quat=x[:, 3:7], vel=x[:, 7:10], omega=x[:, 10:], dt=0.0068)
    (tmp_path / "split.json").write_text(json.dumps({"train": [3, 0], "val": [1], "test": [2]}))
    return tmp_path


def change(folder, **arrays):
    """Write the file again with other arrays; None leaves one out."""
    with np.load(folder / "cube.npz") as file:
        kept = {**{n: file[n] for n in file.files}, **arrays}
    np.savez(folder / "cube.npz", **{n: a for n, a in kept.items() if a is not None})


def test_tosses_are_those_of_the_split(folder):
    """In its order, each with its own clock, and only the parts asked for."""
    data = cube.read(folder, ["train", "val"])
    assert set(data.logs) == {"train", "val"}
    assert [(log.name, len(log.measurements)) for log in data.logs["train"]] == [("toss3", 80), ("toss0", 60)]
    first = data.logs["train"][0]
    assert first.measurement_time[:2] == pytest.approx([0, 0.0068])
    assert first.commands.shape == (80, 0)
    assert np.allclose(np.linalg.norm(cube.poses(first).quaternion, axis=1), 1)


def test_flight_ends_before_the_first_touch(folder):
    """Its rows fall with gravity; what follows does not."""
    log = cube.read(folder, ["val"]).logs["val"][0]
    flight = cube.flight(log)
    assert 8 < len(flight) < len(log.measurements)
    assert cube.lowest_corner(flight.position, flight.quaternion).min() >= cube.CLEARANCE
    assert examine([flight]).gravity == pytest.approx(9.81, abs=1e-3)


def test_lowest_corner_is_that_of_the_engine(folder):
    """Half a width below the centre where the cube lies flat, and the lowest of eight otherwise."""
    x = cube.read(folder, ["val"]).logs["val"][0].measurements[::7]
    corners = cube.HALF_WIDTH * np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)], float)
    for row in x:
        turn = np.zeros(9)
        mujoco.mju_quat2Mat(turn, row[3:7])
        assert cube.lowest_corner(row[:3], row[3:7]) == pytest.approx(row[2] + (corners @ turn.reshape(3, 3).T)[:, 2].min())
    assert cube.lowest_corner(np.array([0, 0, 1.0]), np.array([1.0, 0, 0, 0])) == pytest.approx(1 - cube.HALF_WIDTH)


def test_a_perfect_prediction_has_no_error(folder):
    """Whichever sign its quaternions have."""
    logs = cube.read(folder, ["train"]).logs["train"]
    metrics = cube.score(logs, {log.name: (log.measurements[:, :3], -log.measurements[:, 3:7]) for log in logs}, "same")
    assert {m.metric for m in metrics} == {"position_m", "rotation_rad", "median_position_m", "median_rotation_rad"}
    assert max(m.value for m in metrics) < 1e-7


def test_predictions_of_other_lengths_are_refused(folder):
    """Every row is scored."""
    log = cube.read(folder, ["val"]).logs["val"][0]
    with pytest.raises(ValueError, match=r"toss1: expected predictions \(70, 3\)"):
        cube.errors(log, log.measurements[1:, :3], log.measurements[1:, 3:7])


@pytest.mark.parametrize(("arrays", "message"), [
    ({"omega": None}, r"no array \['omega'\]"), ({"vel": np.zeros((3, 3))}, "received {'vel': "),
    ({"offsets": np.array([0, 60, 61, 100])}, "offsets must rise"),
    ({"dt": np.float64(0)}, "dt must be one positive"), ({"dt": np.ones(2)}, "dt must be one positive")])
def test_files_that_are_none_are_refused(folder, arrays, message):
    """Naming the file and what is wrong."""
    change(folder, **arrays)
    with pytest.raises(LogError, match=f"cube.npz: .*{message}"):
        cube.read(folder, ["train"])


@pytest.mark.parametrize("numbers", [[0, 4], [-1], ["0"], None])
def test_splits_of_other_tosses_are_refused(folder, numbers):
    """Numbers beyond the file, or none."""
    (folder / "split.json").write_text(json.dumps({"train": numbers}))
    with pytest.raises(LogError, match="toss numbers below 4"):
        cube.read(folder, ["train"])


def test_metric_is_the_data_sets(data_root):
    """From predictions that stand still and turn away."""
    path = data_root / "score.py"
    if not (data_root / "cube").is_dir() or not path.is_file():
        pytest.skip(f"no tosses or no reference metrics in {data_root}")
    spec = importlib.util.spec_from_file_location("reference_score", path)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    reference.ROOT = str(data_root)
    logs = cube.read(data_root / "cube", ["val"]).logs["val"]
    still = {}
    for log in logs:
        first = np.tile(log.measurements[0], (len(log.measurements), 1))
        still[log.name] = (first[:, :3], first[:, 3:7])
    expected = reference.cube_score({int(n.removeprefix("toss")): p for n, p in still.items()})
    found = {(m.metric, m.horizon): m.value for m in cube.score(logs, still, "still")}
    assert found["position_m", None] == pytest.approx(expected["pos_m"])
    assert found["rotation_rad", None] == pytest.approx(expected["rot_rad"])
    assert found["median_rotation_rad", None] == pytest.approx(expected["rot_median"])
    assert (found["median_position_m", 20], found["median_rotation_rad", 20]) == pytest.approx(expected["step20"])


def test_free_flight_of_the_real_tosses_says_what_is_known_of_them(data_root):
    """Gravity 3 % low, velocities half a row late."""
    if not (data_root / "cube").is_dir():
        pytest.skip(f"no tosses in {data_root}")
    report = examine([cube.flight(log) for log in cube.read(data_root / "cube", ["train"]).logs["train"]])
    assert report.gravity == pytest.approx(9.49, abs=0.03)
    assert report.velocity_lag == pytest.approx(0.0034, abs=3e-4)
    assert len(report.warnings) == 3
