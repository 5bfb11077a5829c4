"""A dry run shows what was understood, joint by joint, before any work starts."""

from __future__ import annotations

from io import StringIO

import numpy as np
import pytest
from log_problem import DRIVES, DT, RANGES, SPACE, record, simulate, vectors
from rich.console import Console

from residual_mbrl.column_map import parse_map
from residual_mbrl.datasets.log_files import read_recordings
from residual_mbrl.mapping import prepare


@pytest.fixture(scope="module")
def log():
    """The simulated arm with a torque delay of 10 ms."""
    return simulate(delay=0.01)


def shown(report, width=160):
    console = Console(width=width, record=True, file=StringIO())
    console.print(report.render())
    return console.export_text()


@pytest.fixture(scope="module")
def report(log):
    """The report of one log in degrees, whose velocities were not recorded."""
    columns = {n: np.degrees(x) if n.startswith("q") else x for n, x in vectors(log).items() if not n.startswith("dq")}
    mapping = parse_map({"units": {"position": "deg"}}, SPACE)
    return prepare([record(columns | {"battery": log["t"]}, log["t"])], SPACE, mapping, dt=DT, ranges=RANGES, drives=DRIVES).report


def test_every_entry_has_its_column_conversion_range_and_first_rows(report, log):
    """Columns appear with unit, range beside the model's, noise, rate and their first three rows."""
    elbow = report.columns[1]
    assert (elbow.name, elbow.column, elbow.conversion, elbow.unit) == ("elbow", "q[1] (by name)", "deg → rad", "rad")
    assert (elbow.low, elbow.high) == pytest.approx((log["q"][:, 1].min(), log["q"][:, 1].max()))
    assert elbow.limits == RANGES["elbow"] and elbow.clock.rate == pytest.approx(500) and elbow.noise == pytest.approx(1e-4, rel=0.2)
    assert elbow.first == pytest.approx(log["q"][:3, 1])


def test_what_is_estimated_is_named(report):
    """Velocities without a column and delays are listed, delays with where they start."""
    assert report.estimated[:2] == ["shoulder.vel from positions", "elbow.vel from positions"]
    assert [e.partition(",")[0] for e in report.estimated[2:]] == ["shoulder_motor.delay", "elbow_motor.delay"]
    assert report.columns[2].column == "(estimated)"


def test_delays_name_the_joint_that_answers(report):
    """Each command shows how late which joint follows it."""
    delay, _, joint = report.columns[4].delay.partition(" ms to ")
    assert joint == "shoulder" and float(delay) == pytest.approx(10, abs=1)


def test_logs_and_unused_columns_are_listed(report, log):
    """Duration, rows and groups of the logs, and the columns that serve nothing."""
    assert report.seconds == pytest.approx(log["t"][-1]) and report.logs[0].rows == len(log["t"])
    assert list(report.unused) == ["battery"]


def test_everything_is_rendered(report):
    """The tables name every entry; headings without content are left out; nothing breaks in a narrow terminal."""
    text = shown(report)
    for word in (*SPACE.state_names, *SPACE.action, "deg → rad", "-2 to 2", "not used: battery", "1 log(s) in 1 group(s)", "row 2"):
        assert word in text
    assert "gaps" not in text and "jitter" not in text
    assert shown(report, width=60)


def test_warnings_are_rendered(log):
    """What the user should look at is shown last."""
    columns = {n: np.repeat(x[::10], 10) if n.startswith("dq") else x for n, x in vectors(log).items()}
    text = shown(prepare([record(columns, log["t"])], SPACE, dt=DT).report)
    assert "warning: run.npz: 90% of the samples of 'dq[0]' equal the one before" in text


@pytest.mark.parametrize("suffix", ["npz", "csv"])
def test_files_are_understood_from_end_to_end(log, tmp_path, suffix):
    """A log written as a file, with units in its header where it has one, is read and mapped."""
    path = tmp_path / f"run.{suffix}"
    if suffix == "npz":
        np.savez(path, t=log["t"], q=log["q"], dq=log["v"], tau=log["u"])
    else:
        header = ("time [ms],Shoulder Position [deg],Elbow Position [deg],Shoulder Velocity [rpm],Elbow Velocity [rpm],"
                  "cmd_shoulder,cmd_elbow")
        rows = np.column_stack([1e3 * log["t"], np.degrees(log["q"]), log["v"] * 30 / np.pi, log["u"]])
        np.savetxt(path, rows, delimiter=",", header=header, comments="", fmt="%.12g")
    p = prepare(read_recordings(path), SPACE, dt=DT, ranges=RANGES, drives=DRIVES)
    assert np.allclose(p.trajectories[0].measurements, np.concatenate([log["q"], log["v"]], 1), atol=1e-9)
    assert np.allclose(p.trajectories[0].commands, log["u"], atol=1e-9)
