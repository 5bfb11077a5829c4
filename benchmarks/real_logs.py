"""Calibrate on every set of real logs and score its test split by the set's own protocol.

Run: python benchmarks/real_logs.py --json benchmarks/results/real_logs.json --readme README.md
(data: the folder named by RESIDUAL_MBRL_DATA, ../shared/data by default).

Calibration reads train and validation data only and writes the artefact to benchmarks/artifacts; the test split is then
read once to score it. ``--score-only`` scores the artefacts that are there. Numbers of peers are those of the data sets'
own READMEs: best of published and refitted models under the same protocol.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from common import Options, Row, compare, show, write_rows

from residual_mbrl.calibration import calibrate, evaluate_artifact
from residual_mbrl.files import write_text
from residual_mbrl.metrics import Metric
from residual_mbrl.presets import PRESETS

ARTIFACTS = Path(__file__).parent / "artifacts"
BEGIN, END = "<!-- real-logs:begin -->", "<!-- real-logs:end -->"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One number of a protocol.

    Args:
        preset: Preset that calibrates the set.
        metric: Name of the metric.
        horizon: Its horizon in steps.
        label: What it is, for the table.
        peer: Number to beat.
        peer_name: Whose it is.
        identified: Required of the identified model; None where nothing is.
        corrected: Required of the model with its residual.
        more: Whether larger is better.
    """

    preset: str
    metric: str
    label: str
    peer: float
    peer_name: str
    corrected: float
    horizon: int | None = None
    identified: float | None = None
    more: bool = False

    def met(self, value: float, bound: float | None) -> str:
        """Return the value with a mark whether it keeps the bound."""
        kept = bound is None or (value >= bound if self.more else value <= bound)
        return f"{value:.4g}" + ("" if bound is None else f" ({'≥' if self.more else '≤'} {bound:g}{'' if kept else ', missed'})")


GOALS = (
    Goal(preset="servo", metric="mae_rad", label="servo, kp 400, 6 s closed loop, MAE [rad]", peer=0.0475, peer_name="m6 refitted",
         identified=0.036, corrected=0.031),
    Goal(preset="drive", metric="rmse_windows_mm", horizon=2000, label="drive, 2 s windows, RMSE [mm]", peer=2.71, identified=1.0,
         corrected=0.50, peer_name="output-error refit"),
    Goal(preset="drive", metric="rmse_open_loop_mm", label="drive, 9.8 s open loop, RMSE [mm]", peer=3.54, identified=5.3, corrected=1.4,
         peer_name="output-error refit"),
    Goal(preset="double_pendulum", metric="angle_median_rad", horizon=5, label="double pendulum, 50 ms, median error [rad]", peer=0.0069,
         peer_name="regression", corrected=0.0032),
    Goal(preset="double_pendulum", metric="angle_median_rad", horizon=10, label="double pendulum, 100 ms, median error [rad]",
         peer=0.0132, peer_name="rollout fit", corrected=0.0060),
    Goal(preset="double_pendulum", metric="angle_median_rad", horizon=25, label="double pendulum, 250 ms, median error [rad]",
         peer=0.0399, peer_name="rollout fit", corrected=0.0200),
    Goal(preset="double_pendulum", metric="acceleration_r2_link1", label="double pendulum, acceleration R², link 1", peer=0.8219,
         peer_name="compound model", corrected=0.99, more=True),
    Goal(preset="double_pendulum", metric="acceleration_r2_link2", label="double pendulum, acceleration R², link 2", peer=0.8135,
         peer_name="compound model", corrected=0.99, more=True),
    Goal(preset="pendulum", metric="mse_dxdt", label="pendulum, MSE of dx/dt [1]", peer=1.3711e-3, peer_name="3-coefficient regression",
         corrected=1.36e-3),
    Goal(preset="pendulum", metric="mse_energy", label="pendulum, MSE of energy [1]", peer=1.4477e-2,
         peer_name="Hamiltonian network, published", corrected=1.4477e-2),
)

FOLDERS = {"servo": "bam_xl330", "drive": "emps", "double_pendulum": "schmidt_lipson", "pendulum": "schmidt_lipson"}


@dataclass(frozen=True, kw_only=True)
class RealLogs(Options):
    """Options of this benchmark.

    Args:
        readme: File whose marked block is replaced by the table; none where missing.
        only: Presets to run.
        score_only: Score the artefacts that are there instead of calibrating.
        workers: Processes that fit folds side by side.
    """

    readme: Path | None = None
    only: tuple[str, ...] = tuple(FOLDERS)
    score_only: bool = False
    workers: int = 2


def main(options: RealLogs) -> None:
    """Calibrate, score, print, write."""
    data = Path(os.environ.get("RESIDUAL_MBRL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    presets = ("pendulum",) if options.quick else options.only
    scored: dict[str, list[Metric]] = {}
    for name in presets:
        folder = ARTIFACTS / name
        if not options.score_only:
            calibrate(PRESETS[name], data / FOLDERS[name], folder, workers=options.workers)
            (folder / "report.html").unlink()  # figures show the logs, which the repository does not hold
            shutil.rmtree(folder / "figures")
        with tempfile.TemporaryDirectory() as out:
            scored[name] = evaluate_artifact(folder, data / FOLDERS[name], Path(out) / "scores")
    goals = [g for g in GOALS if g.preset in presets]
    lines = [_line(g, scored[g.preset]) for g in goals]
    show("real logs, test splits", HEADER, lines)
    write_rows(options.json, [r for g in goals for r in _rows(g, scored[g.preset])])
    if options.readme is not None:
        _fill(options.readme, lines)


HEADER = ("logs and metric", "to beat", "nominal", "identified (required)", "identified+residual (required)")


def _value(goal: Goal, metrics: Sequence[Metric], model: str) -> float:
    return next(m.value for m in metrics if (m.model, m.metric, m.horizon) == (model, goal.metric, goal.horizon))


def _line(goal: Goal, metrics: Sequence[Metric]) -> list[object]:
    nominal, identified, corrected = (_value(goal, metrics, m) for m in ("nominal", "identified", "identified+residual"))
    return [goal.label, f"{goal.peer:.4g} ({goal.peer_name})", f"{nominal:.4g}", goal.met(identified, goal.identified),
            goal.met(corrected, goal.corrected)]


def _rows(goal: Goal, metrics: Sequence[Metric]) -> list[Row]:
    name = f"{goal.preset}.{goal.metric}" + ("" if goal.horizon is None else f"_h{goal.horizon}")
    unit = goal.label.split("[")[-1].rstrip("]") if "[" in goal.label else "1"
    return [compare(f"{name}.{m}", _value(goal, metrics, m), goal.peer, unit) for m in ("nominal", "identified", "identified+residual")]


def _fill(readme: Path, lines: Sequence[Sequence[object]]) -> None:
    text = readme.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    row = lambda cells: "| " + " | ".join(map(str, cells)) + " |"  # noqa: E731
    table = "\n".join([row(HEADER), "|" + "---|" * len(HEADER), *map(row, lines)])
    write_text(readme, f"{before}{BEGIN}\n{table}\n{END}{after}")


if __name__ == "__main__":
    main(tyro.cli(RealLogs))
