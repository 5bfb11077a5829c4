"""Figures of an evaluation, as matplotlib figures without global state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from residual_mbrl.bootstrap import Array, divide, per_unit
from residual_mbrl.evaluation import Evaluation
from residual_mbrl.examination import Examination
from residual_mbrl.figure_style import GREY, WIDTH, colours, error_axis, key, panel
from residual_mbrl.verdict import number

MOST_LOGS = 40


FORCE_STYLES = ("-", (0, (3, 1)), ":")
"""Lines of the residual's force: of more degrees of freedom than these, those with the largest are shown."""


def predicted_against_measured(evaluation: Evaluation, *, column: str | None = None, models: Sequence[str] | None = None) -> Figure:
    """Draw the worst, the median and the best log: measured and predicted, the error, and the residual force.

    Logs are ranked by the error of the last of ``models`` (windows, where there is one log); a log is shown by the window
    whose error is closest to that of the log.

    Args:
        evaluation: What to draw.
        column: Measured column; the first where None.
        models: Models to draw; identified and identified+residual where None, or the last two evaluated.
    """
    c = evaluation.column(column)
    wanted = [m for m in ("identified", "identified+residual") if m in evaluation.scores]
    shown = list(models) if models is not None else wanted if len(wanted) > 1 else list(evaluation.models[-2:])
    examples = _examples(evaluation, shown[-1], c)
    figure = Figure(figsize=(WIDTH, 4.5), layout="constrained")
    grid = figure.subplots(3, len(examples), sharex="col", sharey="row", squeeze=False, height_ratios=[2, 1, 1])
    hue, unit = colours(evaluation.models), evaluation.units[c]
    for k, (title, w) in enumerate(examples):
        top, middle, below = grid[:, k]
        time, measured = evaluation.time[w] - evaluation.time[w, 0], evaluation.measured[w, :, c]
        for m in shown:
            predicted = np.where(np.isfinite(measured), evaluation.scores[m].predicted[w, :, c], np.nan)
            top.plot(time, predicted, color=hue[m], linewidth=1.4, label=m)
            middle.plot(time, predicted - measured, color=hue[m], linewidth=0.8)
        # thinner and above, so that a prediction that lies on the measurement is still seen behind it
        top.plot(time, measured, color="black", linewidth=0.6, label="measured")
        _draw_force(below, evaluation.scores[shown[-1]].examination, time, w, hue[shown[-1]])
        for axes in (middle, below):
            axes.axhline(0, color=GREY, linewidth=0.6, zorder=0)
        first = k == 0
        panel(top, y=f"{evaluation.columns[c]} [{unit}]" if first else "", title=title)
        panel(middle, y=f"error [{unit}]" if first else "")
        panel(below, x="time [s]", y=_force_label(evaluation.scores[shown[-1]].examination) if first else "")
        known = np.flatnonzero(np.isfinite(measured))
        if len(known) and known[-1]:
            top.set_xlim(0, time[known[-1]])
    _limit_to_measured(grid[0, 0], evaluation, [w for _, w in examples], c)
    _limit_errors(grid[1, 0], evaluation, shown, [w for _, w in examples], c)
    if len(evaluation.scores[shown[-1]].examination.force_names) > 1:
        grid[2, -1].legend(frameon=False, fontsize=7, ncols=2, loc="best", borderpad=0.1)
    figure.align_ylabels(grid[:, 0])
    key(figure, grid[0, 0])
    return figure


def _force_label(examination: Examination) -> str:
    return f"residual\nforce [{', '.join(dict.fromkeys(examination.force_units))}]"


def _draw_force(axes: Axes, examination: Examination, time: Array, w: int, colour: str) -> None:
    names, size = examination.force_names, np.sqrt(np.nanmean(examination.residual_force**2, axis=(0, 1)))
    largest = np.argsort(-size, kind="stable")[: len(FORCE_STYLES)]
    for style, i in zip(FORCE_STYLES, largest, strict=False):
        axes.plot(time[:-1], examination.residual_force[w, :, i], color=colour, linewidth=0.8, linestyle=style,
                  label=names[i] if len(names) > 1 else None)


def error_over_horizon(evaluation: Evaluation, *, column: str | None = None, models: Sequence[str] | None = None) -> Figure:
    """Draw the mean absolute error against the time predicted ahead, with 95 % bands, a line for each model."""
    c = evaluation.column(column)
    shown = evaluation.models if models is None else tuple(models)
    hue, time = colours(evaluation.models), evaluation.steps * evaluation.dt
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    axes = panel(figure.subplots(), x="time ahead [s]", y=f"mean absolute error\nof {evaluation.columns[c]} [{evaluation.units[c]}]")
    for m in shown:
        line = [np.where(np.isfinite(x[:, c]), x[:, c], np.nan) for x in evaluation.scores[m].over_horizon]
        axes.plot(time, line[0], color=hue[m], linewidth=1.5, label=_with_divergence(evaluation, m))
        axes.fill_between(time, line[1], line[2], color=hue[m], alpha=0.15, linewidth=0)
    axes.set_xlim(0, time[-1])
    error_axis(axes, "y", [evaluation.scores[m].over_horizon.value[:, c] for m in shown])
    key(figure, axes)
    return figure


def errors_per_log(evaluation: Evaluation, *, column: str | None = None, models: Sequence[str] | None = None) -> Figure:
    """Draw the error of every log, a dot for each model on one line for each log, sorted by the corrected model's error."""
    c = evaluation.column(column)
    shown = evaluation.models if models is None else tuple(models)
    hue = colours(evaluation.models)
    table = np.stack([evaluation.scores[m].log_mae[:, c] for m in shown])
    order = np.argsort(table[shown.index("identified+residual") if "identified+residual" in shown else -1])
    title = f"the {MOST_LOGS} worst of {len(order)} logs" if len(order) > MOST_LOGS else ""
    order = order[-MOST_LOGS:]
    figure = Figure(figsize=(WIDTH, 0.9 + 0.2 * max(len(order), 3)), layout="constrained")
    axes = panel(figure.subplots(), x=f"mean absolute error of {evaluation.columns[c]} [{evaluation.units[c]}]", title=title)
    finite = np.where(np.isfinite(table), table, np.nan)
    for row, i in enumerate(order):
        if np.isfinite(finite[:, i]).any():
            axes.plot([np.nanmin(finite[:, i]), np.nanmax(finite[:, i])], [row, row], color="#CCCCCC", linewidth=1, zorder=1)
    for k, m in enumerate(shown):
        axes.plot(finite[k, order], np.arange(len(order)), "o", color=hue[m], markersize=5, label=_with_divergence(evaluation, m), zorder=2)
    axes.grid(axis="y", visible=False)
    axes.set_yticks(range(len(order)), [_short(evaluation.logs[i]) for i in order])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(order) - 0.4, -0.6)
    error_axis(axes, "x", list(table[:, order]))
    key(figure, axes)
    return figure


def _examples(evaluation: Evaluation, model: str, c: int) -> list[tuple[str, int]]:
    """Return title and window of the worst, the median and the best log (or window of a single log)."""
    sums, counts = per_unit(evaluation.scores[model].error[..., c], np.arange(len(evaluation.log)), len(evaluation.log))
    window = divide(sums.sum(1), counts.sum(1))
    several = len(evaluation.logs) > 1
    ranked = evaluation.scores[model].log_mae[:, c] if several else window
    order = [int(i) for i in np.argsort(-ranked) if not np.isnan(ranked[i])]
    if not order:
        return [("no recorded sample", 0)]
    places = dict.fromkeys([order[0], order[len(order) // 2], order[-1]])
    out = []
    for word, i in zip(("worst", "median", "best") if len(places) == 3 else ("worst", "best"), places, strict=False):
        w = i
        if several:
            own = np.flatnonzero(evaluation.log == i)
            distance = np.abs(np.nan_to_num(window[own], posinf=1e300) - min(ranked[i], 1e300))
            w = int(own[np.argmin(np.where(np.isnan(window[own]), np.inf, distance))])
        name = _short(evaluation.logs[i]) if several else f"from {evaluation.time[w, 0]:.3g} s"
        error = "diverged" if np.isinf(window[w]) else f"{number(float(window[w]))} {evaluation.units[c]}"
        out.append((f"{word}: {name}\n{error}", w))
    return out


def _limit_to_measured(axes: Axes, evaluation: Evaluation, windows: Sequence[int], c: int) -> None:
    """Keep a prediction that runs away from flattening the measurement."""
    values = evaluation.measured[list(windows), :, c]
    if not np.isfinite(values).any():
        return
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = 0.4 * max(high - low, 1e-9)
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, low - room), min(top, high + room))
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _limit_errors(axes: Axes, evaluation: Evaluation, models: Sequence[str], windows: Sequence[int], c: int) -> None:
    """Keep one model's errors from flattening those of a far better one beyond reading."""
    largest = sorted(max((float(np.quantile(e, 0.98)) for e in _finite_errors(evaluation, m, windows, c)), default=0.0) for m in models)
    limit = 1.3 * min(largest[-1], 20 * largest[0]) if largest[0] > 0 else 1.3 * largest[-1]
    if limit > 0:
        axes.set_ylim(-limit, limit)


def _finite_errors(evaluation: Evaluation, model: str, windows: Sequence[int], c: int) -> list[Array]:
    errors = [evaluation.scores[model].error[w, :, c] for w in windows]
    return [e[np.isfinite(e)] for e in errors if np.isfinite(e).any()]


def _with_divergence(evaluation: Evaluation, model: str) -> str:
    diverged = int(evaluation.scores[model].diverged.sum())
    return f"{model} (diverged on {diverged} of {len(evaluation.log)})" if diverged else model


def _short(name: str, longest: int = 28) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
