"""How many worlds a thread carries: measured once on this processor, and remembered beside Warp's compiled kernels.

The widest register is not always the quickest: some processors with AVX-512 run it at half rate, and some have half of the registers.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from functools import cache
from pathlib import Path

import numpy as np
import warp as wp

from residual_mbrl.kernels.mlp import Schedule, layers_text
from residual_mbrl.kernels.native import REALS, Kernel, lane_math

log = logging.getLogger(__name__)
CANDIDATES = (64, 32)
"""Bytes of a register of worlds: 16 or 8 float32 numbers."""
UNITS, PRODUCTS = 64, 200


@cache
def lane_count(real: str = "float") -> int:
    """Return the number of worlds with the highest throughput through a 64 x 64 layer; measured in the first process only."""
    with wp.ScopedLogLevel(wp.LOG_ERROR):
        wp.init()
    path = Path(wp.config.kernel_cache_dir) / "residual_mbrl_lanes.json"
    key = f"{_processor()} {real}"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    counts = [size // REALS[real] for size in CANDIDATES]
    if known.get(key) in counts:
        return int(known[key])
    seconds = {count: _seconds_per_world(real, count) for count in counts}
    best = min(seconds, key=lambda count: seconds[count])
    log.debug("worlds a thread: %d, as seconds a world and layer are %s", best, seconds)
    _remember(path, {**known, key: best})
    return best


def _seconds_per_world(real: str, count: int) -> float:
    """Return the time of a 64 x 64 layer for one world of a block, the least of a few."""
    schedule = Schedule("lanes", count, real, count)
    call = Kernel(f"""
    struct K {{ typedef {real} R; {lane_math("T", real, count)} typedef T N; {layers_text(schedule)} }};
    K::T units[{2 * UNITS}];
    for (int k = 0; k < {2 * UNITS}; ++k) units[k] = (K::T)(0.01f * k);
    for (long n = 0; n < {PRODUCTS}; ++n) {{
        K::product((K::R*)a[0], (K::R*)a[1], {UNITS}, {UNITS}, units, units + {UNITS}, 0);
        units[0] += units[{UNITS}] * 1e-9f;
    }}
    *(K::R*)a[1] = units[0][0] * 0;
    """, 2).table()
    dtype = np.float32 if real == "float" else np.float64
    weights, bias = np.zeros(UNITS * UNITS + 16, dtype), np.zeros(UNITS, dtype)
    times = []
    for _ in range(8):
        begin = time.perf_counter()
        call([weights.ctypes.data, bias.ctypes.data])
        times.append(time.perf_counter() - begin)
    return min(times) / PRODUCTS / count


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")) + f" {platform.machine()}"
    except (OSError, StopIteration):
        return f"{platform.processor()} {platform.machine()}"


def _remember(path: Path, values: dict[str, int]) -> None:
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(values), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:  # measured again by the next process
        log.debug("cannot remember how many worlds a thread carries: %s", error)
