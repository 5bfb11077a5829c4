"""Logs: what is refused, and how they come onto a grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from problems import log

from residual_mbrl.errors import LogError
from residual_mbrl.trajectories import Trajectory, by_group, on_grid


def _make(**changes: object) -> Trajectory:
    time = 0.01 * np.arange(5)
    fields = {"name": "swing", "command_time": time, "commands": np.zeros((5, 1)), "command_names": ("torque",), "measurement_time": time,
              "measurements": np.zeros((5, 2)), "measurement_names": ("q", "dq")}
    return Trajectory(**{**fields, **changes})  # type: ignore[arg-type]


def _with(value: float, row: int, column: int) -> np.ndarray:
    table = np.zeros((5, 2))
    table[row, column] = value
    return table


@pytest.mark.parametrize(("changes", "message"), [
    ({"measurements": _with(np.nan, 3, 1)}, "swing: measurement column 'dq' is nan at row 3"),
    ({"measurements": _with(-np.inf, 2, 0)}, "swing: measurement column 'q' is -inf at row 2"),
    ({"measurements": _with(np.inf, 2, 0), "missing": True}, "swing: measurement column 'q' is inf at row 2"),
    ({"commands": np.full((5, 1), np.nan)}, "swing: command column 'torque' is nan at row 0 .5 such"),
    ({"measurement_time": np.array([0, 0.01, 0.03, 0.02, 0.04])}, "swing: measurement time goes from 0.03 to 0.02 s at row 3"),
    ({"command_time": np.array([0, 0.01, 0.01, 0.02, 0.03])}, "swing: command time goes from 0.01 to 0.01 s at row 2"),
    ({"measurement_time": np.array([0, np.nan, 0.02, 0.03, 0.04])}, "swing: measurement time is not finite at row 1"),
    ({"measurement_time": np.zeros(1), "measurements": np.zeros((1, 2))}, r"swing: 1 measurement sample\(s\); at least two"),
    ({"measurements": np.zeros((2, 5))}, r"swing: expected measurement time \[N\] and values \[N, 2\].*received \(5,\) and \(2, 5\)"),
    ({"measurements": np.zeros((5, 1))}, r"swing: expected .* for columns \['q', 'dq'\], received \(5,\) and \(5, 1\)"),
    ({"commands": np.zeros(5)}, r"swing: expected command .*received \(5,\) and \(5,\)"),
])
def test_bad_log_is_refused(changes, message):
    """The message names log, column and row."""
    with pytest.raises(LogError, match=message):
        _make(**changes)


def test_missing_samples_may_be_nan():
    """A log that says so may hold NaN in measurements."""
    assert np.isnan(_make(measurements=_with(np.nan, 3, 1), missing=True).column("dq")[3])


def test_unknown_column_names_those_there_are():
    """A missing column is answered by the list."""
    with pytest.raises(LogError, match=r"swing: no column 'current'; there are \['q', 'dq', 'torque'\]"):
        _make().column("current")


def test_gaps_are_reported():
    """An interval longer than half as much again as the median is a gap, with the row before it."""
    t = _make(measurement_time=np.array([0, 0.01, 0.02, 0.05, 0.06]))
    assert [(i, round(s, 9)) for i, s in t.gaps()] == [(2, 0.03)]
    assert t.gaps(factor=4.0) == []
    assert (round(t.interval, 9), round(t.duration, 9)) == (0.01, 0.06)


def test_gap_on_the_grid_is_empty():
    """Rows that nothing was measured at are NaN, all others are where their stamps say."""
    t = _make(measurement_time=np.array([0, 0.01, 0.02, 0.05, 0.06]), measurements=np.arange(10.0).reshape(5, 2))
    g = on_grid(t, 0.01)
    assert np.array_equal(np.isfinite(g.measurements[:, 0]), [True, True, True, False, False, True, True])
    assert np.array_equal(g.measurements[[0, 1, 2, 5, 6]], t.measurements)


def test_another_rate_is_refused():
    """The message gives the interval of the log and the rate that the model expects."""
    with pytest.raises(LogError, match=r"swing: sample 1 at 0.01 s lies off the model's 0.008 s grid \(median interval 0.01 s\): "
                                       "expected data at 125 Hz"):
        on_grid(_make(), 0.008)


def test_slower_log_leaves_rows_empty():
    """A model at a multiple of the log's rate compares with every sample there is."""
    g = on_grid(_make(measurements=np.arange(10.0).reshape(5, 2)), 0.005)
    assert np.array_equal(g.measurements[::2, 0], [0, 2, 4, 6, 8])
    assert np.isnan(g.measurements[1::2]).all()


def test_a_log_in_milliseconds_is_refused():
    """Stamps that make every sample last many model steps are taken for another unit of time."""
    log = _make(measurements=np.arange(10.0).reshape(5, 2))
    late = replace(log, measurement_time=1e3 * log.measurement_time, command_time=1e3 * log.command_time)
    with pytest.raises(LogError, match="median interval"):
        on_grid(late, 0.01)


def test_resampling_interpolates_but_not_across_gaps():
    """Values between samples are linear; inside a gap in time, or a stretch of missing samples, there is none."""
    time = np.array([0, 0.01, 0.02, 0.05, 0.06, 0.07, 0.08])
    table = np.stack([10 * time, np.array([0, 1, 2, 5, np.nan, np.nan, 8.0])], 1)
    zeros = np.zeros((7, 1))
    g = on_grid(_make(command_time=time, commands=zeros, measurement_time=time, measurements=table, missing=True), 0.004, resample=True)
    inside = (g.time > 0.02 + 1e-9) & (g.time < 0.05 - 1e-9)
    assert np.array_equal(np.isnan(g.measurements[:, 0]), inside)
    assert np.allclose(g.measurements[~inside, 0], 10 * g.time[~inside])
    assert np.array_equal(np.isnan(g.measurements[:, 1]), inside | ((g.time > 0.05 + 1e-9) & (g.time < 0.08 - 1e-9)))


def test_column_that_was_never_recorded_stays_empty():
    """Resampling a column of NaN gives NaN."""
    table = np.stack([np.arange(5.0), np.full(5, np.nan)], 1)
    assert np.isnan(on_grid(_make(measurements=table, missing=True), 0.004, resample=True).measurements[:, 1]).all()


def test_commands_hold_until_the_next():
    """Each row of the grid has the latest command, from its own clock."""
    t = _make(command_time=np.array([-0.005, 0.012, 0.02, 0.0305, 0.1]), commands=np.arange(5.0)[:, None])
    assert np.array_equal(on_grid(t, 0.01).actions[:, 0], [0, 0, 2, 3])


def test_late_commands_are_refused():
    """Nobody knows what drove the plant before the first command."""
    with pytest.raises(LogError, match=r"swing: commands start at 0.02 s, after the first measurement at 0 s"):
        on_grid(_make(command_time=0.02 + 0.01 * np.arange(5)), 0.01)


def test_log_shorter_than_a_step_is_refused():
    """One model step is the least."""
    with pytest.raises(LogError, match=r"swing: 0.04 s of measurements is less than one model step of 0.1 s"):
        on_grid(_make(), 0.1)


def test_groups_keep_their_order():
    """Logs are sorted by group in order of appearance."""
    logs = [log({"q": np.zeros(3)}, name=n, group=g) for n, g in (("a", "x"), ("b", "y"), ("c", "x"))]
    assert {g: [t.name for t in ts] for g, ts in by_group(logs).items()} == {"x": ["a", "c"], "y": ["b"]}
