"""Windows cut from logs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import log

from residual_mbrl.errors import LogError
from residual_mbrl.windows import cut_windows, joined


def _log(n: int, name: str = "log", group: str = "", first: float = 0.0):
    return log({"q": first + np.arange(n)}, {"torque": -(first + np.arange(n))}, name=name, group=group)


def test_windows_tile_a_log():
    """Each holds its rows; a rest that fills no window is left."""
    w = cut_windows([_log(11)], 0.01, horizon=4)
    assert w.start.tolist() == [0, 4]
    assert w.measurements[..., 0].tolist() == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]
    assert w.actions[..., 0].tolist() == [[0, -1, -2, -3], [-4, -5, -6, -7]]
    assert torch.allclose(w.time[1], 0.01 * torch.arange(4, 9, dtype=torch.float64))
    assert bool(w.recorded.all())


def test_stride_overlaps():
    """Starts lie a stride apart and the last window still fits."""
    assert cut_windows([_log(11)], 0.01, horizon=4, stride=3).start.tolist() == [0, 3, 6]


def test_whole_logs_are_padded():
    """A shorter log repeats its last command and counts nothing beyond its end."""
    w = cut_windows([_log(6), _log(4, first=100)], 0.01)
    assert (w.horizon, len(w)) == (5, 2)
    assert w.recorded[1, :, 0].tolist() == [True] * 4 + [False] * 2
    assert w.measurements[1, 4:].abs().max() == 0
    assert w.actions[1, :, 0].tolist() == [-100, -101, -102, -102, -102]


def test_given_starts():
    """Rows to start at may be given for each log, and windows at the end are padded."""
    w = cut_windows([_log(6), _log(6, first=10)], 0.01, horizon=3, starts=[[1], [0, 4]])
    assert (w.log.tolist(), w.start.tolist()) == ([0, 1, 1], [1, 0, 4])
    assert w.recorded.sum((1, 2)).tolist() == [4, 4, 2]


def test_unrecorded_starts_are_left_out():
    """A window begins where something was measured."""
    q = np.arange(11.0)
    q[4] = np.nan
    assert cut_windows([log({"q": q}, missing=True)], 0.01, horizon=4).start.tolist() == [0]


def test_take_first_and_groups():
    """Selections keep rows together."""
    w = cut_windows([_log(9, "a", "x"), _log(9, "b", "y")], 0.01, horizon=4)
    assert w.of_groups(["y"]).log.tolist() == [1, 1]
    assert w.take(torch.tensor([3, 0])).start.tolist() == [4, 0]
    short = w.first(2)
    assert (short.horizon, short.measurements.shape, short.time.shape) == (2, (4, 3, 1), (4, 3))
    assert w.first(99).horizon == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype(dtype):
    """Tensors have the dtype asked for."""
    w = cut_windows([_log(5)], 0.01, dtype=dtype)
    assert {w.actions.dtype, w.measurements.dtype, w.time.dtype} == {dtype}


def test_no_log_is_refused():
    """An empty folder says so."""
    with pytest.raises(LogError, match="no logs"):
        cut_windows([], 0.01)


def test_differing_columns_are_refused():
    """The message names both logs and both sets of columns."""
    with pytest.raises(LogError, match=r"b: columns \('angle', 'torque'\) differ from those of a, \('q', 'torque'\)"):
        cut_windows([_log(5, "a"), log({"angle": np.zeros(5)}, name="b")], 0.01)


def test_short_logs_are_refused():
    """The message gives the length asked for and the longest there is."""
    with pytest.raises(LogError, match=r"no log holds a window of 9 steps \(0.09 s\); the longest has 4 steps"):
        cut_windows([_log(5)], 0.01, horizon=9)


@pytest.mark.parametrize("start", [-1, 6, 99])
def test_start_outside_a_log_is_refused(start):
    """Beyond the last row there is nothing to compare with."""
    with pytest.raises(LogError, match=f"log: start {start} lies outside its 5 steps"):
        cut_windows([_log(6)], 0.01, horizon=2, starts=[[start]])


@pytest.mark.parametrize("options", [{"horizon": 0}, {"horizon": 2, "stride": 0}, {"horizon": -3}, {"starts": []}, {"around": -0.1}])
def test_wrong_options_are_refused(options):
    """Options that cut nothing are wrong arguments."""
    with pytest.raises(ValueError, match="cut_windows: expected"):
        cut_windows([_log(6)], 0.01, **options)


def test_windows_know_the_commands_around_them():
    """As many steps as asked for, held beyond the log's own ends."""
    w = cut_windows([_log(11)], 0.01, horizon=3, starts=[[1, 5]], around=0.02)
    assert w.lead[..., 0].tolist() == [[0, 0], [-3, -4]]
    assert w.trail[..., 0].tolist() == [[-4, -5], [-8, -9]]
    assert cut_windows([_log(11)], 0.01, horizon=9, around=0.03).trail[0, :, 0].tolist() == [-9] * 3


def test_shorter_windows_keep_the_commands_around():
    """What is cut off is known as what comes before or after."""
    w = cut_windows([_log(20)], 0.01, horizon=9, starts=[[5]], around=0.02)
    first, cut = w.first(4), w.cut(3, 4)
    assert (first.lead[0, :, 0].tolist(), first.trail[0, :, 0].tolist()) == ([-3, -4], [-9, -10])
    assert (cut.lead[0, :, 0].tolist(), cut.trail[0, :, 0].tolist()) == ([-6, -7], [-12, -13])
    assert (cut.start.tolist(), cut.measurements[0, :, 0].tolist()) == ([8], [8, 9, 10, 11, 12])


def test_joined_windows_know_what_all_of_them_know():
    """The shortest horizon and the shortest commands around."""
    w = joined([cut_windows([_log(20)], 0.01, horizon=h, starts=[[s]], around=a) for h, s, a in ((4, 5, 0.03), (3, 9, 0.02))])
    assert w.actions[..., 0].tolist() == [[-5, -6, -7], [-9, -10, -11]]
    assert w.lead[..., 0].tolist() == [[-3, -4], [-7, -8]]
    assert w.trail[..., 0].tolist() == [[-8, -9], [-12, -13]]
    assert w.take(torch.tensor([False, True])).lead[..., 0].tolist() == [[-7, -8]]
