"""The simulated servo makes logs that its preset reads, the same ones for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from calibration_problem import column, write_logs

from residual_mbrl import simulated_servo as servo
from residual_mbrl.datasets import bam
from residual_mbrl.log_checks import check_units


def test_logs_are_readable(tmp_path):
    """Every part of the split is there, on the model's clock, with units that pass the checks."""
    logs = bam.read(write_logs(tmp_path / "logs"), ("train", "val", "test")).logs
    assert {p: tuple(t.name for t in ts) for p, ts in logs.items()} == servo.PARTS
    baseline = servo.baseline()
    for log in (t for ts in logs.values() for t in ts):
        assert log.interval == pytest.approx(baseline.dt)
        check_units(log, servo.SIMULATED_SERVO.sensor(baseline))


def test_a_seed_gives_one_set_of_logs(tmp_path):
    """The same seed gives the same bytes of every column, another seed other noise."""
    one, two, other = (write_logs(tmp_path / n, seed) for n, seed in (("a", 0), ("b", 0), ("c", 1)))
    for name in ("q", "dq", "q_goal"):
        assert np.array_equal(column(one, "steps_g800", name), column(two, "steps_g800", name))
    assert not np.array_equal(column(one, "steps_g800", "q"), column(other, "steps_g800", "q"))


def test_the_encoder_counts_in_steps(tmp_path):
    """Angles are whole counts of the encoder."""
    counts = column(write_logs(tmp_path / "logs"), "sine_g200", "q") / servo.ENCODER_STEP
    assert np.abs(counts - np.round(counts)).max() < 1e-9


def test_the_model_does_not_know_the_truth():
    """Load, friction and sag of the simulated plant are not the model's nominal values."""
    nominal = servo.baseline().parameters.nominal()
    assert all(nominal[n] != x for n, x in servo.TRUTH.items())
