"""Coverage and width of 90 % bands after conformal correction, by horizon: servo, cube and the 45 g quadrotor.

Servo: an ensemble of five on a model identified from nominal values, a density of the correction on top, all learned without the gain
that it then forecasts; the errors of those held-out gains set the factors (cross-conformal, Vovk 2015), and the test logs are of a gain
that nothing has seen. Cube: particles of the stored model, whose factors come from four fifths of the validation tosses and are scored
on the other fifth, five times; the cube's test part is not read. Quadrotor: the stored model on flights of a type that nothing has seen;
the factors come from each known type as a model of the other two forecasts it.

Four bands: of the density alone; with *fixed* factors by horizon; with fixed factors on scales from the log's own *past* errors; and
*adaptive*, with factors that follow the log. The naive band is that of a state that stays, made in the same way.

    python benchmarks/bands.py --final --json benchmarks/results/bands.json --figure docs/figures/bands.png

Without ``--final`` no test part is read: each known gain or type is scored by the factors of the others.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import bands_cube
import bands_nanodrone
import bands_servo
import numpy as np
import torch
import tyro
from bands_figure import draw
from bands_streams import Halves, alike, halves
from common import Options, Row, compare, say, show, write_rows
from numpy.typing import NDArray

from residual_mbrl.files import write_bytes
from residual_mbrl.uncertainty.conformal import SplitConformal, adaptive_factors, conformal_quantile
from residual_mbrl.uncertainty.past_errors import Stream
from residual_mbrl.uncertainty.scores import BandScore, score_bands

Array = NDArray[np.float64]
Quantity = tuple[str, str, tuple[int, ...]]
HEADER = ("", "density", "fixed", "past", "adaptive", "95 %", "fixed width", "/ naive", "ad. width", "/ naive", "CRPS", "nll")
STEPS, LEVEL, FOLDS = (1, 10, 25, 50), 0.9, 5
ENCODER = 3e-4
"""Smallest error of the servo's angle that counts [rad], a fifth of its encoder's step."""
SMALLEST = 1e-6
"""The same of the drone, in the unit of each quantity."""
FLIGHT = (("position", "m", (0,)), ("velocity", "m/s", (1,)), ("rotation", "rad", (2,)), ("body rate", "rad/s", (3,)))


@dataclass(frozen=True, kw_only=True)
class Bands(Options):
    """Options of this benchmark.

    Args:
        figure: File of the picture; none where missing.
        final: Read the test logs of servo and quadrotor.
        only: Sets to run.
        seed: Of weights, draws, noise and folds.
    """

    figure: Path | None = None
    final: bool = False
    only: tuple[str, ...] = ("servo", "cube", "nanodrone")
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores of one set at every step from 1, by kind of band: "density", "fixed", "past", "adaptive"; columns are quantities.

    ``drawn`` says whether it belongs into the picture, ``signed`` whether errors have a sign, so that a density of them can be scored.
    """

    name: str
    quantities: tuple[Quantity, ...]
    ours: Mapping[str, BandScore]
    naive: Mapping[str, BandScore]
    drawn: bool
    signed: bool = True


def main(options: Bands) -> None:
    """Forecast, correct, score, print, write."""
    torch.set_num_threads(1)
    data = Path(os.environ.get("RESIDUAL_MBRL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    found: list[Scored] = []
    if "servo" in options.only:
        found += servo(data / "bam_xl330", options)
    if "cube" in options.only:
        found.append(cube(data / "cube", options))
    if "nanodrone" in options.only:
        found += flights(data / "nanodrone", options)
    rows: list[Row] = []
    for s in found:
        show(f"{s.name}: {LEVEL:.0%} bands", HEADER, [line for q in s.quantities for line in _lines(s, q)])
        rows += [r for q in s.quantities for r in _rows(s, q)]
    write_rows(options.json, rows)
    if options.figure is not None:
        write_bytes(options.figure, draw([(s.name, s.quantities, s.ours, s.naive) for s in found if s.drawn], LEVEL))


def servo(folder: Path, options: Bands) -> list[Scored]:
    """Score each known gain by the factors of the others, and the test gain by those of all."""
    groups, held = bands_servo.held_out(folder, options.seed)
    out = [_servo(f"servo {g}, known gains", held[g], {o: held[o] for o in groups if o != g}, drawn=False) for g in groups]
    if options.final:
        out.append(_servo("servo kp400, test", bands_servo.test_forecasts(folder, options.seed), held, drawn=True))
    return out


def _servo(name: str, at: bands_servo.Forecasts, known: Mapping[str, bands_servo.Forecasts], *, drawn: bool) -> Scored:
    few, others = at.apart(), [k.apart() for k in known.values()]
    factor = SplitConformal.of(np.concatenate([k.error for k in others]), np.concatenate([k.scale for k in others]), level=LEVEL).factor
    still = SplitConformal.of(np.concatenate([k.naive for k in others]), np.array(1.0), level=LEVEL).factor
    ours, naive = (_followed(halves(at.streams(naive=n), {k: x.streams(naive=n) for k, x in known.items()}, LEVEL, carry=True,
                                    floor=ENCODER)) for n in (False, True))
    fixed = {n: _score(few.error, few.scale, f, few.log) for n, f in (("density", None), ("fixed", factor))}
    return Scored(name=name, quantities=(("angle", "rad", (0,)),), drawn=drawn, ours={**fixed, **ours},
                  naive={"fixed": _score(few.naive, np.ones_like(few.naive), still, few.log), **naive})


def flights(folder: Path, options: Bands) -> list[Scored]:
    """Score each known type by the factors of the others, and flights that the stored model has not seen by those of all."""
    known = bands_nanodrone.known_types(folder)
    out = [_flights(f"nanodrone {k}, known types", k, known, known, drawn=False) for k in known.model]
    out.append(_flights("nanodrone, extra flights", "extra", bands_nanodrone.stored_forecasts(folder, "extra"), known, drawn=False))
    if options.final:
        out.append(_flights("nanodrone melon, test", "test", bands_nanodrone.stored_forecasts(folder, "test"), known, drawn=True))
    return out


def _flights(name: str, kind: str, at: bands_nanodrone.Flights, known: bands_nanodrone.Flights, *, drawn: bool) -> Scored:
    def made(own: Sequence[Stream], others: Mapping[str, Sequence[Stream]]) -> dict[str, BandScore]:
        others = {k: x for k, x in others.items() if k != kind}
        found = halves(own, others, LEVEL, carry=False, floor=SMALLEST)
        factor = conformal_quantile(alike([np.concatenate([s.error for s in x]) for x in others.values()]), LEVEL)
        return {"fixed": _score(found.error, np.ones_like(found.error), factor, found.log), **_followed(found)}

    return Scored(name=name, quantities=FLIGHT, ours=made(at.model[kind], known.model), naive=made(at.naive[kind], known.naive),
                  drawn=drawn, signed=False)


def cube(folder: Path, options: Bands) -> Scored:
    """Score validation tosses, each by the factors of the other folds; scales join the particles' spread and a typical error."""
    f = bands_cube.forecasts(folder, options.seed)
    fold = np.random.default_rng(options.seed).permutation(len(f.error)) % FOLDS
    half, still, followed = np.zeros_like(f.error), np.zeros_like(f.error), np.zeros_like(f.error)
    for k in range(FOLDS):
        known, at = fold != k, fold == k
        typical = np.median(np.abs(f.error[known]), 0) / 0.6745 + 1e-12
        scale = np.sqrt(f.spread**2 + typical**2)
        half[at] = SplitConformal.of(f.error[known], scale[known], level=LEVEL).factor * scale[at]
        still[at] = SplitConformal.of(f.naive[known], np.array(1.0), level=LEVEL).factor
        scores = np.abs(f.error) / scale
        for h in range(scores.shape[1]):
            for c in range(scores.shape[2]):  # a toss has ended when the next one begins
                followed[at, h, c] = adaptive_factors(scores[known, h, c], scores[at, h, c], level=LEVEL, rate=bands_cube.RATE)
        followed[at] *= scale[at]
    return Scored(name="cube, validation tosses", quantities=(("position", "m", (0, 1, 2)), ("rotation", "rad", (3, 4, 5))), drawn=True,
                  ours={"fixed": _score(f.error, half), "adaptive": _score(f.error, followed)}, naive={"fixed": _score(f.naive, still)})


def _followed(found: Halves) -> dict[str, BandScore]:
    return {"past": _score(found.error, found.past, unit=found.log), "adaptive": _score(found.error, found.adaptive, unit=found.log)}


def _score(error: Array, scale: Array, factor: Array | float | None = 1.0, unit: NDArray[np.int64] | None = None) -> BandScore:
    return score_bands(error, np.maximum(scale, 1e-12), steps=range(1, error.shape[1]), level=LEVEL, factor=factor, unit=unit)


def _lines(s: Scored, quantity: Quantity) -> list[list[object]]:
    name, unit, columns = quantity
    c = list(columns)
    last = s.ours["adaptive"]
    out: list[list[object]] = []
    for h in STEPS:
        i = h - 1
        cells = [f"{s.ours[n].coverage.value[i, c].mean():.3f}" if n in s.ours else "" for n in HEADER[1:5]]
        widths: list[object] = []
        for n in ("fixed", "adaptive"):
            width = float(s.ours[n].width.value[i, c].mean())
            widths += [width, width / float(s.naive[n if n in s.naive else "fixed"].width.value[i, c].mean())]
        density = [float(last.crps.value[i, c].mean()), f"{last.nll.value[i, c].mean():.2f}"] if s.signed else ["", ""]
        out.append([f"{name} [{unit}] {h}", *cells, f"{last.coverage.lower[i, c].mean():.2f}-{last.coverage.upper[i, c].mean():.2f}",
                    *widths, *density])
    return out


def _rows(s: Scored, quantity: Quantity) -> list[Row]:
    name, unit, columns = quantity
    c, out = list(columns), []
    for h in STEPS:
        stem = f"bands.{s.name}.{name}_h{h}"
        for n in ("fixed", "past", "adaptive"):
            if n in s.ours:
                mark, peer = "" if n == "fixed" else f"_{n}", s.naive[n if n in s.naive else "fixed"]
                out += [compare(f"{stem}.coverage{mark}", float(s.ours[n].coverage.value[h - 1, c].mean()), LEVEL, "1"),
                        compare(f"{stem}.width_against_naive{mark}", float(s.ours[n].width.value[h - 1, c].mean()),
                                float(peer.width.value[h - 1, c].mean()), unit)]
    return out


if __name__ == "__main__":
    options = tyro.cli(Bands)
    say("test logs of servo and quadrotor are read" if options.final else "no test logs are read")
    main(options)
