"""Logs of any format become named signals with clocks; npz, CSV, and what is said of files that cannot be read."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from residual_mbrl.datasets import optional_modules
from residual_mbrl.datasets.log_files import read_recordings
from residual_mbrl.datasets.recording import Recording, Signal
from residual_mbrl.errors import LogError

TIME = np.array([0.0, 0.01, 0.02, 0.03])


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def save(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


# --- the plain form -------------------------------------------------------------------------------------------------------------

def test_a_signal_has_one_time_for_each_value() -> None:
    with pytest.raises(LogError, match=r"signal 'q'.*\[4\] and \[3\]"):
        Signal(name="q", time=TIME, values=np.zeros(3))


def test_a_recording_refuses_a_clock_that_goes_backwards() -> None:
    signal = Signal(name="q", time=np.array([0.0, 0.2, 0.1]), values=np.zeros(3))
    with pytest.raises(LogError, match=r"a\.csv: time of 'q' goes backwards at row 2, from 0\.2 s to 0\.1 s"):
        Recording(name="a", path=Path("a.csv"), signals={"q": signal})


def test_the_interval_is_the_median_and_nan_for_one_sample() -> None:
    assert Signal(name="q", time=TIME, values=TIME).interval == pytest.approx(0.01)
    assert np.isnan(Signal(name="q", time=TIME[:1], values=TIME[:1]).interval)


# --- npz ------------------------------------------------------------------------------------------------------------------------

def test_npz_vectors_are_split_and_scalars_are_metadata(tmp_path: Path) -> None:
    q = np.arange(8.0).reshape(4, 2)
    (recording,) = read_recordings([save(tmp_path / "run.npz", t=TIME, q=q, on=np.array([True, False, True, True]), mass=1.5, robot="arm",
                                         picture=np.zeros((4, 2, 2)))])
    assert list(recording.signals) == ["q[0]", "q[1]", "on"]
    np.testing.assert_array_equal(recording.signals["q[1]"].values, q[:, 1])
    np.testing.assert_array_equal(recording.signals["on"].values, [1, 0, 1, 1])
    assert recording.signals["q[0]"].time is recording.signals["on"].time
    assert recording.metadata == {"mass": 1.5, "robot": "arm", "skipped": {"picture": "3 axes [4, 2, 2]"}}
    assert (recording.name, recording.group) == ("run", "run")


def test_npz_arrays_may_have_clocks_of_their_own(tmp_path: Path) -> None:
    raw = np.array([0.0, 0.015])
    (recording,) = read_recordings([save(tmp_path / "run.npz", t=TIME, q=TIME, q_raw=raw, t_raw=raw, u=np.ones((3, 2)), u_t=TIME[1:])])
    assert list(recording.signals) == ["q", "q_raw", "u[0]", "u[1]"]
    np.testing.assert_array_equal(recording.signals["q_raw"].time, raw)
    np.testing.assert_array_equal(recording.signals["u[1]"].time, TIME[1:])


def test_npz_arrays_of_other_lengths_are_refused_with_their_lengths(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"run\.npz: columns differ in length: 4 rows \[t, q\]; 3 rows \[u\]"):
        read_recordings([save(tmp_path / "run.npz", t=TIME, q=TIME, u=np.zeros(3))])


def test_npz_objects_are_not_unpickled(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"array 'q' holds Python objects \(pickle\)"):
        read_recordings([save(tmp_path / "run.npz", t=TIME, q=np.array([1, "a", None, 2], dtype=object))])


def test_a_truncated_npz_is_refused(tmp_path: Path) -> None:
    whole = save(tmp_path / "run.npz", t=TIME, q=np.zeros(4)).read_bytes()
    for cut in range(1, len(whole), 97):
        (tmp_path / "cut.npz").write_bytes(whole[:cut])
        with pytest.raises(LogError, match=r"cut\.npz"):
            read_recordings([tmp_path / "cut.npz"])


def test_dates_are_time_in_their_own_unit(tmp_path: Path) -> None:
    stamps = np.array([0, 5, 10], dtype="datetime64[ms]")
    (recording,) = read_recordings([save(tmp_path / "run.npz", when=stamps, q=np.zeros(3))])
    np.testing.assert_allclose(recording.signals["q"].time, [0, 0.005, 0.01])


# --- time -----------------------------------------------------------------------------------------------------------------------

def test_without_time_the_columns_are_listed(tmp_path: Path) -> None:
    path = write(tmp_path / "run.csv", "q,u\n1,2\n3,4\n")
    with pytest.raises(LogError, match=r"run\.csv: no time column among \[q, u\].*rate="):
        read_recordings([path])
    np.testing.assert_allclose(read_recordings([path], rate=100)[0].signals["u"].time, [0, 0.01])


def test_a_named_time_column_is_taken_or_missed(tmp_path: Path) -> None:
    path = write(tmp_path / "run.csv", "clock,q\n5,2\n5.5,4\n")
    np.testing.assert_array_equal(read_recordings([path], time="clock")[0].signals["q"].time, [5, 5.5])
    with pytest.raises(LogError, match=r"no time column 'tick'; there are \[clock, q\]"):
        read_recordings([path], time="tick")


def test_two_columns_that_may_be_the_time_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "run.csv", "t,timestamp,q\n0,7,1\n0.1,7.1,2\n")
    with pytest.raises(LogError, match=r"\[t, timestamp\] may each be the time; say which"):
        read_recordings([path])
    assert list(read_recordings([path], time="t")[0].signals) == ["timestamp", "q"]


@pytest.mark.parametrize(("header", "unit"), [("t [ms]", None), ("t_ms", None), ("Timestamp(ms)", None), ("t", "ms")])
def test_milliseconds_are_converted_where_file_or_user_states_them(tmp_path: Path, header: str, unit: str | None) -> None:
    path = write(tmp_path / "run.csv", f"{header},q\n0,1\n10,2\n20,3\n")
    (recording,) = read_recordings([path], time_unit=unit)  # type: ignore[arg-type]
    np.testing.assert_allclose(recording.signals["q"].time, [0, 0.01, 0.02])


def test_a_clock_of_unknown_unit_is_asked_for_and_never_guessed(tmp_path: Path) -> None:
    path = write(tmp_path / "run.csv", "t,q\n0,1\n10,2\n20,3\n")
    with pytest.raises(LogError, match=r"'t' advances by 10 a row and states no unit; give it \(time_unit="):
        read_recordings([path])
    np.testing.assert_array_equal(read_recordings([path], time_unit="s")[0].signals["q"].time, [0, 10, 20])
    with pytest.raises(LogError, match="'t' is in 'fortnights'"):
        read_recordings([write(tmp_path / "slow.csv", "t [fortnights],q\n0,1\n10,2\n")])


def test_a_rate_that_the_clock_contradicts_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "run.csv", "t,q\n0,1\n0.01,2\n0.02,3\n")
    assert read_recordings([path], rate=100)
    with pytest.raises(LogError, match=r"runs at 100 Hz, the given rate is 500 Hz"):
        read_recordings([path], rate=500)


def test_a_missing_or_backward_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="time column 't' is nan at row 1"):
        read_recordings([write(tmp_path / "a.csv", "t,q\n0,1\n,2\n0.02,3\n")])
    with pytest.raises(LogError, match="goes backwards at row 2"):
        read_recordings([write(tmp_path / "b.csv", "t,q\n0,1\n0.02,2\n0.01,3\n")])


@pytest.mark.parametrize("options", [{"rate": 0}, {"rate": -1}, {"rate": float("nan")}, {"time_unit": "min"}])
def test_options_without_sense_are_value_errors(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        read_recordings([write(tmp_path / "run.csv", "t,q\n0,1\n")], **options)  # type: ignore[arg-type]


# --- CSV ------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("delimiter", [",", ";", "\t", ", "])
def test_csv_delimiters_comments_units_and_blank_lines(tmp_path: Path, delimiter: str) -> None:
    lines = ["# log of an arm", "t [s]; q1 [rad]; q[0]; note".replace("; ", delimiter), "", "0; 1; 2; start".replace("; ", delimiter),
             "# pause", "0.1; 1e-3; -2; end".replace("; ", delimiter)]
    (recording,) = read_recordings([write(tmp_path / "run.csv", "\ufeff" + "\r\n".join(lines))])
    assert {n: s.unit for n, s in recording.signals.items()} == {"q1": "rad", "q[0]": None}
    np.testing.assert_array_equal(recording.signals["q1"].values, [1, 1e-3])
    np.testing.assert_array_equal(recording.signals["q[0]"].values, [2, -2])
    assert recording.metadata["skipped"] == {"note": "text"}


def test_csv_header_may_be_a_comment_as_numpy_writes_it(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "run.csv", np.column_stack([TIME, TIME]), delimiter=",", header="t,q")
    np.testing.assert_array_equal(read_recordings(tmp_path / "run.csv")[0].signals["q"].values, TIME)


def test_csv_brackets_that_tell_columns_apart_are_no_units(tmp_path: Path) -> None:
    (recording,) = read_recordings([write(tmp_path / "run.csv", "t,state[pan],state[lift]\n0,1,2\n0.1,3,4\n")])
    assert list(recording.signals) == ["state[pan]", "state[lift]"]


def test_csv_missing_cells_are_nan(tmp_path: Path) -> None:
    (recording,) = read_recordings([write(tmp_path / "run.csv", "t,q,u\n0,,1\n0.1,NA,2\n0.2,3,null\n")])
    np.testing.assert_array_equal(recording.signals["q"].values, [np.nan, np.nan, 3])
    np.testing.assert_array_equal(recording.signals["u"].values, [1, 2, np.nan])


@pytest.mark.parametrize(("text", "message"), [
    ("# head\nt,q\n0,1\n\n# x\n0.1,fault\n", r"line 6, column 'q': expected a number, received 'fault'"),
    ("t;q\n0;1\n0.1;1,5\n", r"line 3, column 'q'.*'1,5'; decimal commas are not read"),
    ("t,q\n0,1\n0.1\n", r"line 3 has 1 cells, the header 2"),
    ("t,q,q\n0,1,2\n", r"column names occur more than once: 'q'"),
    ("t [s],t [ms],q\n0,1,2\n", r"no time column among \[t \[s\], t \[ms\], q\]"),
    ("0,1\n0.1,2\n", r"line 1 begins the table with numbers; expected a header"),
    ("t,q\n", r"no rows below the header \[t, q\]"),
    ("# only\n\n", r"no header line and no rows"),
    ("time,q\n2024-01-01,1\n", r"time column 'time' holds text"),
    ("t,note\n0,a\n", r"no numeric signal in 'run'; not read: note \(text\)"),
])
def test_csv_errors_name_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LogError, match=r"run\.csv.*" + message):
        read_recordings([write(tmp_path / "run.csv", text)])


def test_csv_line_numbers_hold_far_down_the_file(tmp_path: Path) -> None:
    rows = [f"{k * 1e-3},{k}" for k in range(9000)]
    rows[8500] = "8.5,?"
    with pytest.raises(LogError, match="line 8503, column 'q'"):
        read_recordings([write(tmp_path / "run.csv", "# c\nt,q\n" + "\n".join(rows))])


def test_csv_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.csv").write_bytes("t,q\n0,1\n".encode("utf-16"))
    with pytest.raises(LogError, match="not a readable UTF-8 text table"):
        read_recordings([tmp_path / "run.csv"])


@given(values=hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(width=64)),
       delimiter=st.sampled_from([",", ";", "\t"]))
def test_csv_and_npz_give_back_every_number_exactly(tmp_path_factory: pytest.TempPathFactory, values: np.ndarray, delimiter: str) -> None:
    folder = tmp_path_factory.mktemp("logs")
    time = np.arange(len(values)) * 0.01
    save(folder / "a.npz", t=time, q=values)
    text = io.StringIO()
    text.write(delimiter.join(["t", *(f"q[{j}]" for j in range(values.shape[1]))]) + "\n")
    for t, row in zip(time, values, strict=True):
        text.write(delimiter.join([repr(float(t)), *(repr(float(x)) for x in row)]) + "\n")
    write(folder / "b.csv", text.getvalue())
    for recording in read_recordings([folder / "a.npz", folder / "b.csv"]):
        assert list(recording.signals) == [f"q[{j}]" for j in range(values.shape[1])]
        for j, signal in enumerate(recording.signals.values()):
            np.testing.assert_array_equal(signal.values, values[:, j])
            np.testing.assert_array_equal(signal.time, time)


# --- files ----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "content", "message"), [
    ("run.csv", b"", "the file is empty"),
    ("run.log", b"t,q\n", r"unknown format '\.log'; expected NumPy npz \(\.npz\), CSV \(\.csv, \.tsv\), Parquet .* MCAP \(\.mcap\)"),
    ("run.bag", b"#ROSBAG V2.0", r"convert ROS 1 bags with `mcap convert`"),
    ("run.dat", b"\x89HDF\r\n\x1a\n", r"it holds HDF5: rename it to \.h5"),
    ("run.csv", b"PAR1....", r"is named as a CSV file but holds Parquet: rename it to \.parquet"),
    ("run.mcap", b"t,q\n0,1\n", r"is named as a MCAP file but does not begin as one"),
])
def test_files_that_are_not_what_they_seem(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LogError, match=message):
        read_recordings([tmp_path / name])


def test_missing_files_and_strange_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="no such file"):
        read_recordings([tmp_path / "run.csv"])
    with pytest.raises(LogError, match="is a folder, but no LeRobot"):
        read_recordings([tmp_path])
    with pytest.raises(ValueError, match="received none"):
        read_recordings([])


def test_names_that_coincide_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    for folder in ("mon", "tue"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "run.csv", "t,q\n0,1\n0.1,2\n")
    other = save(tmp_path / "other.npz", t=TIME, q=TIME)
    recordings = read_recordings([tmp_path / "mon" / "run.csv", tmp_path / "tue" / "run.csv", other])
    assert [r.name for r in recordings] == ["mon-run.csv", "tue-run.csv", "other"]
    assert [r.group for r in recordings] == ["mon-run.csv", "tue-run.csv", "other"]


def test_a_file_given_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "run.csv", "t,q\n0,1\n")
    with pytest.raises(LogError, match="given more than once"):
        read_recordings([path, tmp_path / "." / "run.csv"])


def test_an_absent_package_is_named_with_its_extra() -> None:
    message = r"run\.mcap: reading \.mcap files needs the package 'no_such_package': pip install 'residual-mbrl\[logs\]'"
    with pytest.raises(LogError, match=message):
        optional_modules.load_module("no_such_package", Path("run.mcap"))


def test_real_logs_are_read(data_root: Path) -> None:
    (recording,) = read_recordings([data_root / "bam_xl330" / "sin_sin_kp100.npz"])
    assert len(recording.signals["q"].time) == 1201
    assert len(recording.signals["q_raw"].time) == 1124
    assert recording.metadata["kp"] == 100
