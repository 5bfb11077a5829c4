"""The readers give what the files hold, score as the data's own metric does, and refuse what is no such data."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil

import numpy as np
import pytest

from residual_mbrl.datasets import bam, emps, schmidt_lipson
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import LogError
from residual_mbrl.files import sha256
from residual_mbrl.model import Model
from residual_mbrl.presets import PRESETS
from residual_mbrl.windows import cut_windows

READERS = {"servo": bam.read, "drive": emps.read, "pendulum": schmidt_lipson.read_single, "double_pendulum": schmidt_lipson.read_double}


@pytest.fixture(scope="module")
def reference(data_root):
    """The data folder's own metrics."""
    path = data_root / "score.py"
    if not path.is_file():
        pytest.skip(f"no reference metrics: {path} is absent")
    spec = importlib.util.spec_from_file_location("reference_score", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ROOT = str(data_root)
    return module


def nominal(preset):
    baseline = PRESETS[preset].baseline()
    return Model(dynamics=ResidualDynamics(baseline), sensor=PRESETS[preset].sensor(baseline))


def by_name(metrics):
    return {(m.metric, m.horizon): m.value for m in metrics}


def test_servo_metric_is_the_data_sets(data_root, reference):
    """Mean over logs of the mean angle error, and each log's, from the same predicted angles."""
    folder, model = data_root / "bam_xl330", nominal("servo")
    windows = cut_windows(bam.read(folder, ["val"]).logs["val"], model.dynamics.dt)
    angles = model.predict(windows).measurements[..., 0]
    rows = {n: len(reference.load("bam_xl330", n)["q"]) for n in windows.names}
    mean, per_log = reference.bam_score({n: a[: rows[n]].numpy() for n, a in zip(windows.names, angles, strict=True)})
    found = by_name(bam.score(model, folder, "val", "nominal"))
    assert found["mae_rad", None] == pytest.approx(mean, rel=1e-6)
    assert {n: found[f"mae_rad[{n}]", None] for n in per_log} == pytest.approx(per_log, rel=1e-6)


def test_drive_metric_is_the_data_sets(data_root, reference):
    """Root mean square over 2 s windows, and over the whole part in open loop, from the same predicted positions."""
    folder, model = data_root / "emps", nominal("drive")
    split = reference.split("emps")

    class Recorder(Model):
        def predict(self, windows):
            out = Model.predict(self, windows)
            seen.append((windows.start.tolist(), out.measurements[..., 0].numpy()))
            return out

    seen = []
    found = by_name(emps.score(Recorder(dynamics=model.dynamics, sensor=model.sensor), folder, "val", "nominal"))
    a, b = split["val"]
    (starts, windows), (_, whole) = seen
    assert [a + s for s in starts] == split["val_window_starts"]
    for start, window in zip(split["val_window_starts"], windows, strict=True):
        assert window[0] == pytest.approx(reference.emps_initial(start)[0], abs=1e-12)
        assert window[1] - window[0] == pytest.approx(1e-3 * reference.emps_initial(start)[1], abs=2e-6)
    pred = dict(zip(split["val_window_starts"], windows, strict=True))
    assert found["rmse_windows_mm", 2000] == pytest.approx(reference.emps_score(pred), rel=1e-9)
    assert whole.shape == (1, b - a)
    assert found["rmse_open_loop_mm", None] == pytest.approx(reference.emps_score({a: whole[0]}, None), rel=1e-9)


def test_drives_simulation_is_the_references(data_root, reference):
    """With the published parameters the two simulators, written apart, score within a few percent."""
    force, starts = reference.load("emps", "emps")["force"], reference.split("emps")["val_window_starts"]
    theirs = reference.emps_score({i: reference.emps_simulate(force[i : i + 2000], *reference.emps_initial(i)) for i in starts})
    ours = by_name(emps.score(nominal("drive"), data_root / "emps", "val", "nominal"))["rmse_windows_mm", 2000]
    assert ours == pytest.approx(theirs, rel=0.03)


def test_single_pendulum_metric_is_the_data_sets(data_root, reference):
    """Mean squared error of the differences over every pair of the part, across missing frames too."""
    folder, model = data_root / "schmidt_lipson", nominal("pendulum")
    data = schmidt_lipson.read_single(folder, ["val"])
    dt, pairs = model.dynamics.dt, reference.split("schmidt_lipson")["single"]["val"]
    x, dx = reference.single_pairs()
    time = reference.load("schmidt_lipson", "real_pend_h_1")["t"]
    gaps = max(int(np.rint(np.diff(log.measurement_time).max() / dt)) for log in data.logs["val"])
    windows = cut_windows(data.logs["val"], dt, horizon=gaps, starts=data.starts["val"])
    assert len(windows) == len(pairs)
    predicted = model.predict(windows).measurements.numpy()
    steps = np.rint((time[np.array(pairs) + 1] - time[pairs]) / dt).astype(int)
    # the filtered column's first sample is solved for, to rounding; the metric's differences start from the recorded one
    moved = predicted[np.arange(len(pairs)), steps] - predicted[:, 0]
    expected = reference.single_score(moved / (time[np.array(pairs) + 1] - time[pairs])[:, None], "val")
    assert np.abs(predicted[:, 0] - x[pairs]).max() < 1e-6
    found = by_name(schmidt_lipson.score_single(model, folder, "val", "nominal"))["mse_dxdt", None]
    assert found == pytest.approx(expected, rel=1e-6)
    assert found < ((dx[pairs]) ** 2).mean()


def test_double_pendulum_metrics_are_the_data_sets(data_root, reference):
    """Rollout errors at each horizon with their starts, and R² of the accelerations, from the same predictions."""
    folder, model, dt = data_root / "schmidt_lipson", nominal("double_pendulum"), schmidt_lipson.DOUBLE_STEP
    data = schmidt_lipson.read_double(folder, ["val"])
    windows = cut_windows(data.logs["val"], dt, horizon=25, starts=data.starts["val"])
    starts = reference.double_starts("val")
    theta = model.predict(windows).measurements[..., :2].numpy()
    assert len(starts) == len(windows)
    recorded = reference.load("schmidt_lipson", "real_double_pend_h_1")
    assert np.abs(theta[:, 0] - recorded["theta"][starts]).max() < 1e-6
    found = by_name(schmidt_lipson.score_double(model, folder, "val", "nominal"))
    for h, (median, mean, count) in reference.double_rollout_score(dict(zip(starts, theta, strict=True))).items():
        assert found["angle_median_rad", h] == pytest.approx(median, rel=1e-6)
        assert found["angle_mean_rad", h] == pytest.approx(mean, rel=1e-6)
        assert count == int(windows.recorded[:, h, 0].sum())
    a, b = reference.split("schmidt_lipson")["double"]["val"]
    grid = np.rint((recorded["t"][a:b] - recorded["t"][a]) / dt).astype(int)
    rows = cut_windows(data.logs["val"], dt, horizon=1, starts=[grid.tolist()])
    r2 = reference.double_score(model.predict(rows).measurements[:, 0, 4:6].numpy(), "val")
    assert [found[f"acceleration_r2_link{i}", None] for i in (1, 2)] == pytest.approx(r2, rel=1e-6)


FOLDERS = {"servo": ("bam_xl330", 9, ("q", "dq")), "drive": ("emps", emps.BLOCKS, ("position", "speed")),
           "pendulum": ("schmidt_lipson", 1, ("theta", "omega")),
           "double_pendulum": ("schmidt_lipson", 1, ("theta1", "theta2", "omega1", "omega2", "alpha1", "alpha2"))}


@pytest.mark.parametrize("preset", FOLDERS)
def test_training_logs_are_read_with_units_and_hashes(data_root, preset):
    """Logs, their columns and units, and the hash of every file they came from."""
    folder, least, columns = FOLDERS[preset]
    data = READERS[preset](data_root / folder, ["train"])
    logs = data.logs["train"]
    assert len(logs) >= least
    stated = set(columns) - ({"omega"} if preset == "pendulum" else set())  # that file's unit of time is not known
    assert all(log.measurement_names == columns and set(log.units) >= stated for log in logs)
    assert set(data.logs) == {"train"}
    assert data.hashes() == {f.name: sha256(f) for f in data.files}


def test_parts_share_no_rows(data_root):
    """Training and validation rows of the drive neither overlap nor leave a gap, and stop where the split says."""
    data = emps.read(data_root / "emps", ["train", "val"])
    train, val = ([log.measurement_time for log in data.logs[p]] for p in ("train", "val"))
    rows = np.concatenate([*train, *val])
    assert len(rows) == 15000
    assert (np.diff(rows) > 0).all()
    assert len({log.group for p in ("train", "val") for log in data.logs[p]}) == emps.BLOCKS + 1
    assert data.starts["train"][0][0] == emps.WARM_UP


# Small folders in the form of each set, to damage.


def servo_arrays(n=40):
    t = 0.005 * np.arange(n)
    return {"t": t, "q": np.sin(t), "dq": np.cos(t), "q_goal": np.sin(t), "torque_on": np.ones(n, bool), "kp": np.array(200.0)}


def drive_arrays(n=9000):
    t = 1e-3 * np.arange(n)
    return {"t": t, "q": 0.1 * np.sin(t), "force": np.cos(t)}


def pendulum_arrays(n=60):
    t = np.arange(n) / 6
    return {"t": t, "theta": np.sin(t), "omega": np.cos(t)}


def double_arrays(n=120):
    t = 0.01 * np.arange(n)
    two = np.stack([np.sin(t), np.cos(t)], 1)
    return {"t": t, "theta": two, "omega": two, "alpha": two}


FILES = {"servo": ("a", servo_arrays, {"train": ["a"], "val": []}),
         "drive": ("emps", drive_arrays, {"train": [0, 6000], "val": [6000, 9000], "val_window_starts": [6000]}),
         "pendulum": ("real_pend_h_1", pendulum_arrays, {"single": {"train": list(range(40)), "val": list(range(40, 59))}}),
         "double_pendulum": ("real_double_pend_h_1", double_arrays,
                             {"double": {"train": [0, 60], "val": [60, 120], "rollout_stride": 5, "rollout_steps": 25}})}


def write(folder, preset, **changes):
    """Write a small set; arrays replaced by ``changes``, left out where None."""
    name, arrays, split = FILES[preset]
    arrays = {n: a for n, a in {**arrays(), **changes}.items() if a is not None}
    np.savez(folder / f"{name}.npz", **arrays)
    (folder / "split.json").write_text(json.dumps(split))
    return folder / f"{name}.npz"


def refused(preset, folder, message, part="train"):
    with pytest.raises(LogError, match=message):
        READERS[preset](folder, [part])


every_set = pytest.mark.parametrize("preset", FILES)


@every_set
def test_small_sets_are_read(tmp_path, preset):
    """The sets that the tests below damage are good as they are."""
    write(tmp_path, preset)
    data = READERS[preset](tmp_path, ["train"])
    assert sum(len(log.measurements) for log in data.logs["train"]) > 30


@every_set
def test_a_missing_folder_is_named(tmp_path, preset):
    """A mistyped folder gives a message with its name."""
    refused(preset, tmp_path / "nowhere", "nowhere")


@every_set
def test_a_missing_array_is_named(tmp_path, preset):
    """A file without one of its columns is refused with that column and those that are there."""
    path = write(tmp_path, preset, t=None)
    refused(preset, tmp_path, rf"{re.escape(str(path))}: no array \['t'\]; there are ")


@every_set
def test_arrays_of_different_length_are_named(tmp_path, preset):
    """A column with fewer rows than time stamps is refused by name."""
    arrays = FILES[preset][1]()
    name = "force" if preset == "drive" else "q" if preset == "servo" else "omega"
    path = write(tmp_path, preset, **{name: arrays[name][:-7]})
    refused(preset, tmp_path, rf"{re.escape(str(path))}: arrays differ in length.*{name} {len(arrays['t']) - 7}")


def test_a_gain_for_every_row_must_have_every_row(tmp_path):
    """The servo's gain may be one number or one for each row, and nothing between."""
    write(tmp_path, "servo", kp=np.full(40, 200.0))
    assert bam.read(tmp_path, ["train"]).logs["train"][0].group == "kp200"
    write(tmp_path, "servo", kp=np.full(12, 200.0))
    refused("servo", tmp_path, "kp 12")


@every_set
@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "array", "flipped"])
def test_a_damaged_file_is_named(tmp_path, preset, damage):
    """A file that is no whole npz is refused by name."""
    path = write(tmp_path, preset)
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes({"truncated": whole[:middle], "text": b"time,angle\n0,1\n", "empty": b"",
                      "array": b"\x93NUMPY\x01\x00" + whole[:20], "flipped": whole[:200] + bytes([whole[200] ^ 255]) + whole[201:]}[damage])
    refused(preset, tmp_path, rf"{re.escape(str(path))}: not a readable npz file")


@pytest.mark.parametrize("preset", ["drive", "pendulum", "double_pendulum"])
def test_a_missing_split_is_named(tmp_path, preset):
    """Without a split there is no telling training from test data."""
    write(tmp_path, preset)
    (tmp_path / "split.json").unlink()
    refused(preset, tmp_path, "no split.json, which says which data train and which test")


def test_servo_logs_without_a_split_all_train(tmp_path):
    """Somebody's own servo logs need no split: all of them train, and one gain is held out at a time."""
    write(tmp_path, "servo")
    (tmp_path / "split.json").unlink()
    data = bam.read(tmp_path, ["train", "val"])
    assert [log.name for log in data.logs["train"]] == ["a"]
    assert list(data.logs["val"]) == []


@every_set
@pytest.mark.parametrize("text", ["{", "[1, 2]"])
def test_a_wrong_split_is_named(tmp_path, preset, text):
    """A split that is no JSON object is refused by name."""
    write(tmp_path, preset)
    (tmp_path / "split.json").write_text(text)
    refused(preset, tmp_path, r"split\.json: (no valid JSON|expected an object)")


@every_set
def test_a_part_that_the_split_lacks_is_named(tmp_path, preset):
    """Asking for a part that is not there names the part."""
    write(tmp_path, preset)
    refused(preset, tmp_path, "test", part="test")


def test_no_logs_is_said(tmp_path):
    """An empty folder, or an empty part, is no data set."""
    refused("servo", tmp_path, r"no logs \(\*\.npz\) of train")
    write(tmp_path, "servo")
    refused("servo", tmp_path, "of val", part="val")


def test_a_log_that_the_split_names_must_exist(tmp_path):
    """A log named in the split but absent is named."""
    write(tmp_path, "servo").unlink()
    refused("servo", tmp_path, r"a\.npz: no such file")


def test_pickles_are_never_loaded(tmp_path):
    """An array of Python objects, which could run code, is refused."""
    write(tmp_path, "servo", q=np.array([{"a": 1}] * 40, dtype=object))
    refused("servo", tmp_path, "not a readable npz file")


def test_scoring_a_part_without_windows_is_refused(data_root, tmp_path):
    """The drive's training part has no list of window starts, and the message says so."""
    shutil.copy(data_root / "emps" / "split.json", tmp_path)
    shutil.copy(data_root / "emps" / "emps.npz", tmp_path)
    with pytest.raises(LogError, match="no list train_window_starts"):
        emps.score(nominal("drive"), tmp_path, "train", "nominal")
