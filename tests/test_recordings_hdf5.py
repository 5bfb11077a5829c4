"""HDF5 files of Minari, robomimic, and plain ones, become recordings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from residual_mbrl.datasets.log_files import read_recordings
from residual_mbrl.errors import LogError

h5py = pytest.importorskip("h5py")


def write(path: Path, content: dict[str, Any], attributes: dict[str, dict[str, Any]] | None = None) -> Path:
    """Write data sets by their path, and the attributes of groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, value in content.items():
            file[name] = value
        for name, values in (attributes or {}).items():
            file[name].attrs.update(values)
    return path


def minari(path: Path, steps: tuple[int, ...] = (4, 3)) -> Path:
    content: dict[str, Any] = {}
    for k, n in enumerate(steps):
        content |= {f"episode_{k}/observations/angle": np.arange(n + 1.0), f"episode_{k}/observations/velocity": np.ones((n + 1, 2)),
                    f"episode_{k}/observations/image": np.zeros((n + 1, 2, 2, 3), np.uint8), f"episode_{k}/actions": np.full((n, 1), k),
                    f"episode_{k}/rewards": np.zeros(n), f"episode_{k}/terminations": np.zeros(n, bool),
                    f"episode_{k}/infos": np.array([b"{}"] * (n + 1))}
    return write(path, content, {"/": {"env_spec": json.dumps({"id": "Pendulum-v1"})}, "episode_1": {"id": 1, "seed": 7}})


def test_minari_episodes_have_one_observation_more_than_actions(tmp_path: Path) -> None:
    recordings = read_recordings([minari(tmp_path / "swing-v0" / "data" / "main_data.hdf5")], rate=20)
    assert [r.name for r in recordings] == ["swing-v0-episode_0", "swing-v0-episode_1"]
    signals = recordings[1].signals
    assert list(signals) == ["actions[0]", "observations/angle", "observations/velocity[0]", "observations/velocity[1]", "rewards",
                             "terminations"]
    np.testing.assert_allclose(signals["observations/angle"].time, np.arange(4) / 20)
    np.testing.assert_allclose(signals["actions[0]"].time, np.arange(3) / 20)
    np.testing.assert_array_equal(signals["actions[0]"].values, 1)
    assert (recordings[1].metadata["seed"], recordings[1].metadata["rate"]) == (7, 20)
    assert recordings[1].metadata["skipped"] == {"infos": "text", "observations/image": "4 axes [4, 2, 2, 3]"}


def test_minari_asks_for_the_rate_that_it_does_not_record(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"Minari records no time \(environment Pendulum-v1\); give the rate"):
        read_recordings([minari(tmp_path / "main_data.hdf5")])


def test_a_minari_folder_is_found_by_its_file(tmp_path: Path) -> None:
    minari(tmp_path / "swing-v0" / "data" / "main_data.hdf5", steps=tuple([2] * 11))
    recordings = read_recordings([tmp_path / "swing-v0"], rate=10)
    assert [r.name for r in recordings][-1] == "swing-v0-episode_10"


def robomimic(path: Path, env_args: dict[str, Any] | None) -> Path:
    content: dict[str, Any] = {}
    for name, n in (("demo_0", 3), ("demo_10", 4), ("demo_2", 5)):
        content |= {f"data/{name}/actions": np.ones((n, 2)), f"data/{name}/states": np.column_stack([np.arange(n) * 0.05, np.ones(n)]),
                    f"data/{name}/obs/joint_pos": np.zeros((n, 2)), f"data/{name}/next_obs/joint_pos": np.zeros((n, 2)),
                    f"data/{name}/obs/picture": np.zeros((n, 4, 4, 3), np.uint8)}
    attributes: dict[str, dict[str, Any]] = {"data/demo_0": {"num_samples": 3, "model_file": "<mujoco/>"}}
    if env_args is not None:
        attributes["data"] = {"env_args": json.dumps(env_args), "total": 12}
    return write(path, content, attributes)


def test_robomimic_demonstrations_run_at_the_control_frequency(tmp_path: Path) -> None:
    recordings = read_recordings([robomimic(tmp_path / "lift.hdf5", {"env_name": "Lift", "env_kwargs": {"control_freq": 20}})])
    assert [r.name for r in recordings] == ["lift-demo_0", "lift-demo_2", "lift-demo_10"]
    first = recordings[0]
    assert list(first.signals) == ["actions[0]", "actions[1]", "obs/joint_pos[0]", "obs/joint_pos[1]", "states[0]", "states[1]"]
    np.testing.assert_allclose(first.signals["obs/joint_pos[1]"].time, np.arange(3) / 20)
    assert first.metadata["env_args"] == {"env_name": "Lift", "env_kwargs": {"control_freq": 20}}
    assert "model_file" not in first.metadata


def test_robomimic_without_control_frequency_asks_for_the_rate(tmp_path: Path) -> None:
    path = robomimic(tmp_path / "real.h5", {"env_name": "real"})
    with pytest.raises(LogError, match=r"no control_freq in the attribute env_args of data; give the rate"):
        read_recordings([path])
    np.testing.assert_allclose(read_recordings([path], rate=10)[0].signals["actions[0]"].time, [0, 0.1, 0.2])
    np.testing.assert_allclose(read_recordings([path], time="states[0]")[0].signals["actions[0]"].time, [0, 0.05, 0.1])
    with pytest.raises(LogError, match="demo_0 has no array 'clock' for the time"):
        read_recordings([path], time="clock")


def test_a_rate_against_the_control_frequency_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="control_freq in env_args is 20 Hz, the given rate 500 Hz"):
        read_recordings([robomimic(tmp_path / "lift.h5", {"env_kwargs": {"control_freq": 20}})], rate=500)


def test_episodes_with_missing_rows_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "lift.h5", {"data/demo_0/actions": np.ones((9, 2)), "data/demo_0/obs/q": np.ones(5)})
    with pytest.raises(LogError, match="demo_0/obs/q has 5 rows where others have 9"):
        read_recordings([path], rate=10)


def test_plain_arrays_at_the_root_are_a_table(tmp_path: Path) -> None:
    path = write(tmp_path / "run.h5", {"time": np.arange(3) * 0.1, "q": np.ones((3, 2)), "mass": 2.0}, {"q": {"unit": "rad"}})
    (recording,) = read_recordings([path])
    assert {n: s.unit for n, s in recording.signals.items()} == {"q[0]": "rad", "q[1]": "rad"}
    assert recording.metadata["mass"] == 2


def test_other_layouts_are_shown_as_a_tree(tmp_path: Path) -> None:
    path = write(tmp_path / "run.h5", {f"upload/run_{k}/q": np.ones((3, 2)) for k in range(15)})
    with pytest.raises(LogError, match=r"neither Minari .* robomimic .*; it holds upload/, upload/run_0/, upload/run_0/q \[3, 2\], .*more"):
        read_recordings([path])
    with pytest.raises(LogError, match="it holds nothing"):
        read_recordings([write(tmp_path / "none.h5", {})])
    with pytest.raises(LogError, match="D4RL"):
        read_recordings([write(tmp_path / "d4rl.h5", dict.fromkeys(("observations", "actions", "terminals"), np.ones(3)))], rate=10)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    whole = minari(tmp_path / "main_data.hdf5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LogError, match=r"cut\.h5: not a readable HDF5 file"):
        read_recordings([tmp_path / "cut.h5"])


@given(values=hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=5), elements=st.floats(width=64)))
def test_hdf5_gives_back_every_number_exactly(tmp_path_factory: pytest.TempPathFactory, values: np.ndarray) -> None:
    path = write(tmp_path_factory.mktemp("logs") / "run.h5", {"episode_0/observations": values, "episode_0/actions": values[:-1]})
    (recording,) = read_recordings([path], rate=100)
    for j in range(values.shape[1]):
        np.testing.assert_array_equal(recording.signals[f"observations[{j}]"].values, values[:, j])
        np.testing.assert_array_equal(recording.signals[f"actions[{j}]"].values, values[:-1, j])
