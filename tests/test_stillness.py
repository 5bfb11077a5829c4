"""The witness of the benchmarks sees a core that is taken away, and only that."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from stillness import PRIORITY, Witness, overlap

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setscheduler"), reason="of Linux alone")


def test_overlap_is_what_pauses_cover():
    pauses = [(0.0, 1.0), (2.0, 2.5), (4.0, 9.0)]
    assert overlap(pauses, 0.5, 5.0) == pytest.approx(0.5 + 0.5 + 1.0)
    assert overlap(pauses, 2.6, 3.9) == 0.0


def test_witness_sees_when_its_core_is_taken():
    """By a program before it in priority for twenty milliseconds, but not by one that is busy as usual."""
    before = os.sched_getaffinity(0)
    witness = Witness()
    try:
        if not witness.there:
            pytest.skip("no real-time priority is to be had")
        busy = spin(0.2)
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY + 1))
        taken = spin(0.05)
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        assert witness.still(*taken) > 0.04
        assert witness.still(*busy) < 0.1
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        witness.close()
        os.sched_setaffinity(0, before)


def spin(seconds: float) -> tuple[float, float]:
    """Keep the core busy and return from when to when."""
    begin = time.monotonic()
    while time.monotonic() < begin + seconds:
        pass
    return begin, time.monotonic()
