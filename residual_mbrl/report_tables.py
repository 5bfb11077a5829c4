"""Tables of a report as markup: errors, paired differences, logs, parameters, certificates, energy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from residual_mbrl.bootstrap import Band
from residual_mbrl.evaluation import Evaluation
from residual_mbrl.html_page import Cell, table
from residual_mbrl.identifiability import Estimate
from residual_mbrl.verdict import number, percent


def with_interval(numbers: Band, place: int | tuple[int, int]) -> str:
    """Return a number and its interval as text."""
    value, lower, upper = (float(x[place]) for x in numbers)
    return number(value) if np.isnan(lower) else f"{number(value)} [{number(lower)}, {number(upper)}]"


def errors(evaluation: Evaluation, c: int) -> str:
    """Errors of every model in one column, with intervals."""
    unit = evaluation.units[c]
    head = ["model", f"MAE [{unit}]", f"RMSE [{unit}]", "share of force", "diverged windows"]
    rows: list[list[str | Cell]] = []
    for m, s in evaluation.scores.items():
        diverged = int(s.diverged.sum())
        rows.append([m, with_interval(s.mae, c), with_interval(s.rmse, c), percent(s.examination.force_share),
                     Cell(f"{diverged} of {len(s.diverged)}", "bad") if diverged else f"0 of {len(s.diverged)}"])
    return table(head, rows)


def horizons(evaluation: Evaluation, c: int) -> str:
    """Mean absolute error of every model at each reported horizon."""
    head = ["model", *(f"{h} steps ({h * evaluation.dt:.3g} s)" for h in evaluation.horizons)]
    return table(head, [[m, *(with_interval(s.over_horizon, (int(np.searchsorted(evaluation.steps, h)), c)) for h in evaluation.horizons)]
                        for m, s in evaluation.scores.items()])


def differences(evaluation: Evaluation, c: int) -> str:
    """Paired difference of every pair of models."""
    rows: list[list[str | Cell]] = []
    for p in evaluation.pairs:
        lower, upper = float(p.difference.lower[c]), float(p.difference.upper[c])
        word = Cell("less error", "good") if upper < 0 else Cell("more error", "bad") if lower > 0 else "not told apart"
        rows.append([f"{p.model} against {p.reference}", with_interval(p.difference, c), percent(float(p.better[c])), word])
    return table(["models", f"difference of MAE [{evaluation.units[c]}]", f"{evaluation.unit_name}s better", ""], rows)


def logs(evaluation: Evaluation, c: int) -> str:
    """Mean absolute error of every model on every log."""
    head = [f"log [{evaluation.units[c]}]", *evaluation.models]
    return table(head, [[name, *(number(float(s.log_mae[i, c])) for s in evaluation.scores.values())]
                        for i, name in enumerate(evaluation.logs)])


def parameters(estimates: Sequence[Estimate]) -> str:
    """Nominal and identified values with 95 % intervals."""
    rows: list[list[str | Cell]] = []
    for e in estimates:
        low, high = e.interval
        interval = f"[{number(low)}, {number(high)}]" if np.isfinite(e.std) else Cell("not determined", "bad")
        rows.append([e.parameter.name, number(e.parameter.nominal), number(e.value), interval, e.parameter.unit,
                     Cell("at bound", "bad") if e.at_bound else "", e.parameter.description])
    return table(["parameter", "nominal", "identified", "95 % interval", "unit", "", ""], rows)


def certificates(evaluation: Evaluation) -> str:
    """What every residual was found to do at worst; empty where there are none."""
    rows: list[list[str | Cell]] = [[f"{m}: {x.residual}", x.quantity, number(x.worst), number(x.limit), x.unit, f"{x.samples:,}",
             Cell("holds", "good") if x.holds else Cell("broken", "bad")]
            for m, s in evaluation.scores.items() for x in s.examination.certificates]
    return table(["residual", "quantity", "worst", "allowed", "unit", "states", ""], rows) if rows else ""


def energies(evaluation: Evaluation) -> str:
    """Mean energies over windows; empty where no baseline knows them."""
    rows: list[list[str | Cell]] = []
    for m, s in evaluation.scores.items():
        e = s.examination.energy
        if np.isfinite(e.stored).any() or np.isfinite(e.dissipated).any():
            rows.append([m, *(number(float(x.mean())) for x in (e.stored, e.dissipated, e.stored - e.dissipated, e.residual_work))])
    return table(["model", "stored [J]", "dissipated [J]", "supplied [J]", "work of the residual [J]"], rows) if rows else ""
