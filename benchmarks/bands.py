"""Coverage and width of 90 % bands after conformal correction, by horizon: servo test logs and cube validation tosses.

Servo: an ensemble of five on a model identified from nominal values, a density of the correction on top, all learned without the gain
that it then forecasts; the errors of those held-out gains set the factors (cross-conformal, Vovk 2015), and the test logs, of a gain
that nothing has seen, are read once. Cube: particles of the stored model, whose factors come from four fifths of the validation tosses
and are scored on the other fifth, five times; the cube's test part is not read. The naive band is that of a state that stays.

    python benchmarks/bands.py --json benchmarks/results/bands.json --figure docs/figures/bands.png

Without ``--final`` the servo's test part is not read either: each known gain is scored by the factors of the others.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import bands_cube
import bands_servo
import numpy as np
import torch
import tyro
from bands_figure import draw
from common import Options, Row, compare, say, show, write_rows
from numpy.typing import NDArray

from residual_mbrl.files import write_bytes
from residual_mbrl.uncertainty.conformal import SplitConformal, adaptive_factors
from residual_mbrl.uncertainty.scores import BandScore, score_bands

Array = NDArray[np.float64]
HEADER = ("", "coverage", "95 % interval", "uncorrected", "adaptive", "width", "over naive", "CRPS", "nll")
STEPS, LEVEL, FOLDS = (1, 10, 25, 50), 0.9, 5
RATE = 0.05
"""Of the adaptive form: a log has some forty windows."""


@dataclass(frozen=True, kw_only=True)
class Bands(Options):
    """Options of this benchmark.

    Args:
        figure: File of the picture; none where missing.
        final: Read the servo's test logs.
        only: Sets to run.
        seed: Of weights, draws, noise and folds.
    """

    figure: Path | None = None
    final: bool = False
    only: tuple[str, ...] = ("servo", "cube")
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores of one set: corrected bands, those of the density alone where there is one, and naive ones; columns are quantities.

    ``adaptive`` is the coverage at each of ``STEPS`` where factors follow the stream of a log's windows; empty where there is none.
    """

    name: str
    quantities: tuple[tuple[str, str, tuple[int, ...]], ...]
    corrected: BandScore
    plain: BandScore | None
    naive: BandScore
    adaptive: tuple[float, ...]
    curve: BandScore
    naive_curve: BandScore


def main(options: Bands) -> None:
    """Forecast, correct, score, print, write."""
    torch.set_num_threads(1)
    data = Path(os.environ.get("RESIDUAL_MBRL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    found = []
    if "servo" in options.only:
        found += servo(data / "bam_xl330", options)
    if "cube" in options.only:
        found.append(cube(data / "cube", options))
    rows: list[Row] = []
    for s in found:
        lines = [line for q in s.quantities for line in _lines(s, q)]
        show(f"{s.name}: {LEVEL:.0%} bands", HEADER, lines)
        rows += [r for q in s.quantities for r in _rows(s, q)]
    write_rows(options.json, rows)
    if options.figure is not None:
        write_bytes(options.figure, draw([(s.name, s.quantities, s.curve, s.naive_curve) for s in found], LEVEL))


def servo(folder: Path, options: Bands) -> list[Scored]:
    """Score each known gain by the factors of the others, and the test gain by those of all."""
    groups, held = bands_servo.held_out(folder, options.seed)
    out = []
    for g in groups:
        out.append(_servo(f"servo {g}, known gains", held[g], [held[o] for o in groups if o != g]))
    if options.final:
        out.append(_servo("servo kp400, test", bands_servo.test_forecasts(folder, options.seed), list(held.values())))
    return out


def _servo(name: str, at: bands_servo.Forecasts, known: Sequence[bands_servo.Forecasts]) -> Scored:
    factor = SplitConformal.of(np.concatenate([k.error for k in known]), np.concatenate([k.scale for k in known]), level=LEVEL).factor
    still = SplitConformal.of(np.concatenate([k.naive for k in known]), np.array(1.0), level=LEVEL).factor
    curve = range(1, at.error.shape[1])

    def score(steps: Sequence[int], f: Array | None, *, naive: bool = False) -> BandScore:
        return score_bands(at.naive if naive else at.error, np.array(1.0) if naive else at.scale, steps=steps, level=LEVEL, factor=f,
                           unit=at.log)

    return Scored(name=name, quantities=(("angle", "rad", (0,)),), corrected=score(STEPS, factor), plain=score(STEPS, None),
                  naive=score(STEPS, still, naive=True), adaptive=_adaptive(at, known), curve=score(curve, factor),
                  naive_curve=score(curve, still, naive=True))


def _adaptive(at: bands_servo.Forecasts, known: Sequence[bands_servo.Forecasts]) -> tuple[float, ...]:
    """Return the coverage at each step where every log begins with the known scores and then follows its own past."""
    out = []
    for h in STEPS:
        before = np.concatenate([np.abs(k.error[:, h, 0]) / k.scale[:, h, 0] for k in known])
        before = np.random.default_rng(0).permutation(before)
        held = []
        for log in np.unique(at.log):
            scores = (np.abs(at.error[:, h, 0]) / at.scale[:, h, 0])[at.log == log]
            factors = adaptive_factors(before, scores, level=LEVEL, rate=RATE, delay=-(-h // bands_servo.STRIDE))
            held.append((scores <= factors)[~np.isnan(scores)])
        out.append(float(np.concatenate(held).mean()))
    return tuple(out)


def cube(folder: Path, options: Bands) -> Scored:
    """Score validation tosses, each by the factors of the other folds; scales join the particles' spread and a typical error."""
    f = bands_cube.forecasts(folder, options.seed)
    fold = np.random.default_rng(options.seed).permutation(len(f.error)) % FOLDS
    half, still = np.zeros_like(f.error), np.zeros_like(f.error)
    for k in range(FOLDS):
        known, at = fold != k, fold == k
        typical = np.median(np.abs(f.error[known]), 0) / 0.6745 + 1e-12
        scale = np.sqrt(f.spread**2 + typical**2)
        half[at] = SplitConformal.of(f.error[known], scale[known], level=LEVEL).factor * scale[at]
        still[at] = SplitConformal.of(f.naive[known], np.array(1.0), level=LEVEL).factor
    curve = range(1, f.error.shape[1])

    def score(steps: Sequence[int], error: Array, width: Array) -> BandScore:
        return score_bands(error, np.maximum(width, 1e-12), steps=steps, level=LEVEL, factor=1.0)

    return Scored(name="cube, validation tosses", quantities=(("position", "m", (0, 1, 2)), ("rotation", "rad", (3, 4, 5))),
                  corrected=score(STEPS, f.error, half), plain=None, naive=score(STEPS, f.naive, still), adaptive=(),
                  curve=score(curve, f.error, half), naive_curve=score(curve, f.naive, still))


def _lines(s: Scored, quantity: tuple[str, str, tuple[int, ...]]) -> list[list[object]]:
    name, unit, columns = quantity
    c = list(columns)
    out: list[list[object]] = []
    for i, h in enumerate(s.corrected.steps):
        band, width = s.corrected.coverage, s.corrected.width.value[i, c].mean()
        out.append([f"{name} [{unit}], step {h}", f"{band.value[i, c].mean():.3f}",
                    f"{band.lower[i, c].mean():.3f} to {band.upper[i, c].mean():.3f}",
                    "" if s.plain is None else f"{s.plain.coverage.value[i, c].mean():.3f}", f"{s.adaptive[i]:.3f}" if s.adaptive else "",
                    float(width), float(width / s.naive.width.value[i, c].mean()), float(s.corrected.crps.value[i, c].mean()),
                    f"{s.corrected.nll.value[i, c].mean():.2f}"])
    return out


def _rows(s: Scored, quantity: tuple[str, str, tuple[int, ...]]) -> list[Row]:
    name, unit, columns = quantity
    c = list(columns)
    out = []
    for i, h in enumerate(s.corrected.steps):
        stem = f"bands.{s.name}.{name}_h{h}"
        out += [compare(f"{stem}.coverage", float(s.corrected.coverage.value[i, c].mean()), LEVEL, "1"),
                compare(f"{stem}.width_against_naive", float(s.corrected.width.value[i, c].mean()),
                        float(s.naive.width.value[i, c].mean()), unit)]
        out += [compare(f"{stem}.coverage_adaptive", s.adaptive[i], LEVEL, "1")] if s.adaptive else []
    return out


if __name__ == "__main__":
    options = tyro.cli(Bands)
    say("the servo's test logs are read once more" if options.final else "no test logs are read")
    main(options)
