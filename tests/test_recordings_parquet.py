"""Parquet tables and LeRobot data sets become recordings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from residual_mbrl.datasets.log_files import read_recordings
from residual_mbrl.errors import LogError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

FPS = 50
JOINTS = ["shoulder_pan.pos", "gripper.pos"]


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, **options), path)
    return path


def test_vectors_records_units_and_dates(tmp_path: Path) -> None:
    stamps = pa.array([1_700_000_000_000_000_000 + k * 2_000_000 for k in range(3)], pa.timestamp("ns", tz="UTC"))
    fields = [pa.field("when", stamps.type), pa.field("q [rad]", pa.float32()), pa.field("tau", pa.float64(), metadata={"unit": "N m"}),
              pa.field("state", pa.list_(pa.float64())),
              pa.field("imu", pa.struct([("acc", pa.list_(pa.float64(), 2)), ("ok", pa.bool_())])), pa.field("note", pa.string())]
    table = pa.table([stamps, [1, 2, None], [1.0, 2.0, 3.0], [[1, 2], None, [5, 6]], [{"acc": [1, 2], "ok": True}] * 3, ["a"] * 3],
                     schema=pa.schema(fields))
    pq.write_table(table, tmp_path / "run.parquet")
    (recording,) = read_recordings([tmp_path / "run.parquet"])
    signals = recording.signals
    assert list(signals) == ["q", "tau", "state[0]", "state[1]", "imu.acc[0]", "imu.acc[1]", "imu.ok"]
    assert (signals["q"].unit, signals["tau"].unit) == ("rad", "N m")
    np.testing.assert_array_equal(signals["q"].values, [1, 2, np.nan])
    np.testing.assert_array_equal(signals["state[1]"].values, [2, np.nan, 6])
    np.testing.assert_allclose(np.diff(signals["q"].time), 0.002, rtol=1e-3)
    assert recording.metadata["skipped"] == {"note": "string"}


def test_nanoseconds_as_integers_are_converted_where_the_name_says_so(tmp_path: Path) -> None:
    stamps = [1_700_000_000_000_000_001 + k * 10_000_000 for k in range(3)]
    path = write(tmp_path / "run.parquet", {"timestamp_ns": stamps, "q": [1.0, 2.0, 3.0]})
    np.testing.assert_allclose(np.diff(read_recordings(path)[0].signals["q"].time), 0.01, rtol=1e-4)
    path = write(tmp_path / "bare.parquet", {"timestamp": stamps, "q": [1.0, 2.0, 3.0]})
    with pytest.raises(LogError, match=r"'timestamp' advances by 1e\+07 a row and states no unit"):
        read_recordings(path)


def test_vectors_that_change_their_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="column 'q' has 3 elements at row 2, 2 before"):
        read_recordings(write(tmp_path / "run.parquet", {"t": [0.0, 0.1, 0.2], "q": [[1, 2], [3, 4], [5, 6, 7]]}))


def test_damaged_and_empty_tables_are_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "run.parquet", {"t": [0.0, 0.1], "q": [1.0, 2.0]}).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LogError, match=r"cut\.parquet: not a readable Parquet file"):
        read_recordings(tmp_path / "cut.parquet")
    with pytest.raises(LogError, match="no rows"):
        read_recordings(write(tmp_path / "none.parquet", {"t": pa.array([], pa.float64())}))


@given(values=hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=5), elements=st.floats(width=64)))
def test_parquet_gives_back_every_number_exactly(tmp_path_factory: pytest.TempPathFactory, values: np.ndarray) -> None:
    time = np.arange(len(values)) * 0.01
    path = write(tmp_path_factory.mktemp("logs") / "run.parquet", {"t": time, "q": values.tolist()})
    for j, signal in enumerate(read_recordings(path)[0].signals.values()):
        np.testing.assert_array_equal(signal.values, values[:, j])
        np.testing.assert_array_equal(signal.time, time)


def make_dataset(root: Path, lengths: list[int], *, files: int = 1) -> Path:
    """Write a small data set in LeRobot's v3 layout: episodes after one another, cut into files."""
    rows: list[dict[str, Any]] = []
    for episode, length in enumerate(lengths):
        for k in range(length):
            rows.append({"observation.state": [episode + k / 10, -k / 10], "action": [k / 5, 1.0], "next.done": k == length - 1,
                         "timestamp": k / FPS, "frame_index": k, "episode_index": episode, "index": len(rows), "task_index": 0})
    for part, chosen in enumerate(np.array_split(np.arange(len(rows)), files)):
        table = {n: [rows[i][n] for i in chosen] for n in rows[0]}
        table["timestamp"] = pa.array(table["timestamp"], pa.float32())
        write(root / f"data/chunk-000/file-{part:03d}.parquet", table)
    vector = {"dtype": "float32", "shape": [2]}
    features = {"observation.state": vector | {"names": JOINTS}, "action": vector | {"names": {"motors": JOINTS}},
                "observation.images.top": {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]},
                "next.done": {"dtype": "bool", "shape": [1], "names": ["done"]}}
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps({
        "codebase_version": "v3.0", "robot_type": "so101", "fps": FPS, "total_episodes": len(lengths), "total_frames": len(rows),
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet", "features": features}))
    write(root / "meta/episodes/chunk-000/file-000.parquet", {
        "episode_index": list(range(len(lengths))), "length": lengths, "tasks": [["pick"]] * len(lengths),
        "stats/action/mean": [[0.0, 0.0]] * len(lengths)})
    return root


@pytest.mark.parametrize("files", [1, 3])
def test_lerobot_episodes_are_recordings_with_named_joints(tmp_path: Path, files: int) -> None:
    root = make_dataset(tmp_path / "pick", [5, 4, 6], files=files)
    recordings = read_recordings([root])
    assert [r.name for r in recordings] == ["pick-episode_0", "pick-episode_1", "pick-episode_2"]
    second = recordings[1]
    assert list(second.signals) == [f"{v}.{j}" for v in ("observation.state", "action") for j in JOINTS] + ["next.done"]
    np.testing.assert_allclose(second.signals["observation.state.shoulder_pan.pos"].values, 1 + np.arange(4) / 10)
    np.testing.assert_allclose(second.signals["action.shoulder_pan.pos"].time, np.arange(4) / FPS, atol=1e-7)
    assert second.metadata["tasks"] == ["pick"]
    assert (second.metadata["rate"], second.metadata["robot_type"], second.metadata["episode"]) == (FPS, "so101", 1)
    assert second.metadata["skipped"] == {"observation.images.top": "video"}


def test_single_files_of_a_lerobot_data_set_can_be_read(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "pick", [4, 4, 4], files=3)
    (recording,) = read_recordings([root / "data/chunk-000/file-001.parquet"])
    assert recording.name == "pick-episode_1"
    assert "action.gripper.pos" in recording.signals


def test_lerobot_without_stamps_runs_at_its_frame_rate(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "pick", [4])
    file = root / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["timestamp"]), file)
    np.testing.assert_allclose(read_recordings([root])[0].signals["next.done"].time, np.arange(4) / FPS)


def test_an_incomplete_lerobot_data_set_is_refused(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "pick", [4, 4, 4], files=3)
    cut = make_dataset(tmp_path / "cut", [4, 4])
    (root / "data/chunk-000/file-002.parquet").unlink()
    with pytest.raises(LogError, match=r"tells of 3 episodes, the data files hold 2 \(download incomplete\?\)"):
        read_recordings([root])
    file = cut / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(file).slice(0, 7), file)
    with pytest.raises(LogError, match="episode 1 has 3 rows in file-000.parquet, meta/episodes tells of 4"):
        read_recordings([cut])
    shutil.rmtree(root / "data")
    with pytest.raises(LogError, match=r"no data/chunk-\*/\*\.parquet"):
        read_recordings([root])


@pytest.mark.parametrize(("text", "message"), [
    ("{", "not readable as JSON"), ("{}", "no 'features'"), ('{"features": {}}', "'fps' is None")])
def test_wrong_lerobot_descriptions_are_refused(tmp_path: Path, text: str, message: str) -> None:
    root = make_dataset(tmp_path / "pick", [4])
    (root / "meta/info.json").write_text(text)
    with pytest.raises(LogError, match=message):
        read_recordings([root])


def test_lerobot_v2_has_one_file_an_episode(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "pick", [4, 5], files=1)
    table = pq.read_table(root / "data/chunk-000/file-000.parquet")
    (root / "data/chunk-000/file-000.parquet").unlink()
    shutil.rmtree(root / "meta/episodes")
    (root / "meta/episodes.jsonl").write_text("".join(
        json.dumps({"episode_index": k, "tasks": ["old"], "length": 4 + k}) + "\n" for k in (0, 1)))
    for k, (start, length) in enumerate([(0, 4), (4, 5)]):
        pq.write_table(table.slice(start, length), root / f"data/chunk-000/episode_{k:06d}.parquet")
    recordings = read_recordings([root])
    assert [(r.name, len(r.signals["next.done"].time), r.metadata["tasks"]) for r in recordings] == [
        ("pick-episode_0", 4, ["old"]), ("pick-episode_1", 5, ["old"])]
