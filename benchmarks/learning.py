"""What a controller learned from seconds of plant data is worth, as a share of the return of MPC that knows the plant.

Every seed is another plant: each of its properties is drawn about the usual one, and differs from what is known by more. Of each:

- nominal, true: MPC in the model as known, and in one that knows the plant, by iCEM (the arm: by iLQR);
- ours: ``learn`` with the same planner in what is known, identified, with friction to be learned, from 10 s of the plant (the hopper, up to
  60 s, and the arm: nothing but what is identified);
- policy: a network trained by back-propagation through our model after those 10 s, without any more of the plant;
- MBPO: the same network trained by stable-baselines3's SAC in short branches of that model;
- PETS: ``learn`` with the same planner in five networks that know nothing, up to ten times the data, three seeds;
- SAC, PPO: stable-baselines3, up to twenty times the data, three seeds.

The reward of a step is in [0, 1], the same for all; planners minimise its difference to one (the arm's: squares of the same errors, and
of velocities and torques). The score of a seed is the mean return of some episodes, whose starts and noise are the same for all, over
that of the true model's MPC; an episode that ends early earns nothing after. The interquartile mean over seeds is shown with its 95 %
bootstrap interval. Cells are kept in --work, one a plant, seed and method, and a run that was stopped goes on with those that are
missing; a cell that fails is reported, and made again in the next run.

    python benchmarks/learning.py --options.json benchmarks/results/learning.json --work /tmp/learning
"""

from __future__ import annotations

import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from common import Options, machine, say, show
from learning_cases import CASES
from learning_cells import METHODS, POINTS, Cell
from learning_figure import draw
from scipy.stats import trim_mean

from residual_mbrl import bootstrap
from residual_mbrl.files import load_json, write_bytes, write_json

FEWER = {"PETS": 3, "SAC": 3, "PPO": 3}
"""Seeds of methods that have fewer."""
ONLY = {"policy": ("cart-pole",), "MBPO": ("cart-pole",)}
"""Plants of methods that have not all."""


def kept(cell: Cell) -> Path:
    """Return the file of a cell."""
    return cell.work / f"{cell.plant} {cell.method} {cell.seed}.json".replace(" ", "-")


def make(cell: Cell) -> None:
    """Run a cell that is not there yet; one that fails says why."""
    there = read(cell)
    if there is not None and all(f"{p:g}" in there["points"] for p in cell.points):
        return
    begun = time.monotonic()
    try:
        points = METHODS[cell.method](cell)
    except Exception:  # the others go on
        say(f"{cell.plant}, {cell.method}, seed {cell.seed} FAILED:\n{traceback.format_exc()}")
        return
    write_json(kept(cell), {"points": points, "seconds": time.monotonic() - begun, "machine": machine()})
    say(f"{cell.plant}, {cell.method}, seed {cell.seed}: {({at: round(float(np.mean(x)), 1) for at, x in points.items()})}, "
        f"{time.monotonic() - begun:.0f} s")


def read(cell: Cell) -> dict[str, Any] | None:
    """Return what a cell came to; None where it is not there."""
    found: Any = load_json(kept(cell).read_bytes()) if kept(cell).exists() else None
    return found


def interquartile(shares: list[float]) -> tuple[float, float, float]:
    """Return the interquartile mean over seeds and its 95 % bootstrap interval (Agarwal et al. 2021)."""
    x = np.array(shares)
    samples = [trim_mean(np.repeat(x, n.astype(int)), 0.25) for n in bootstrap.draw(len(x))]
    return float(trim_mean(x, 0.25)), *(float(b) for b in np.percentile(samples, [2.5, 97.5]))


def rows(plant: str, seeds: int, work: Path, episodes: int) -> list[dict[str, Any]]:
    """Return a row for each method and amount of data whose cells, and those of the true model, are there."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for seed in range(seeds):
        true = read(Cell(plant=plant, seed=seed, method="true", work=work, episodes=episodes))
        if true is None:
            continue
        whole = float(np.mean(true["points"]["0"]))
        for method in METHODS:
            cell = read(Cell(plant=plant, seed=seed, method=method, work=work, episodes=episodes))
            for at, got in ({} if cell is None else cell["points"]).items():
                found.setdefault((method, at), {})[seed] = float(np.mean(got)) / whole
    made = []
    for (method, at), shares in found.items():
        value, low, high = interquartile(list(shares.values()))
        made.append({"plant": plant, "method": method, "plant_seconds": float(at), "share": value, "ci95": [low, high],
                     "shares": {str(s): x for s, x in shares.items()}})
    return made


def main(options: Options, work: Path, plants: tuple[str, ...] = tuple(CASES), methods: tuple[str, ...] = tuple(METHODS),
         seeds: int = 5, first: int = 0, episodes: int = 5, longest: float = float("inf"), figure: Path | None = None) -> None:
    """Run the benchmark.

    Args:
        options: As of all benchmarks; quick takes one seed and what learns least long.
        work: Folder that keeps what is done.
        plants: Which.
        methods: Which, one after the other.
        seeds: Plants of each kind.
        first: Seed to begin with.
        episodes: Of an evaluation.
        longest: Seconds of plant data at most; another run with more goes on from there.
        figure: File of the picture; none where missing.
    """
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    if options.quick:
        seeds, methods = 1, ("idle", "nominal", "true", "ours")
    for method in methods:
        for plant in plants:
            if plant in ONLY.get(method, plants):
                for seed in range(first, min(seeds, FEWER.get(method, seeds))):
                    make(Cell(plant=plant, seed=seed, method=method, work=work, episodes=episodes, longest=longest))
    every = [r for plant in plants for r in rows(plant, seeds, work, episodes)]
    show("Share of the return of MPC in the true model: interquartile mean over seeds, 95 % bootstrap interval",
         ["plant", "method", "plant data [s]", "seeds", "share", "95 %"],
         [(r["plant"], r["method"], r["plant_seconds"], len(r["shares"]), r["share"], f"{r['ci95'][0]:.3f} to {r['ci95'][1]:.3f}")
          for r in every])
    if options.json:
        points = {plant: {n: list(CASES[plant]().points.get(n, p)) for n, p in POINTS.items()} for plant in plants}
        write_json(options.json, {"machine": machine(), "points": points, "rows": every})
    if figure:
        write_bytes(figure, draw(every))


if __name__ == "__main__":
    tyro.cli(main)
