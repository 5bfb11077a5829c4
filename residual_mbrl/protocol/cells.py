"""What is run: cells, each one model trained in one way on one fold."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields

from residual_mbrl.files import dump_json

NONE, IDENTIFIED, NO_BASELINE, NO_CONSTRAINTS = "none", "identified", "no baseline", "identified + free force"
RESIDUAL, BOTH, ONE_STEP = "residual: ", "identified + ", "one-step training of identified + "


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training and what it is scored on.

    Args:
        variant: Which model; see ``variants``.
        fold: Name of the fold that is held out.
        seed: Of search and weights.
        fraction: Of the fold's training windows that is used.
        changes: Options of fitting by name that differ from the preset's.
        purpose: Table that it belongs to: "ablations", "data", "seeds" or "options".
    """

    variant: str
    fold: str
    seed: int = 0
    fraction: float = 1.0
    changes: Mapping[str, float | int | str] = field(default_factory=dict)
    purpose: str = "ablations"

    @property
    def name(self) -> str:
        """Name of its file, the same for the same training whatever the table."""
        told = {k: v for k, v in asdict(self).items() if k != "purpose"}
        plain = "".join(c if c.isalnum() else "_" for c in f"{self.variant}-{self.fold}")[:60]
        return f"{plain}-{hashlib.sha256(dump_json(told).encode()).hexdigest()[:10]}"

    @property
    def label(self) -> str:
        """What it is, in words."""
        changed = ", ".join(f"{n} {v}" for n, v in self.changes.items())
        return f"{self.variant}, fold {self.fold}, seed {self.seed}, {self.fraction:.0%} of the data" + (f", {changed}" if changed else "")


@dataclass(frozen=True, kw_only=True)
class ProtocolOptions:
    """What to run.

    Args:
        candidate: Residual of the main model, by its name in the preset; the first where empty.
        fractions: Amounts of training data, of the main model and of "identified".
        seeds: Seeds of the main model and of "identified"; the first is that of all other cells.
        options: Options of fitting of the main model, one changed at a time: ("ridge", 0.1).
        folds: Most folds that are held out.
        horizons: Steps ahead at which errors are reported.
        disturbance: Parameter and factor of a change planted in the middle of a flight of the identified model, as a payload is.
        workers: Processes side by side; 0 runs everything in this one.
        retries: How often a crashed cell is run again.
        timeout: Seconds after which a cell counts as crashed.
    """

    candidate: str = ""
    fractions: Sequence[float] = (0.25, 0.5)
    seeds: Sequence[int] = (0, 1, 2)
    options: Sequence[tuple[str, float]] = (("ridge", 0.01), ("ridge", 0.2))
    folds: int = 3
    horizons: Sequence[int] = (1, 10, 100)
    disturbance: tuple[str, float] | None = None
    workers: int = 2
    retries: int = 1
    timeout: float = 3600.0

    def __post_init__(self) -> None:
        """Check what can be checked without a preset."""
        from residual_mbrl.fitting import FitOptions  # noqa: PLC0415  # seconds of torch that a process may not need

        known = {f.name for f in fields(FitOptions)}
        unknown = [n for n, _ in self.options if n not in known]
        if unknown:
            raise ValueError(f"protocol: no options of fitting {unknown}; there are {sorted(known)}")
        if not all(0 < f < 1 for f in self.fractions) or not self.seeds or self.folds < 1 or self.workers < 0 or self.retries < 0:
            raise ValueError(f"protocol: expected fractions in (0, 1), seeds, folds >= 1, workers and retries >= 0, received "
                             f"{list(self.fractions)}, {list(self.seeds)}, {self.folds}, {self.workers}, {self.retries}")


def plan(options: ProtocolOptions, candidates: Sequence[str], folds: Sequence[str]) -> list[Cell]:
    """Return the cells of a protocol; a training that two tables share is one cell in each, and run once.

    Raises:
        ValueError: if the main candidate is none of the preset's.
    """
    main = options.candidate or candidates[0]
    if main not in candidates:
        raise ValueError(f"protocol: candidate must be one of {list(candidates)}, received {main!r}")
    first, out = options.seeds[0], []
    ablations = [NONE, IDENTIFIED, *(RESIDUAL + c for c in candidates), *(BOTH + c for c in candidates), NO_CONSTRAINTS, NO_BASELINE,
                 ONE_STEP + main]
    both = (IDENTIFIED, BOTH + main)
    for fold in folds:
        out += [Cell(variant=v, fold=fold, seed=first) for v in ablations]
        out += [Cell(variant=v, fold=fold, seed=first, fraction=f, purpose="data") for f in (*options.fractions, 1.0) for v in both]
        out += [Cell(variant=v, fold=fold, seed=s, purpose="seeds") for s in options.seeds for v in both]
        out += [Cell(variant=BOTH + main, fold=fold, seed=first, changes={n: x}, purpose="options") for n, x in options.options]
    return out
