"""Figures draw the numbers of an evaluation, with units, and one colour for each model everywhere."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from evaluation_problem import IDENTIFIED, SENSOR, Offset, evaluation, identification, model, windows
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

from residual_mbrl import calibration_figures, figure_style, figures
from residual_mbrl.evaluation import Evaluation, evaluate

COLOURS = {"identified": "#0072b2", "identified+residual": "#d55e00", "nominal": "#8c8c8c"}


@pytest.fixture(scope="module")
def found() -> Evaluation:
    return evaluation()


def lines(figure: Figure, axes: int = 0) -> dict[str, np.ndarray]:
    """Vertical data of every labelled line of one panel."""
    return {str(x.get_label()): np.asarray(x.get_ydata()) for x in figure.axes[axes].lines if not str(x.get_label()).startswith("_")}


def points() -> list[calibration_figures.DataPoint]:
    point = calibration_figures.DataPoint
    return [point(amount=n, model=m, value=v / n, interval=(0.8 * v / n, 1.2 * v / n))
            for m, v in (("identified", 0.2), ("network", 2.0)) for n in (1, 2, 4, 8)] + [point(amount=16, model="network", value=0.1)]


def every_figure(found: Evaluation) -> dict[str, Figure]:
    speed = np.linspace(-1, 1, 51)
    return {"predicted": figures.predicted_against_measured(found), "horizon": figures.error_over_horizon(found),
            "logs": figures.errors_per_log(found), "parameters": calibration_figures.parameter_intervals(identification().estimates),
            "data": calibration_figures.error_over_data(points(), amount="logs [1]", error="error [rad]"),
            "friction": calibration_figures.friction_curve(speed, np.sign(speed)[None], 1.2 * np.sign(speed)[None], labels=["no load"])}


def test_every_figure_is_drawn_at_report_width(found: Evaluation) -> None:
    """Each becomes a PNG 1080 pixels wide, at 150 dpi, and pyplot with its global state is never loaded."""
    before = set(sys.modules)
    for name, figure in every_figure(found).items():
        image = imread(io.BytesIO(figure_style.png(figure)))
        assert image.shape[1] == 1080, name
        assert np.ptp(image[..., :3]) > 0.9, name
    assert "matplotlib.pyplot" not in set(sys.modules) - before


def test_every_axis_has_a_label_with_its_unit(found: Evaluation) -> None:
    """Left and bottom panels of each figure say what is drawn in which unit."""
    for name, figure in every_figure(found).items():
        labels = [axis.get_label_text() for a in figure.axes for axis in (a.xaxis, a.yaxis) if axis.get_label_text()]
        assert labels and all("[" in x for x in labels), name


def test_a_model_has_one_colour_in_all_figures(found: Evaluation) -> None:
    """The colour of a model does not depend on the figure or on which models are drawn with it."""
    for name, figure in every_figure(found).items():
        for axes in figure.axes:
            for line in axes.lines:
                expected = COLOURS.get(str(line.get_label()))
                assert expected is None or to_hex(line.get_color()) == expected, name


def test_unknown_models_get_colours_of_their_own() -> None:
    """Three further names are told apart from the known ones and from each other."""
    assert len(set(figure_style.colours(["nominal", "identified", "a", "b", "c"]).values())) == 5


def test_worst_median_and_best_log_are_shown(found: Evaluation) -> None:
    """Titles name the three logs by the corrected model's error; prediction and error are those of that log."""
    figure = figures.predicted_against_measured(found)
    order = np.argsort(-found.scores["identified+residual"].log_mae[:, 0])
    titles = [a.get_title(loc="left") for a in figure.axes[:3]]
    for word, i, title in zip(("worst", "median", "best"), (order[0], order[4], order[-1]), titles, strict=True):
        assert title.startswith(f"{word}: log_{i}\n") and title.endswith("rad")
    drawn, w = lines(figure), order[0]
    np.testing.assert_array_equal(drawn["measured"], found.measured[w, :, 0])
    known = np.isfinite(found.measured[w, :, 0])
    np.testing.assert_array_equal(drawn["identified"][known], found.scores["identified"].predicted[w, known, 0])
    assert np.isnan(drawn["identified"][~known]).all()


def test_error_over_horizon_draws_means_and_bands(found: Evaluation) -> None:
    """Lines are the means; an area lies around each."""
    figure = figures.error_over_horizon(found, column="rate")
    for m, y in lines(figure).items():
        np.testing.assert_array_equal(y, found.scores[m].over_horizon.value[:, 1])
    assert len(figure.axes[0].collections) == 3


def test_divergence_is_said_and_does_not_flatten_the_rest() -> None:
    """A diverged model is named as such in the key, and finite errors keep their scale."""
    bad = Offset(dynamics=model().dynamics, sensor=SENSOR, offset=0.01, diverges=(0, 3))
    found = evaluate({"identified": model(IDENTIFIED), "network": bad}, windows(), resamples=50)
    for figure in (figures.error_over_horizon(found), figures.errors_per_log(found), figures.predicted_against_measured(found)):
        assert len(figure_style.png(figure)) > 1000
    assert "network (diverged on 2 of 8)" in lines(figures.error_over_horizon(found))


def test_only_the_worst_of_many_logs_are_listed(found: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a readable number the figure keeps the worst logs and says so."""
    monkeypatch.setattr(figures, "MOST_LOGS", 3)
    axes = figures.errors_per_log(found).axes[0]
    worst = np.argsort(found.scores["identified+residual"].log_mae[:, 0])[-3:]
    assert [t.get_text() for t in axes.get_yticklabels()] == [f"log_{i}" for i in worst]
    assert axes.get_title(loc="left") == "the 3 worst of 8 logs"


def test_one_log_in_one_window_can_be_drawn() -> None:
    """Without intervals and with a single example nothing fails."""
    found = evaluate({"identified": model(IDENTIFIED)}, windows(count=1), resamples=10)
    for draw in (figures.predicted_against_measured, figures.error_over_horizon, figures.errors_per_log):
        assert len(figure_style.png(draw(found))) > 1000


@pytest.mark.parametrize(("low", "scale"), [(0.5, "linear"), (0.01, "log")])
def test_error_axes_turn_logarithmic_when_models_lie_far_apart(low: float, scale: str) -> None:
    """Errors that differ by a few times share a linear axis from zero."""
    axes = Figure().subplots()
    figure_style.error_axis(axes, "y", [np.ones(5), np.full(5, low), np.array([np.inf, np.nan])])
    assert axes.get_yscale() == scale and (scale == "log" or axes.get_ylim()[0] == 0)


def test_parameters_show_interval_bound_and_both_values() -> None:
    """A parameter at its bound is an open dot, one without an interval has arrows, numbers stand beside."""
    axes = calibration_figures.parameter_intervals(identification().estimates).axes[0]
    dots = [x for x in axes.lines if x.get_marker() == "o"]
    assert [to_hex(x.get_markerfacecolor()) for x in dots] == ["#0072b2", "#0072b2", "#ffffff", "#0072b2"]
    assert sum(x.get_marker() in ("<", ">") for x in axes.lines) == 2
    beside = axes.child_axes[0].get_yticklabels()
    assert beside[0].get_text() == "1.00 → 1.15"


def test_wrong_shapes_of_friction_are_named() -> None:
    """The message gives expected and received shapes."""
    with pytest.raises(ValueError, match=r"expected baseline and corrected of shape \(2, 5\)"):
        calibration_figures.friction_curve(np.zeros(5), np.zeros((1, 5)), np.zeros((1, 5)), labels=["a", "b"])
