"""Columns of any name, unit, sign and rate become a model's state and commands, or one clear question."""

from __future__ import annotations

import math
import tomllib

import numpy as np
import pytest
import torch
from log_problem import DRIVES, DT, JOINTS, RANGES, SPACE, record, simulate, vectors

from residual_mbrl.column_map import parse_map, read_map
from residual_mbrl.effects import Delay
from residual_mbrl.errors import LogError
from residual_mbrl.mapping import prepare
from residual_mbrl.sensors import Sensor
from residual_mbrl.signal_estimates import estimate_noise, fit_locally
from residual_mbrl.spaces import StateSpace
from residual_mbrl.state_layout import entry_groups
from residual_mbrl.units import factor
from residual_mbrl.windows import cut_windows


@pytest.fixture(scope="module")
def log():
    """The simulated arm, torque without delay."""
    return simulate()


def mapped(text, space=SPACE):
    return parse_map(tomllib.loads(text), space, "mapping.toml")


def prepared(recordings, text=None, **options):
    recordings = recordings if isinstance(recordings, list) else [recordings]
    options = {"dt": DT, "ranges": RANGES, "drives": DRIVES} | options
    return prepare(recordings, SPACE, None if text is None else mapped(text), **options)


def state(p):
    return np.stack([p.trajectories[0].column(n) for n in SPACE.state_names], 1)


# names

NAMINGS = {
    "vectors": {"q": "q", "v": "dq", "u": "tau"},
    "MuJoCo": {"q": "qpos", "v": "qvel", "u": "ctrl"},
    "Minari": {"q": "infos/qpos", "v": "infos/qvel", "u": "actions"},
    "robomimic": {"q": "obs/robot0_joint_pos", "v": "obs/robot0_joint_vel", "u": "actions"},
    "ROS topics": {"q": "/arm/joint_states.position", "v": "/arm/joint_states.velocity", "u": "/commands.data"},
    "underscored": {"q": "joint_positions", "v": "joint_velocities", "u": "action"},
}


@pytest.mark.parametrize("names", NAMINGS.values(), ids=NAMINGS)
def test_vectors_are_taken_in_the_order_of_the_joints(log, names):
    """A vector of positions, velocities or commands as long as the model's is found by its name."""
    p = prepared(record(vectors(log, names), log["t"]))
    assert np.array_equal(state(p), np.concatenate([log["q"], log["v"]], 1))
    assert np.array_equal(p.trajectories[0].commands, log["u"])


@pytest.mark.parametrize("form", ["observation.state.{j}.pos|observation.velocity.{j}|action.{j}", "/joint_states.position.{j}|"
                                  "/joint_states.velocity.{j}|/joint_states.effort.{j}", "{J}Pos|{J}Vel|{J}Torque", "q_{j}|dq_{j}|u_{j}",
                                  "{j}|{j}.vel|{j}_motor"])
def test_names_are_recognised_in_other_words(log, form):
    """Separators, case, prefixes and words for the kind of quantity do not hide a joint's name, in whatever order."""
    columns = {}
    for k, j in reversed(list(enumerate(JOINTS))):
        columns |= {n.format(j=j, J=j.title()): log[key][:, k] for n, key in zip(form.split("|"), "qvu", strict=True)}
    p = prepared(record(columns, log["t"]))
    assert np.array_equal(state(p), np.concatenate([log["q"], log["v"]], 1))
    assert np.array_equal(p.trajectories[0].commands, log["u"])


def test_a_numbered_joint_is_never_taken_for_its_neighbour(log):
    """Columns named joint_0 and joint_1 do not fit joints named joint_1 and joint_2."""
    space = StateSpace(position=("joint_1", "joint_2"), velocity=("joint_1.vel", "joint_2.vel"), action=())
    with pytest.raises(LogError, match="no column for position 'joint_2'"):
        prepare([record({"joint_0": log["q"][:, 0], "joint_1": log["q"][:, 1]}, log["t"])], space, dt=DT)


@pytest.mark.parametrize("vector", ["ctrl", "motor_commands", "motor"])
def test_elements_of_a_vector_are_no_numbers_of_joints(log, vector):
    """ctrl[1] is the second command, not that of motor1."""
    space = StateSpace(position=("joint1", "joint2"), velocity=("joint1.vel", "joint2.vel"), action=("motor1", "motor2"))
    columns = {f"{v}[{k}]": log[key][:, k] for v, key in (("joint_pos", "q"), (vector, "u")) for k in range(2)}
    recording = record(columns, log["t"])
    if vector == "motor":
        with pytest.raises(LogError, match="no column for action 'motor1', 'motor2'.*could be meant"):
            prepare([recording], space, dt=DT)
        return
    p = prepare([recording], space, dt=DT)
    assert np.array_equal(p.trajectories[0].commands, log["u"]) and np.array_equal(p.trajectories[0].column("joint1"), log["q"][:, 0])


def test_other_columns_are_left_alone(log):
    """What is no position, velocity or command serves nothing and is listed."""
    p = prepared(record(vectors(log) | {"battery": log["t"], "motor_current[0]": log["t"]}, log["t"]))
    assert list(p.report.unused) == ["battery", "motor_current[0]"]


REFUSED = {
    "joint without column": (lambda c: c.pop("q[1]"), r"no column for position 'shoulder', 'elbow'; 'q' has 1 elements, the model has 2"),
    "action without column": (lambda c: [c.pop(f"tau[{k}]") for k in range(2)], r"no column for action .*a constant, such as 0.0"),
    "column that fits no joint": (lambda c: c.update(wrist_position=c["q[0]"]), "'wrist_position' looks like a position and fits none"),
    "vector of another length": (lambda c: c.update({"q[2]": c["q[0]"]}), "'q' has 3 elements, the model has 2 of that kind"),
    "two columns for a joint": (lambda c: c.update(shoulder_angle=c["q[0]"]),
                                r"2 columns fit position 'shoulder'.*'shoulder_angle', 'q\[0\]'"),
}


@pytest.mark.parametrize(("spoil", "message"), REFUSED.values(), ids=REFUSED)
def test_ambiguous_columns_are_refused(log, spoil, message):
    """A column that fits no joint or two, and a joint without a column, are asked for with the candidates."""
    columns = vectors(log)
    spoil(columns)
    with pytest.raises(LogError, match=f"^run.npz: .*{message}"):
        prepared(record(columns, log["t"]))


def test_one_column_for_two_entries_is_refused(log):
    """A column whose words name two actuators is not given to both."""
    space = StateSpace(position=("a",), velocity=("a.vel",), action=("lift_motor", "lift_servo"))
    with pytest.raises(LogError, match="column 'lift_ctrl' fits both 'lift_motor' and 'lift_servo'"):
        prepare([record({"a": log["q"][:, 0], "lift_ctrl": log["u"][:, 0]}, log["t"])], space, dt=DT)


def test_ignored_columns_are_not_considered(log):
    """A glob pattern under ignore settles an ambiguity."""
    columns = vectors(log) | {"camera_position": log["t"]}
    assert "camera_position" in prepared(record(columns, log["t"]), 'ignore = ["camera*"]').report.unused


# mapping.toml

def test_mapping_converts_unit_sign_scale_and_offset(log):
    """A column is (sign * scale * column + offset) in its unit, in the model's unit."""
    columns = {"enc": -(np.degrees(log["q"][:, 0]) - 90) / 0.5, "q_b": log["q"][:, 1], "spin": log["v"][:, 0] * 60 / (2 * math.pi),
               "w_b": log["v"][:, 1], "m1": log["u"][:, 0], "m2": log["u"][:, 1]}
    p = prepared(record(columns, log["t"]), """
        [position]
        shoulder = { column = "enc", unit = "deg", sign = -1, scale = 0.5, offset = 90.0, noise = 1.0 }
        elbow = "q_b"
        [velocity]
        shoulder = { column = "spin", unit = "rpm" }
        elbow.vel = "w_b"
        [action]
        shoulder_motor = "m1"
        elbow_motor = "m2"
        """)
    assert np.allclose(state(p), np.concatenate([log["q"], log["v"]], 1), atol=1e-12)
    assert p.sensor.columns[0].noise == pytest.approx(math.radians(1.0))
    assert p.report.columns[0].conversion == "deg → rad, sign -1, scale 0.5, offset 90"


def test_groups_map_whole_vectors_and_one_joint_may_differ(log):
    """``joints`` maps a vector; a table of one joint changes only what it names; ``a[i:j]`` takes a part."""
    everything = np.concatenate([log["q"] * [1, -1], log["v"] * [1, -1]], 1)
    columns = {f"x[{k}]": everything[:, k] for k in range(4)} | {f"tau[{k}]": log["u"][:, k] for k in range(2)}
    p = prepared(record(columns, log["t"]), """
        [position]
        joints = "x[0:2]"
        elbow = { sign = -1 }
        [velocity]
        joints = "x[2:4]"
        elbow = { sign = -1 }
        """)
    assert np.array_equal(state(p), np.concatenate([log["q"], log["v"]], 1))


def test_constants_stand_for_columns(log):
    """A number in place of a column's name is a command that was never given."""
    columns = {n: x for n, x in vectors(log).items() if n != "tau[1]"}
    p = prepared(record(columns, log["t"]), '[action]\nshoulder_motor = "tau[0]"\nelbow_motor = 0.5\n')
    assert (p.trajectories[0].commands[:, 1] == 0.5).all()


def test_constant_states_only_serve_first_states(log):
    """A joint that was locked and not recorded has a number, and no share in any fit."""
    columns = {n: x for n, x in vectors(log).items() if n not in {"q[1]", "dq[0]", "dq[1]"}}
    p = prepared(record(columns, log["t"]), '[position]\nshoulder = "q[0]"\nelbow = { constant = 90.0, unit = "deg" }\n')
    assert p.sensor.columns[1].noise == math.inf
    assert np.allclose(p.trajectories[0].column("elbow"), math.pi / 2)


WRONG_MAPS = {
    "unknown section": ("[positions]\n", "unknown key 'positions' .did you mean 'position'.*expected ignore, time, units, position"),
    "unknown joint": ('[position]\nelbo = "q"', r"\[position\]: the model has no position 'elbo' .did you mean 'elbow'.*shoulder, elbow"),
    "unknown key": ('[position]\nelbow = { colum = "q" }', r"\[position\] elbow: unknown key 'colum' .did you mean 'column'"),
    "unknown unit": ('[position]\nelbow = { unit = "degs" }', r"\[position\] elbow: unknown unit 'degs' .did you mean 'deg'"),
    "unit of another quantity": ('[velocity]\nelbow = { unit = "deg" }', r"unit 'deg' is no unit of \[rad/s\]; expected one of \"rad/s\""),
    "sign": ("[position]\nelbow = { sign = 2 }", "sign: expected 1 or -1, received 2"),
    "scale": ("[position]\nelbow = { scale = 0 }", "scale: expected a number other than zero"),
    "noise": ("[position]\nelbow = { noise = 0.0 }", "noise: expected a positive number"),
    "delay": ("[action]\nelbow_motor = { delay = [0.1, 0.0] }", "delay: expected seconds that are known, or a pair"),
    "column of no text": ("[position]\nelbow = true", "expected a column's name, a constant, or a table with column, constant, unit"),
    "given twice": ('[velocity]\nelbow = "a"\n"elbow.vel" = "b"', "'elbow.vel' is given twice"),
    "order without quaternion": ('[position]\njoints = { column = "q", order = "xyzw" }', "order: there is no quaternion in it"),
    "section unit": ('[units]\nposition = "N"', r"\[units\] position: unit 'N' is no unit of \[rad\]"),
    "rate": ("[time]\nrate = -1", r"\[time\] rate: expected a positive number"),
    "time unit": ('[time]\ncolumn = "t"\nunit = "hours"', r"\[time\] time_unit: expected one of"),
    "syntax": ("[position\n", "no valid TOML"),
}


@pytest.mark.parametrize(("text", "message"), WRONG_MAPS.values(), ids=WRONG_MAPS)
def test_wrong_mappings_name_file_key_and_what_is_allowed(tmp_path, text, message):
    """Nothing in a mapping that is not understood is passed over."""
    path = tmp_path / "mapping.toml"
    path.write_text(text)
    with pytest.raises(LogError, match=f"mapping.toml: .*{message}"):
        read_map(path, SPACE)


def test_a_missing_mapping_is_named(tmp_path):
    """The error names the file."""
    with pytest.raises(LogError, match=r"none.toml: cannot be read \(No such file"):
        read_map(tmp_path / "none.toml", SPACE)


@pytest.mark.parametrize(("text", "message"), [
    ('[position]\nelbow = "q[3]"', r"no column 'q\[3\]', which mapping.toml maps to 'elbow' .did you mean 'q\[0\]'|no column 'q\[3\]'"),
    ('[position]\nelbow = "q"', r"no column 'q'.*it is a vector of 2; name one element, such as 'q\[0\]'"),
    ('[position]\njoints = "dq"\n[velocity]\njoints = "dq"', r"column 'dq\[0\]' is mapped to both 'shoulder' and 'shoulder.vel'"),
    ('[action]\nactuators = "x"', "maps 'x' to 2 entries .*found 0"),
])
def test_mappings_that_do_not_fit_the_log_are_refused(log, text, message):
    """A mapped column that is absent, or mapped twice, is named."""
    with pytest.raises(LogError, match=message):
        prepared(record(vectors(log), log["t"]), text)


def test_clock_of_the_mapping_is_handed_to_readers():
    """[time] becomes the options that readers take."""
    clock = mapped('[time]\ncolumn = "stamp"\nunit = "ms"\n').clock
    assert (clock.time, clock.unit, clock.rate) == ("stamp", "ms", None)


# units

@pytest.mark.parametrize(("unit", "expected", "size"), [("deg", "rad", math.pi / 180), ("°/s", "rad/s", math.pi / 180),
                                                        ("rpm", "rad/s", math.pi / 30), ("mm", "m", 1e-3), ("Nm", "N·m", 1.0),
                                                        ("mN*m", "N·m", 1e-3), ("ms", "s", 1e-3),
                                                        ("deg", "1", math.pi / 180), ("radians", "rad", 1.0), ("%", "1", 1e-2)])
def test_units_convert(unit, expected, size):
    """Units of the same dimension convert, however they are written."""
    assert factor(unit, expected) == pytest.approx(size)


def degrees(log, keys):
    return {k: np.degrees(x) if k in keys else x for k, x in log.items()}


@pytest.mark.parametrize(("keys", "message"), [
    ("qv", r"'q\[0\]' \(shoulder\) goes from .* rad, the model's range is -2 to 2 rad, and no unit is stated: degrees\? .*"
           r"unit = \"deg\" or \"rad\""),
    ("v", r"'dq\[0\]' \(shoulder.vel\) goes from .* turns/s; degrees\? .*\"deg/s\" or \"rpm\" or \"rad/s\""),
])
def test_degrees_are_asked_for(log, keys, message):
    """Degrees where nothing states a unit are detected by ranges and rates, and never converted silently."""
    columns = vectors(degrees(log, keys))
    with pytest.raises(LogError, match=message):
        prepared(record(columns, log["t"]))


def test_degrees_of_joints_without_range_are_asked_for(log):
    """Without a range more than two turns are suspicious."""
    with pytest.raises(LogError, match=r"'q\[0\]' .* states no unit: in rad that is .* turns; degrees\?"):
        prepared(record(vectors(degrees(log, "q")), log["t"]), ranges=None)


@pytest.mark.parametrize(("keys", "message"), [
    ("v", r"'dq\[0\]' .* and the derivative of 'q\[0\]' .* differ by a factor of 5[678].*: 'dq\[0\]' seems to be in degrees per second"),
    ("q", r"differ by a factor of 5[678].*: 'q\[0\]' seems to be in degrees and 'dq\[0\]' in rad/s"),
])
def test_degrees_of_one_of_two_columns_show_in_their_ratio(log, keys, message):
    """Small motions in degrees stay within any range, but not in step with a velocity in radians."""
    slow = log | {"q": 0.02 * log["q"], "v": 0.02 * log["v"]}
    with pytest.raises(LogError, match=message):
        prepared(record(vectors(degrees(slow, keys)), log["t"]))


@pytest.mark.parametrize("way", ["file", "section", "entry"])
def test_stated_degrees_are_converted(log, way):
    """The file, a section's unit and an entry's unit each settle it."""
    columns, names = vectors(degrees(log, "qv")), ("q[0]", "q[1]", "dq[0]", "dq[1]")
    units = dict(zip(names, ("deg", "deg", "deg/s", "deg/s"), strict=True))
    recording = record(columns, log["t"], units=units if way == "file" else None)
    text = {"file": None, "section": '[units]\nposition = "deg"\nvelocity = "deg/s"\n', "entry": """
        [position]
        joints = { column = "q", unit = "deg" }
        [velocity]
        joints = { column = "dq", unit = "deg/s" }"""}[way]
    assert np.allclose(state(prepared(recording, text)), np.concatenate([log["q"], log["v"]], 1), atol=1e-12)


def test_unknown_unit_of_a_file_is_refused(log):
    """A unit that cannot be converted asks for unit and scale."""
    with pytest.raises(LogError, match=r"column 'q\[0\]', position 'shoulder': unknown unit 'ticks'.*unit = \"rad\", scale = 1.0"):
        prepared(record(vectors(log), log["t"], units={"q[0]": "ticks"}))


def test_stated_units_beyond_the_range_only_warn(log):
    """Who states a unit is believed, but told."""
    p = prepared(record(vectors(log), log["t"]), '[units]\nposition = "rad"', ranges={"shoulder": (-0.1, 0.1)})
    assert any("the model's range is -0.1 to 0.1 rad: outside it" in w for w in p.report.warnings)


# signs and order

def test_opposite_signs_are_asked_for(log):
    """A velocity that runs against its position asks for a sign."""
    asked = r"have opposite signs \(correlation -1.00\): state sign = -1 .*\"shoulder.vel\" = \{ column = \"dq\[0\]\", sign = -1 \}"
    with pytest.raises(LogError, match=asked):
        prepared(record(vectors(log | {"v": log["v"] * [-1, 1]}), log["t"]))


def test_swapped_columns_are_named(log):
    """A velocity that moves as another joint's derivative is named with that joint's column."""
    with pytest.raises(LogError, match=r"do not move alike .*as the derivative of 'q\[1\]'.*swapped columns\?"):
        prepared(record(vectors(log | {"v": log["v"][:, ::-1]}), log["t"]))


# rates and clocks

def test_rate_mismatch_says_what_to_do(log):
    """A log off the model's grid names both rates, --dt and --resample."""
    with pytest.raises(LogError, match=r"recorded at 500 Hz \(every 2 ms\), the model steps every 3 ms: .*--dt 0.002.*--resample"):
        prepared(record(vectors(log), log["t"]), dt=0.003)


def test_another_unit_of_time_is_suspected(log):
    """Milliseconds read as seconds are asked for."""
    with pytest.raises(LogError, match="is its time in another unit"):
        prepared(record(vectors(log), 1e3 * log["t"]))


def test_resampling_interpolates_measurements_and_holds_commands(log):
    """Between stamps measurements follow a line, and commands keep the last value sent."""
    p = prepared(record(vectors(log), log["t"]), dt=0.003, resample=True)
    t = p.trajectories[0].measurement_time
    assert np.allclose(state(p)[:, 0], np.interp(t, log["t"], log["q"][:, 0]))
    assert np.array_equal(p.trajectories[0].commands, log["u"][np.floor(t / DT + 0.15 + 1e-9).astype(int)])


def test_jitter_asks_for_resampling(log):
    """Stamps that vary are named as the reason."""
    t = log["t"] + 0.3 * DT * np.random.default_rng(0).uniform(-1, 1, len(log["t"]))
    with pytest.raises(LogError, match="its stamps vary by 0.* ms .*--resample"):
        prepared(record(vectors(log), t))
    assert prepared(record(vectors(log), t), resample=True).report.columns[0].clock.jitter > 0.1 * DT


def test_slower_columns_leave_rows_unmeasured(log):
    """A column at a fifth of the rate is measured in every fifth row, not interpolated."""
    clocks = {n: log["t"][::5] if n.startswith("dq") else log["t"] for n in vectors(log)}
    columns = {n: x[::5] if n.startswith("dq") else x for n, x in vectors(log).items()}
    p = prepared(record(columns, clocks))
    v = p.trajectories[0].column("shoulder.vel")
    assert np.isfinite(v).sum() == len(log["t"]) / 5
    assert np.array_equal(v[::5], log["v"][::5, 0])


def test_clocks_that_start_apart_are_cut_to_their_overlap(log):
    """Rows begin where every column has begun; what is left out is told."""
    late = log["t"] >= 0.5
    clocks = {n: log["t"][late] if n.startswith("tau") else log["t"] for n in vectors(log)}
    p = prepared(record({n: x[late] if n.startswith("tau") else x for n, x in vectors(log).items()}, clocks))
    assert p.trajectories[0].metadata["start"] == pytest.approx(0.5)
    assert np.array_equal(p.trajectories[0].commands, log["u"][late])
    assert any("0.5 s left out at the start" in w for w in p.report.warnings)
    with pytest.raises(LogError, match="columns must overlap"):
        prepared(record(vectors(log), {n: log["t"] + 100 * n.startswith("tau") for n in vectors(log)}))


def test_silence_cuts_a_log_in_two(log):
    """Nobody knows what was commanded during a long gap, so no window may span it."""
    keep = (log["t"] < 1.0) | (log["t"] > 1.5)
    p = prepared(record({n: x[keep] for n, x in vectors(log).items()}, log["t"][keep]))
    assert [t.name for t in p.trajectories] == ["run", "run#2"]
    assert any("cut at 1 gap(s) into 2 piece(s)" in w for w in p.report.warnings)
    assert sum(len(t.measurements) for t in p.trajectories) == keep.sum()


def test_repeated_stamps_are_left_out(log):
    """Samples with the stamp of the one before are dropped and counted."""
    twice = np.sort(np.concatenate([np.arange(len(log["t"])), [100, 200]]))
    p = prepared(record({n: x[twice] for n, x in vectors(log).items()}, log["t"][twice]))
    assert len(p.trajectories[0].measurements) == len(log["t"])
    assert any("2 sample(s) of 'q[0]' repeat the time stamp" in w for w in p.report.warnings)


# delays and noise

@pytest.mark.parametrize("delay", [0.005, 0.0113, 0.04])
@pytest.mark.parametrize("velocities", [True, False])
def test_delay_of_commands_starts_where_it_was_seen(delay, velocities):
    """The delay from torque to acceleration is found to a fraction of a step, with velocities measured or not."""
    d = simulate(delay=delay, seconds=10.0, noise=2e-5)
    columns = {n: x for n, x in vectors(d).items() if velocities or not n.startswith("dq")}
    p = prepared(record(columns, d["t"]))
    for motor in SPACE.action:
        (effect,) = p.sensor.commands[motor]
        assert effect.free and effect.lower == 0.0 and effect.upper >= 2 * effect.nominal
        assert effect.nominal == pytest.approx(delay, abs=0.5 * DT)


def test_a_command_without_visible_effect_starts_where_the_others_do():
    """Where most commands show one delay, one that shows none starts there too, and the report says so."""
    logs = [simulate(delay=0.02, seed=s) for s in (0, 1)]
    names = tuple(f"j{k}" for k in range(4))
    space = StateSpace(position=names, velocity=tuple(f"{j}.vel" for j in names), action=tuple(f"m{k}" for k in range(4)))
    d = {"t": logs[0]["t"]} | {key: np.concatenate([x[key] for x in logs], 1) for key in "qvu"}
    d["u"][:, 3] = np.random.default_rng(2).normal(size=len(d["t"]))
    p = prepare([record(vectors(d), d["t"])], space, dt=DT, drives={f"m{k}": f"j{k}" for k in range(4)})
    assert [p.sensor.commands[m][0].nominal for m in space.action] == pytest.approx([0.02] * 4, abs=DT)
    assert p.report.columns[-1].delay.endswith("ms, as others (not seen)")


def test_no_delay_adds_no_parameter(log):
    """A plant that answers at once gets no delay to estimate."""
    p = prepared(record(vectors(log), log["t"]))
    assert not p.sensor.commands and not p.sensor.parameters.free()


def test_stated_delays_are_taken(log):
    """A number is known, a pair bounds an estimate, zero switches it off."""
    d = simulate(delay=0.02)
    p = prepared(record(vectors(d), d["t"]), """
        [action]
        shoulder_motor = { column = "tau[0]", delay = 0.015 }
        elbow_motor = { column = "tau[1]", delay = [0.01, 0.03] }
        """)
    assert p.sensor.commands["shoulder_motor"] == (Delay(nominal=0.015, lower=0.0, upper=0.03, free=False),)
    (effect,) = p.sensor.commands["elbow_motor"]
    assert (effect.lower, effect.upper) == (0.01, 0.03) and effect.nominal == pytest.approx(0.02, abs=DT)
    p = prepared(record(vectors(d), d["t"]), "[action]\nshoulder_motor = { delay = 0.0 }\nelbow_motor = { delay = 0.0 }")
    assert not p.sensor.commands


def test_late_velocities_get_a_delay(log):
    """A velocity column that lags its position, or leads it, delays the later of the two."""
    late = log | {"v": np.roll(log["v"], 4, 0)}
    (effect,) = prepared(record(vectors(late), log["t"])).sensor.columns[2].effects
    assert effect.nominal == pytest.approx(4 * DT, abs=0.5 * DT)
    early = log | {"v": np.roll(log["v"], -4, 0)}
    (effect,) = prepared(record(vectors(early), log["t"])).sensor.columns[0].effects
    assert effect.nominal == pytest.approx(4 * DT, abs=0.5 * DT)


@pytest.mark.parametrize("noise", [1e-4, 1e-3])
def test_noise_is_estimated_from_the_columns(noise):
    """The noise of each column is found within a fifth under any motion."""
    d = simulate(noise=noise)
    found = [c.noise for c in prepared(record(vectors(d), d["t"])).sensor.columns]
    assert found == pytest.approx([noise, noise, 20 * noise, 20 * noise], rel=0.2)


def test_noise_of_rounded_and_still_columns_is_positive():
    """Rounding has a noise of its own, and a column that never changes still has one."""
    t = np.arange(4000) * 1e-3
    assert estimate_noise(np.round(np.sin(t) / 0.01) * 0.01) == pytest.approx(0.01 / math.sqrt(12), rel=0.5)
    assert estimate_noise(np.ones(100)) > 0


# what was not recorded

def test_missing_velocities_come_from_positions():
    """Without velocity columns the sensor takes slopes, for as many joints as there are."""
    n, t = 12, np.arange(400) * 0.01
    names = tuple(f"j{k}" for k in range(n))
    space = StateSpace(position=names, velocity=tuple(f"{j}.vel" for j in names), action=(), units=dict.fromkeys(names, "rad"))
    q = np.stack([np.sin((1 + 0.1 * k) * t + k) for k in range(n)], 1)
    v = np.stack([(1 + 0.1 * k) * np.cos((1 + 0.1 * k) * t + k) for k in range(n)], 1)
    p = prepare([record({j: q[:, k] for k, j in enumerate(names)}, t)], space, dt=0.01)
    windows = cut_windows(p.trajectories, 0.01, horizon=20)
    start = p.sensor.start(windows)
    assert torch.allclose(start[:, n:], torch.tensor(v[:: 20][: len(windows)]), atol=5e-3)
    assert p.report.estimated[0] == "j0.vel from positions"


def test_velocities_that_some_logs_lack_are_not_used(log):
    """All logs get the same columns, and the user is told."""
    short = {n: x for n, x in vectors(log).items() if not n.startswith("dq")}
    p = prepared([record(vectors(log), log["t"], name="a"), record(short, log["t"], name="b")])
    assert [c.name for c in p.sensor.columns if np.isfinite(c.noise)] == list(JOINTS)
    assert "shoulder.vel is in 1 of 2 logs: not used" in p.report.warnings


def test_unactuated_models_need_no_commands(log):
    """A model without actions has none, and command columns serve nothing."""
    space = StateSpace(position=JOINTS, velocity=SPACE.velocity, action=(), units=SPACE.units)
    p = prepare([record(vectors(log), log["t"])], space, dt=DT)
    assert p.trajectories[0].commands.shape == (len(log["t"]), 0)
    assert cut_windows(p.trajectories, DT, horizon=50).actions.shape[-1] == 0


def test_activations_start_in_balance_with_their_command(log):
    """An activation that was not recorded only serves first states, and the user is told."""
    space = StateSpace(position=JOINTS, velocity=SPACE.velocity, activation=("shoulder_motor.act",), action=SPACE.action, units=SPACE.units)
    p = prepare([record(vectors(log), log["t"])], space, dt=DT)
    windows = cut_windows(p.trajectories, DT, horizon=50)
    assert torch.equal(p.sensor.start(windows)[:, 4], windows.actions[:, 0, 0])
    assert p.sensor.columns[4].noise == math.inf and any("in balance with shoulder_motor" in w for w in p.report.warnings)


# free bodies

BASE = StateSpace(position=("base.x", "base.y", "base.z", "base.qw", "base.qx", "base.qy", "base.qz", "hip"),
                  velocity=("base.vx", "base.vy", "base.vz", "base.wx", "base.wy", "base.wz", "hip.vel"), action=(),
                  quaternions=((3, 3),), units={**{f"base.{a}": "m" for a in "xyz"}, "hip": "rad", "hip.vel": "rad/s"})


def flying(n=300, dt=0.01):
    """A body that turns at a constant rate in its own frame and moves along x: t, positions [T, 8], velocities [T, 7]."""
    t, w = dt * np.arange(n), np.array([0.4, -0.3, 1.0])
    angle = np.linalg.norm(w) * t / 2
    axis = w / np.linalg.norm(w)
    q = np.column_stack([0.5 * t, 0 * t, 1 + 0 * t, np.cos(angle), np.sin(angle)[:, None] * axis, np.sin(3 * t)])
    v = np.column_stack([0.5 + 0 * t, 0 * t, 0 * t, np.broadcast_to(w, (n, 3)), 3 * np.cos(3 * t)])
    return t, q, v


def test_poses_are_mapped_by_name_or_as_vectors_with_a_stated_order():
    """Names of a pose are recognised; a vector needs its order stated."""
    t, q, v = flying()
    named = {f"odom.base_pose.position.{a}": q[:, k] for k, a in enumerate("xyz")} | {
        f"odom.base_pose.orientation.{a}": q[:, 3 + k] for k, a in enumerate("wxyz")} | {"hip": q[:, 7]} | {
        f"base_twist.linear_velocity.{a}": v[:, k] for k, a in enumerate("xyz")} | {
        f"base_twist.angular_velocity.{a}": v[:, 3 + k] for k, a in enumerate("xyz")}
    p = prepare([record(named, t)], BASE, dt=0.01)
    shown = np.stack([p.trajectories[0].column(n) for n in BASE.position], 1)
    assert np.allclose(shown, q)
    assert np.allclose(np.stack([p.trajectories[0].column(n) for n in BASE.velocity[:6]], 1), v[:, :6])
    ros = {f"pose[{k}]": q[:, i] for k, i in enumerate((0, 1, 2, 4, 5, 6, 3))} | {"hip": q[:, 7]}
    text = '[position]\nbase = { column = "pose", order = "xyzw" }\n'
    p = prepare([record(ros, t)], BASE, mapped(text, BASE), dt=0.01)
    assert np.allclose(np.stack([p.trajectories[0].column(n) for n in BASE.position], 1), q)
    with pytest.raises(LogError, match=r'order of the quaternion is not stated: expected order = "wxyz" or "xyzw"'):
        mapped('[position]\nbase = "pose"', BASE)
    with pytest.raises(LogError, match="no column for position 'base.x'"):
        prepare([record(ros, t)], BASE, dt=0.01)


def test_quaternions_lose_jumps_of_sign_and_must_have_unit_length():
    """The two signs of a rotation are one, and columns that are no rotation are refused."""
    t, q, _ = flying()
    flipped = q.copy()
    flipped[100:200, 3:7] *= -1
    columns = {n: flipped[:, k] for k, n in enumerate(BASE.position)}
    p = prepare([record(columns, t)], BASE, dt=0.01)
    assert np.allclose(p.trajectories[0].column("base.qw"), q[:, 3])
    with pytest.raises(LogError, match=r"base.qw, base.qx, base.qy, base.qz have length 1\..* at row 0, expected a unit quaternion"):
        prepare([record(columns | {"base.qw": flipped[:, 3] + 0.5}, t)], BASE, dt=0.01)


def test_velocities_of_free_bodies_are_taken_from_their_pose():
    """Where they were not recorded, linear and angular velocities serve first states, the angular one in the body frame."""
    t, q, v = flying()
    p = prepare([record({n: q[:, k] for k, n in enumerate(BASE.position)}, t)], BASE, dt=0.01)
    start = p.sensor.start(cut_windows(p.trajectories, 0.01, horizon=20))
    assert torch.allclose(start[1:, 8:], torch.tensor(v[20::20][: len(start) - 1]), atol=5e-3)
    assert all(c.noise == math.inf for c in p.sensor.columns[8:])


def test_groups_follow_the_free_joints():
    """A free joint's pose and its halves are groups of their own, the other joints another."""
    assert entry_groups(BASE, "position") == {"joints": ("hip",), "base": BASE.position[:7], "base.xyz": BASE.position[:3],
                                              "base.quaternion": BASE.position[3:7]}
    assert entry_groups(BASE, "velocity")["base.angular"] == BASE.velocity[3:6]


def test_prepared_logs_are_measured_by_their_sensor(log):
    """Columns of logs and sensor agree in name and order."""
    p = prepared([record(vectors(log), log["t"], name="a"), record(vectors(simulate(seed=1)), log["t"], name="b")])
    assert isinstance(p.sensor, Sensor)
    assert [c.name for c in p.sensor.columns] == list(p.trajectories[0].measurement_names)
    windows = cut_windows(p.trajectories, DT, horizon=100)
    assert torch.equal(p.sensor.start(windows), windows.measurements[:, 0])
    assert windows.groups == ("a", "b")


def test_no_recordings_is_an_error():
    """Nothing to prepare is said so."""
    with pytest.raises(LogError, match="no logs"):
        prepare([], SPACE, dt=DT)


@pytest.mark.parametrize("lag", [0.0, 0.5])
def test_slopes_of_a_path(lag):
    """The slope of a cubic is exact in the middle and at both ends, a part of a row early where that is asked for."""
    time = 0.01 * np.arange(40)
    slope = fit_locally(2 * time - 3 * time**2 + 5 * time**3, 0.01, order=1, lag=lag * 0.01)
    at = time - lag * 0.01
    assert np.allclose(slope, 2 - 6 * at + 15 * at**2, atol=1e-9)


def test_slopes_where_samples_are_missing():
    """Gaps, and logs of a few rows, still have a slope everywhere."""
    path = 3.0 * 0.01 * np.arange(60)
    path[20:23] = np.nan
    assert np.allclose(fit_locally(path, 0.01, order=1), 3.0, atol=1e-9)
    assert np.allclose(fit_locally(path[:2], 0.01, order=1), 3.0)
