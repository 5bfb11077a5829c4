"""MCAP logs of ROS 2 and JSON messages become recordings, one clock a topic."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from residual_mbrl.datasets.joint_states import JointStateReader, is_joint_state
from residual_mbrl.datasets.log_files import read_recordings
from residual_mbrl.datasets.message_fields import stamp_of, walk_fields
from residual_mbrl.errors import LogError

pytest.importorskip("mcap")
mcap_writer = pytest.importorskip("mcap.writer")
ros2_writer = pytest.importorskip("mcap_ros2.writer")

HEADER = """
================================================================================
MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
================================================================================
MSG: builtin_interfaces/Time
int32 sec
uint32 nanosec
"""
JOINT_STATE = "std_msgs/Header header\nstring[] name\nfloat64[] position\nfloat64[] velocity\nfloat64[] effort\n" + HEADER
ARRAY = """std_msgs/MultiArrayLayout layout
float64[] data
================================================================================
MSG: std_msgs/MultiArrayLayout
std_msgs/MultiArrayDimension[] dim
uint32 data_offset
================================================================================
MSG: std_msgs/MultiArrayDimension
string label
uint32 size
uint32 stride
"""
TRAJECTORY = """std_msgs/Header header
string[] joint_names
trajectory_msgs/JointTrajectoryPoint[] points
================================================================================
MSG: trajectory_msgs/JointTrajectoryPoint
float64[] positions
float64[] velocities
builtin_interfaces/Duration time_from_start
================================================================================
MSG: builtin_interfaces/Duration
int32 sec
uint32 nanosec
""" + HEADER
DYNAMIC = """std_msgs/Header header
string[] joint_names
control_msgs/InterfaceValue[] interface_values
================================================================================
MSG: control_msgs/InterfaceValue
string[] interface_names
float64[] values
""" + HEADER
IMU = """std_msgs/Header header
geometry_msgs/Vector3 angular_velocity
float64[9] angular_velocity_covariance
================================================================================
MSG: geometry_msgs/Vector3
float64 x
float64 y
float64 z
""" + HEADER
SCHEMAS = {"sensor_msgs/msg/JointState": JOINT_STATE, "std_msgs/msg/Float64MultiArray": ARRAY, "std_msgs/msg/Float64": "float64 data",
           "std_msgs/msg/String": "string data", "trajectory_msgs/msg/JointTrajectory": TRAJECTORY, "sensor_msgs/msg/Imu": IMU,
           "control_msgs/msg/DynamicJointState": DYNAMIC, "sensor_msgs/msg/Image": "uint8[] data"}
START = 1_700_000_000
MS = 1_000_000


def stamp(nanoseconds: int) -> dict[str, Any]:
    return {"stamp": {"sec": nanoseconds // 10**9, "nanosec": nanoseconds % 10**9}, "frame_id": "base"}


def write(path: Path, messages: Sequence[tuple[str, str, int, dict[str, Any]]], **options: Any) -> Path:
    """Write (topic, schema, log time in ns, fields) as ROS 2 writes bags."""
    with path.open("wb") as file:
        writer = ros2_writer.Writer(file, **options)
        schemas = {n: writer.register_msgdef(n, SCHEMAS[n]) for n in dict.fromkeys(m[1] for m in messages)}
        for topic, schema, time, fields in messages:
            writer.write_message(topic, schemas[schema], fields, log_time=time, publish_time=time)
        writer.finish()
    return path


def states(count: int, *, origin: int = START * 10**9) -> list[tuple[str, str, int, dict[str, Any]]]:
    return [("/joint_states", "sensor_msgs/msg/JointState", START * 10**9 + k * 10 * MS + 3 * MS,
             {"header": stamp(origin + k * 10 * MS), "name": ["pan", "lift"], "position": [k / 10, -k / 10], "velocity": [1.0, 2.0],
              "effort": []}) for k in range(count)]


def test_joint_states_have_joint_names_and_header_stamps(tmp_path: Path) -> None:
    (recording,) = read_recordings([write(tmp_path / "run.mcap", states(5))])
    assert list(recording.signals) == [f"/joint_states.{f}.{j}" for f in ("position", "velocity") for j in ("pan", "lift")]
    signal = recording.signals["/joint_states.position.lift"]
    np.testing.assert_array_equal(signal.values, -np.arange(5) / 10)
    np.testing.assert_allclose(signal.time - START, np.arange(5) * 0.01, atol=1e-6)
    assert signal.time is recording.signals["/joint_states.velocity.pan"].time
    assert recording.metadata["clocks"] == {"/joint_states": "header.stamp"}


def test_joints_are_told_apart_by_name_in_any_order(tmp_path: Path) -> None:
    messages = states(4)
    for k in (1, 3):
        for name in ("name", "position", "velocity"):
            messages[k][3][name].reverse()
    messages.insert(2, ("/joint_states", "sensor_msgs/msg/JointState", messages[1][2] + MS,
                        {"header": stamp(START * 10**9 + 11 * MS), "name": ["grip"], "position": [7.0], "velocity": [], "effort": []}))
    (recording,) = read_recordings([write(tmp_path / "run.mcap", messages)])
    np.testing.assert_array_equal(recording.signals["/joint_states.position.pan"].values, np.arange(4) / 10)
    np.testing.assert_allclose(recording.signals["/joint_states.position.pan"].time - START, np.arange(4) * 0.01, atol=1e-6)
    np.testing.assert_allclose(recording.signals["/joint_states.position.grip"].time - START, [0.011], atol=1e-6)


def test_commands_without_a_header_have_the_recorders_time(tmp_path: Path) -> None:
    messages = states(3) + [("/cmd", "std_msgs/msg/Float64MultiArray", START * 10**9 + k * 5 * MS, {"layout": {}, "data": [k, 2 * k]})
                            for k in range(4)]
    (recording,) = read_recordings([write(tmp_path / "run.mcap", messages)])
    np.testing.assert_allclose(recording.signals["/cmd.data[1]"].time - START, np.arange(4) * 0.005, atol=1e-6)
    np.testing.assert_array_equal(recording.signals["/cmd.data[1]"].values, 2 * np.arange(4))
    assert recording.metadata["clocks"] == {"/joint_states": "header.stamp", "/cmd": "log_time"}


def test_unset_stamps_give_way_to_the_recorders_time(tmp_path: Path) -> None:
    messages = states(3)
    for m in messages:
        m[3]["header"] = stamp(0)
    (recording,) = read_recordings([write(tmp_path / "run.mcap", messages)])
    np.testing.assert_allclose(recording.signals["/joint_states.position.pan"].time - START, 0.003 + np.arange(3) * 0.01, atol=1e-6)


def test_simulated_time_beside_the_wall_clock_gives_way_to_log_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    messages = states(3, origin=0) + [("/cmd", "std_msgs/msg/Float64", START * 10**9 + k * 10 * MS, {"data": k}) for k in range(3)]
    messages[0][3]["header"] = stamp(1)  # a zero stamp would be taken as unset
    with caplog.at_level(logging.WARNING):
        (recording,) = read_recordings([write(tmp_path / "run.mcap", messages)])
    assert "different clocks" in caplog.text
    assert set(recording.metadata["clocks"].values()) == {"log_time"}  # type: ignore[attr-defined]


def test_the_clock_can_be_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "run.mcap", states(3))
    np.testing.assert_allclose(read_recordings([path], time="log_time")[0].signals["/joint_states.position.pan"].time[0] - START, 0.003,
                               atol=1e-6)
    with pytest.raises(LogError, match="no clock 'stamp' in MCAP; expected one of"):
        read_recordings([path], time="stamp")


def test_trajectories_controllers_and_sensors(tmp_path: Path) -> None:
    time = START * 10**9
    point = {"positions": [1.0, 2.0], "velocities": [], "time_from_start": {"sec": 0, "nanosec": 500 * MS}}
    messages = [
        ("/goal", "trajectory_msgs/msg/JointTrajectory", time, {"header": stamp(time), "joint_names": ["pan", "lift"], "points": [point]}),
        ("/plan", "trajectory_msgs/msg/JointTrajectory", time, {"header": stamp(time), "joint_names": ["pan"], "points": [point, point]}),
        ("/dynamic", "control_msgs/msg/DynamicJointState", time, {"header": stamp(time), "joint_names": ["pan"], "interface_values": [
            {"interface_names": ["position", "current"], "values": [0.1, 0.2]}]}),
        ("/imu", "sensor_msgs/msg/Imu", time, {"header": stamp(time), "angular_velocity": {"x": 1, "y": 2, "z": 3},
                                               "angular_velocity_covariance": [0.0] * 9}),
        ("/camera", "sensor_msgs/msg/Image", time, {"data": [0] * 8}), ("/note", "std_msgs/msg/String", time, {"data": "hello"})]
    (recording,) = read_recordings([write(tmp_path / "run.mcap", messages)])
    assert {n: float(s.values[0]) for n, s in recording.signals.items()} == {
        "/goal.points[0].positions.pan": 1, "/goal.points[0].positions.lift": 2, "/goal.points[0].time_from_start": 0.5,
        "/dynamic.interface_values.pan.values.position": 0.1, "/dynamic.interface_values.pan.values.current": 0.2,
        "/imu.angular_velocity.x": 1, "/imu.angular_velocity.y": 2, "/imu.angular_velocity.z": 3}
    assert recording.metadata["skipped"] == {"/plan": "no numbers", "/camera": "no signal by its type", "/note": "no numbers"}


def write_raw(path: Path, encoding: str, messages: Sequence[tuple[str, int, bytes]], schema: str = "") -> Path:
    with path.open("wb") as file:
        writer = mcap_writer.Writer(file)
        writer.start()
        described = writer.register_schema("robot/State", schema, b"") if schema else 0
        channels = {t: writer.register_channel(t, encoding, described) for t in dict.fromkeys(m[0] for m in messages)}
        for topic, time, data in messages:
            writer.add_message(channels[topic], log_time=time, data=data, publish_time=time)
        writer.finish()
    return path


def test_json_messages_are_read_alike(tmp_path: Path) -> None:
    messages = [("/state", START * 10**9 + k * MS, json.dumps({"q": [k, None], "mode": "on", "motor": {"on": True, "current": 0.5},
                 "timestamp": {"sec": START, "nsec": k * MS}}).encode()) for k in range(3)]
    (recording,) = read_recordings([write_raw(tmp_path / "run.mcap", "json", messages)])
    assert list(recording.signals) == ["/state.q[0]", "/state.q[1]", "/state.motor.on", "/state.motor.current"]
    np.testing.assert_array_equal(recording.signals["/state.q[0]"].values, [0, 1, 2])
    assert np.isnan(recording.signals["/state.q[1]"].values).all()


def test_other_encodings_and_empty_logs_are_told(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "run.mcap", "protobuf", [("/state", 1, b"x")], schema="protobuf")
    with pytest.raises(LogError, match=r"no topic with numeric signals, such as sensor_msgs/msg/JointState; there are /state "
                                       r"\(robot/State: encoding protobuf with protobuf schema; expected cdr"):
        read_recordings([path])
    with pytest.raises(LogError, match="there are no messages at all"):
        read_recordings([write(tmp_path / "none.mcap", [])])
    with pytest.raises(LogError, match=r"not readable after 1 messages of topic '/state' \(JSONDecodeError"):
        read_recordings([write_raw(tmp_path / "bad.mcap", "json", [("/state", 1, b"{")])])


@pytest.mark.parametrize(("change", "message"), [
    ({"name": ["pan", "pan"]}, r"topic '/joint_states', message 1: names \['pan'\] occur more than once"),
    ({"name": ["pan"]}, r"topic '/joint_states', message 1: 'position' has 2 values for 1 names \['pan'\]"),
])
def test_ambiguous_joint_states_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    messages = states(3)
    messages[1][3].update(change)
    with pytest.raises(LogError, match=message):
        read_recordings([write(tmp_path / "run.mcap", messages)])


def test_stamps_that_go_backwards_are_refused(tmp_path: Path) -> None:
    messages = states(3)
    messages[2][3]["header"] = stamp(START * 10**9 + 5 * MS)
    with pytest.raises(LogError, match=r"time of '/joint_states.position.pan' goes backwards at row 2"):
        read_recordings([write(tmp_path / "run.mcap", messages)])


def test_a_truncated_log_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    whole = write(tmp_path / "run.mcap", states(40), chunk_size=512).read_bytes()
    for cut in range(9, len(whole), 211):
        (tmp_path / "cut.mcap").write_bytes(whole[:cut])
        with pytest.raises(LogError, match=r"cut\.mcap"):
            read_recordings([tmp_path / "cut.mcap"])


def test_a_damaged_chunk_is_refused(tmp_path: Path) -> None:
    whole = bytearray(write(tmp_path / "run.mcap", states(40), compression=mcap_writer.CompressionType.NONE).read_bytes())
    whole[len(whole) // 3] ^= 0xFF
    (tmp_path / "bad.mcap").write_bytes(whole)
    with pytest.raises(LogError, match=r"bad\.mcap"):
        read_recordings([tmp_path / "bad.mcap"])


def test_messages_out_of_order_are_put_in_the_order_of_their_log_time(tmp_path: Path) -> None:
    messages = [("/cmd", "std_msgs/msg/Float64", k * 10 * MS, {"data": k}) for k in (2, 0, 3, 1)]
    (recording,) = read_recordings([write(tmp_path / "run.mcap", messages)])
    np.testing.assert_array_equal(recording.signals["/cmd.data"].values, [0, 1, 2, 3])


def test_a_bag_folder_is_read_file_by_file(tmp_path: Path) -> None:
    for k in range(2):
        write(tmp_path / f"bag_{k}.mcap", states(2))
    assert [r.name for r in read_recordings([tmp_path])] == ["bag_0", "bag_1"]


@given(values=st.lists(st.floats(width=64), min_size=1, max_size=5), nanoseconds=st.integers(1, 2**31 * 10**9 - 1))
def test_every_number_comes_back_exactly(tmp_path_factory: pytest.TempPathFactory, values: list[float], nanoseconds: int) -> None:
    fields = {"header": stamp(nanoseconds), "name": [f"j{i}" for i in range(len(values))], "position": values, "velocity": [], "effort": []}
    path = write(tmp_path_factory.mktemp("logs") / "run.mcap", [("/s", "sensor_msgs/msg/JointState", nanoseconds, fields)])
    (recording,) = read_recordings([path])
    np.testing.assert_array_equal([s.values[0] for s in recording.signals.values()], values)
    np.testing.assert_allclose(recording.signals["/s.position.j0"].time, nanoseconds / 1e9, rtol=1e-15)


@given(names=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), max_size=5, unique=True),
       frame=st.text(max_size=9), known=st.tuples(st.booleans(), st.booleans(), st.booleans()), data=st.data())
def test_joint_states_are_decoded_as_mcap_ros2_decodes_them(names: list[str], frame: str, known: tuple[bool, ...], data: Any) -> None:
    dynamic = pytest.importorskip("mcap_ros2._dynamic")
    name = "sensor_msgs/msg/JointState"
    arrays = [data.draw(st.lists(st.floats(width=64), min_size=len(names), max_size=len(names))) if k else [] for k in known]
    fields = {"header": stamp(START * 10**9 + 5) | {"frame_id": frame}, "name": names} | dict(
        zip(("position", "velocity", "effort"), arrays, strict=True))
    encoded = dynamic.serialize_dynamic(name, JOINT_STATE)[name](fields)
    decoded = dynamic.generate_dynamic(name, JOINT_STATE)[name](encoded)
    assert is_joint_state(name, JOINT_STATE)
    numbers = walk_fields(decoded)
    reader = JointStateReader()
    for _ in range(2):  # the second time by the remembered head
        time, read, values = reader.read(encoded)
        assert (time, list(read)) == (stamp_of(decoded), numbers.names)
        np.testing.assert_array_equal(values, numbers.values)


def test_long_arrays_are_signals_only_with_names() -> None:
    assert len(walk_fields({"ranges": [1.0] * 65, "data": [1.0] * 64}).names) == 64
    assert len(walk_fields({"joint_names": [f"j{k}" for k in range(65)], "data": [1.0] * 65}).names) == 65


def test_stamps_are_integers_of_nanoseconds() -> None:
    assert stamp_of({"header": stamp(START * 10**9 + 1)}) == START * 10**9 + 1
    assert stamp_of({"stamp": 1.5}) is None
    assert stamp_of([1]) is None
