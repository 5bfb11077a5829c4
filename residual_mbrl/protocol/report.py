"""The protocol's page: a table for every question, and every option that was used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from residual_mbrl.html_page import Cell as Styled
from residual_mbrl.html_page import code, listing, page, paragraph, section, table
from residual_mbrl.protocol.cells import Cell
from residual_mbrl.verdict import number

Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Question:
    """One table: cells of one purpose, and what tells them apart."""

    purpose: str
    title: str
    key: Callable[[Cell], str]
    note: str


QUESTIONS = (
    Question(purpose="ablations", title="Ablations", key=lambda c: c.variant,
             note="Mean over held-out folds. \"none\" is the baseline with nominal values; \"residual\" is fitted without identification; "
                  "\"free force\" has no law; \"no baseline\" is a network alone."),
    Question(purpose="data", title="Amount of data", key=lambda c: f"{c.variant}, {c.fraction:.0%}",
             note="The same with less training data."),
    Question(purpose="seeds", title="Seeds", key=lambda c: c.variant,
             note="Mean and standard deviation over seeds, folds averaged first: a difference below the spread is chance."),
    Question(purpose="options", title="Options of fitting",
             key=lambda c: f"{c.variant}, " + ", ".join(f"{n} {x}" for n, x in c.changes.items()), note="One option changed at a time."),
)


def summarise(cells: Sequence[Cell], results: Results) -> dict[str, list[dict[str, object]]]:
    """Return for each question one row a group of cells: label, column, mean error with its spread over seeds, by horizon, failures."""
    out: dict[str, list[dict[str, object]]] = {}
    for q in QUESTIONS:
        groups: dict[str, list[Cell]] = {}
        for c in cells:
            if c.purpose == q.purpose:
                groups.setdefault(q.key(c), []).append(c)
        out[q.purpose] = [row for label, members in groups.items() for row in _rows(label, members, results)]
    return out


def _rows(label: str, members: Sequence[Cell], results: Results) -> list[dict[str, object]]:
    done = [(c, results[c.name]["result"]) for c in members if results.get(c.name, {}).get("status") == "done"]
    failed = len(members) - len(done)
    if not done:
        return [{"model": label, "column": "", "mae": None, "failed": failed}]
    rows = []
    for column, unit in done[0][1]["units"].items():
        seeds = sorted({c.seed for c, _ in done})
        by_seed = [float(np.mean([r["mae"][column] for c, r in done if c.seed == s])) for s in seeds]
        horizons = done[0][1]["error"][column]
        kinds = done[0][1]["realism"].get(column, {})
        rows.append({"model": label, "column": column, "unit": unit, "mae": float(np.mean(by_seed)),
                     "spread": float(np.std(by_seed, ddof=1)) if len(seeds) > 1 else None,
                     "error": {h: float(np.mean([r["error"][column].get(h, np.nan) for _, r in done])) for h in horizons},
                     "realism": {k: float(np.mean([r["realism"][column][k] for _, r in done])) for k in kinds},
                     "diverged": sum(r["diverged"] for _, r in done),
                     "certificates": all(all(r["certificates"].values()) for _, r in done), "failed": failed})
    return rows


def regimes(cells: Sequence[Cell], results: Results) -> list[dict[str, object]]:
    """Return the mean error of each ablation in each group of held-out logs, by column."""
    out = []
    for variant in dict.fromkeys(c.variant for c in cells if c.purpose == "ablations"):
        found: dict[tuple[str, str], list[float]] = {}
        for c in cells:
            result = results.get(c.name, {})
            if c.purpose == "ablations" and c.variant == variant and result.get("status") == "done":
                for group, columns in result["result"]["regimes"].items():
                    for column, error in columns.items():
                        found.setdefault((group, column), []).append(error)
        out += [{"model": variant, "regime": g, "column": n, "mae": float(np.mean(x))} for (g, n), x in found.items()]
    return out


def render(document: Mapping[str, Any], command: str) -> str:
    """Return the page of a protocol's document."""
    body = [paragraph(f"{document['done']} of {document['cells']} cells done, {len(document['failed'])} failed. Test data were not read.")]
    for q in QUESTIONS:
        rows = document["tables"][q.purpose]
        body.append(section(q.title, [paragraph(q.note, "note"), _table(rows)] if rows else []))
    shown = document["regimes"]
    names = list(dict.fromkeys(f"{r['regime']}: {r['column']}" for r in shown))
    models = list(dict.fromkeys(r["model"] for r in shown))
    by = {(r["model"], f"{r['regime']}: {r['column']}"): number(r["mae"]) for r in shown}
    body.append(section("By regime", [paragraph("Mean absolute error in each group of held-out logs.", "note"),
                                      table(("model", *names), [[m, *(by.get((m, n), "") for n in names)] for m in models])]))
    body.append(section("Realism of imagined rollouts", [
        paragraph("Rollouts of held-out windows against the recorded ones: log-spectral distance, and Wasserstein distances of values and "
                  "of increments from sample to sample in standard deviations. Zero is alike.", "note"),
        _realism(document["tables"]["ablations"])]))
    if document["recovery"]:
        body.append(section("Recovery from a planted change", [
            paragraph("The identified model flown on held-out commands; half-way one of its parameters changes.", "note"),
            listing(document["recovery"])]))
    if document["failed"]:
        body.append(section("Failed cells", [table(("cell", "attempts", "error"), [
            [f["label"], str(f["attempts"]), Styled(str(f["error"]), "bad")] for f in document["failed"]], "words")]))
    body.append(section("Options", [code(command), listing(document["options"])]))
    return page(f"Evaluation protocol: {document['dataset']}", body)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    steps = sorted({h for r in rows for h in r.get("error", {})}, key=int)
    lines = []
    for r in rows:
        if r["mae"] is None:
            lines.append([r["model"], Styled(f"{r['failed']} failed", "bad"), *[""] * (len(steps) + 2)])
            continue
        value = number(r["mae"]) + (f" ± {number(r['spread'])}" if r["spread"] is not None else "")
        notes = [*([f"{r['failed']} failed"] if r["failed"] else []), *([f"{r['diverged']} diverged"] if r["diverged"] else []),
                 *([] if r["certificates"] else ["a certificate broke"])]
        lines.append([r["model"], f"{r['column']} [{r['unit']}]", value, *(number(r["error"].get(h, float("nan"))) for h in steps),
                      ", ".join(notes)])
    return table(("model", "column", "mean error", *(f"step {h}" for h in steps), ""), lines)


def _realism(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [[r["model"], r["column"], number(r["realism"]["spectrum_db"]), number(r["realism"]["values"]),
              number(r["realism"]["increments"])] for r in rows if r.get("realism")]
    return table(("model", "column", "spectrum [dB]", "values", "increments"), lines)
