"""Logs of the simulated arm: readable, reproducible, and with velocities as the integrator means them."""

from __future__ import annotations

import numpy as np
import pytest

from residual_mbrl.demo import sensor, simulator
from residual_mbrl.demo_logs import FIT_WINDOW, HORIZON, PARTS, read_logs, simulate_logs
from residual_mbrl.errors import LogError
from residual_mbrl.log_checks import check_units
from residual_mbrl.signal_estimates import fit_locally
from residual_mbrl.windows import cut_windows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("logs")
    simulate_logs(path, seconds=2.0)
    return path


def test_logs_are_readable(folder):
    """Every part is there, on the model's clock, in its units, and can be cut into windows."""
    baseline = simulator()
    logs = read_logs(folder, ("train", "val", "test"))
    assert {p: tuple(t.name for t in ts) for p, ts in logs.logs.items()} == PARTS
    for part, trajectories in logs.logs.items():
        for t in trajectories:
            assert t.interval == pytest.approx(baseline.dt)
            check_units(t, sensor(baseline))
        assert len(cut_windows(trajectories, baseline.dt, horizon=HORIZON, starts=logs.starts[part])) >= len(trajectories)


def test_a_seed_gives_one_set_of_logs(folder, tmp_path):
    """The same seed gives the same numbers, another seed other motions."""
    for name, seed in (("same", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        simulate_logs(tmp_path / name, seed, seconds=2.0)
    logs = [read_logs(f, ["test"]).logs["test"][0] for f in (folder, tmp_path / "same", tmp_path / "other")]
    assert np.array_equal(logs[0].commands, logs[1].commands) and np.array_equal(logs[0].measurements, logs[1].measurements)
    assert not np.array_equal(logs[0].commands, logs[2].commands)


def test_velocities_are_those_of_the_integrator():
    """Away from the ends they agree with ``(q[t] - q[t-1]) / dt``, not with the slope at the sample."""
    dt, t = 0.002, 0.002 * np.arange(500)
    q = np.stack([np.sin(6 * t), np.cos(9 * t)], 1)
    inner = slice(40, -40)
    velocity = np.stack([fit_locally(x, dt, order=1, lag=0.5 * dt, window=FIT_WINDOW) for x in q.T], 1)
    error = (velocity[1:] - np.diff(q, axis=0) / dt)[inner]
    centred = (np.gradient(q, dt, axis=0)[1:] - np.diff(q, axis=0) / dt)[inner]
    assert np.abs(error).max() < 0.02 * np.abs(centred).max()


def test_a_log_of_another_arm_is_refused(tmp_path):
    """A file with another number of joints is named with its shapes."""
    t = np.arange(100) * 0.002
    for name in PARTS["test"]:
        np.savez(tmp_path / f"{name}.npz", time=t, position=np.zeros((100, 6)), velocity=np.zeros((100, 6)), torque=np.zeros((100, 6)))
    with pytest.raises(LogError, match=r"expected 7 columns.*\(100, 6\)"):
        read_logs(tmp_path, ["test"])


def test_a_missing_log_is_named(tmp_path):
    """A folder without the logs is refused."""
    with pytest.raises(LogError, match="run6"):
        read_logs(tmp_path, ["test"])
