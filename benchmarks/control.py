"""Model predictive control beside its peers, in one run: the same model, horizon, limits, start and cost, each in its own process.

- ``cart_pole``: swing-up with a learned force (two layers of 64 units), 100 steps, forces within 15 N: ILQR beside mpc.pytorch and CasADi
  (IPOPT, SQP and fatrop, the network as CasADi expressions, C code generated).
- ``mppi``: a command of MPPI with 1024 samples over 50 steps of the same model, beside pytorch_mppi.
- ``quadrotor_rti``: a real-time iteration a tick for a quadrotor (13 states, 4 thrusts, a residual of four layers of 64 units, 20 nodes
  over 1 s) that follows a circle of 2 m at 3 m/s, beside a real-time iteration of CasADi's SQP.
- ``crocoddyl_arm``: crocoddyl's arm example, six hinges that bring the tool to a pose in 1 s.
- ``crocoddyl_cart_pole``, ``crocoddyl_swing_up``: crocoddyl's cart-pole, as its notebook has it and from hanging down, without a network.

Everything runs on one core, which this process and all peers are pinned to, and repeats alternate. A cost is that of a solver's actions,
rolled out and summed in float64 by one function. "To 1.01" is the time until the first iterate whose cost is at most 1.01 times the best
that any solver ends with. On a machine that others use, ``CONTROL_CLOCK=cpu`` measures processor time in place of wall time (but in
crocoddyl's C++): a short solve fits between others, a long one does not. Compiling and first calls are not timed. Peers' environments are
made by ``control_peers/make.sh``; those that are missing are left out.

    benchmarks/control_peers/make.sh && python benchmarks/control.py --json benchmarks/results/control.json
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from common import machine, say, show
from control_cases import mppi_case, quadrotor_case, swing_up_case
from control_crocoddyl import arm_case, crocoddyl_case

from residual_mbrl.files import write_json

Result = dict[str, Any]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "residual_mbrl" / "control_peers"
HANGING, STRONG = (0.0, 3.14, 0.0, 0.0), (100.0, 100.0, 1.0, 0.1, 0.01, 1e-4)
NOTEBOOK, RUNNING = (0.0, 0.0, 1.0, 0.5), (1.0, 1.0, 0.1, 0.001, 0.001, 1.0)
CASES: dict[str, Callable[[Path, bool], Result]] = {
    "quadrotor_rti": quadrotor_case,
    "cart_pole": swing_up_case,
    "mppi": mppi_case,
    "crocoddyl_arm": arm_case,
    "crocoddyl_cart_pole": lambda folder, quick: crocoddyl_case(folder, quick, NOTEBOOK, RUNNING, near=True),
    "crocoddyl_swing_up": lambda folder, quick: crocoddyl_case(folder, quick, HANGING, STRONG, near=False),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of this benchmark.

    Args:
        json: File that the results are written to; none where missing.
        only: Cases to run; all where missing.
        quick: Fewer repeats.
        peers: Folder of the peers' environments.
        core: Which all run on; the last that this process may use where missing.
    """

    json: Path | None = None
    only: tuple[str, ...] = ()
    quick: bool = False
    peers: Path = CACHE
    core: int | None = None


def main(options: Options) -> None:
    """Run the cases."""
    unknown = [n for n in options.only if n not in CASES]
    if unknown:
        raise ValueError(f"only: received {unknown}, expected some of {list(CASES)}")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0)) if options.core is None else options.core})
    torch.set_num_threads(1)
    say(f"{machine()}; load {os.getloadavg()[0]:.1f}")
    results: dict[str, object] = {"machine": machine(), "clock": os.environ.get("CONTROL_CLOCK", "wall"), "load_before": os.getloadavg()[0]}
    for name in options.only or CASES:
        results[name] = found = CASES[name](options.peers, options.quick)
        rows = found["rows"]
        if not rows:
            continue
        show(name.replace("_", " "), list(rows[0]), [["-" if v is None else v for v in row.values()] for row in rows])
        for key in ("median_ms", "p95_ms"):
            if key in found:
                say(f"{key} {found[key]:.3f}")
    results["load_after"] = os.getloadavg()[0]
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
