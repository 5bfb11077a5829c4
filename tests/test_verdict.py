"""What the verdict says, case by case."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from evaluation_problem import IDENTIFIED, SENSOR, TRUE, Offset, evaluation, model, stribeck, windows

from residual_mbrl.evaluation import Evaluation, evaluate
from residual_mbrl.verdict import is_residual_worth_it, number, percent


def with_examination(found: Evaluation, **changes: object) -> Evaluation:
    """The same evaluation with another examination of the corrected model."""
    score = found.scores["identified+residual"]
    return replace(found, scores={**found.scores, "identified+residual": replace(score, examination=replace(score.examination, **changes))})


def test_a_residual_that_helps_is_worth_it() -> None:
    """The paragraph gives every number: three errors, the paired interval, the share, what the piece does, certificates."""
    found = evaluation()
    verdict = is_residual_worth_it(found)
    assert verdict.worth and verdict.text.startswith("The residual is worth it.")
    for m in found.models:
        assert f"{m} {number(float(found.scores[m].mae.value[0]))} rad" in verdict.text
    pair = found.pair("identified", "identified+residual").difference
    assert f"95 % interval {number(float(pair.lower[0]))} to {number(float(pair.upper[0]))}" in verdict.text
    assert f"force is {percent(found.scores['identified+residual'].examination.force_share)}" in verdict.text
    for words in ("8 test logs", "better on 8 of 8 logs", "DryFriction changes the dry-friction limit by", "All certificates hold",
                  "3 % lower"):
        assert words in verdict.text


def test_an_exact_baseline_needs_no_residual() -> None:
    """Where the baseline is the truth, small random weights change nothing that matters, with below 1 % of the force."""
    truth = model(TRUE)
    models = {"nominal": truth, "identified": truth, "identified+residual": model(TRUE, stribeck(1e-3, seed=0))}
    found = evaluate(models, windows(truth=truth), resamples=500)
    verdict = is_residual_worth_it(found)
    assert not verdict.worth and verdict.text.startswith("No residual is needed:")
    assert found.scores["identified+residual"].examination.force_share < 0.01


def test_a_residual_that_does_nothing_cannot_be_told_from_chance() -> None:
    """Identical predictions have a difference of zero."""
    text = is_residual_worth_it(evaluation(corrected=model(IDENTIFIED, stribeck(0.0)))).text
    assert "cannot be told from chance" in text and "includes zero" in text


def test_harm_is_said() -> None:
    """A residual with more error is named as harmful."""
    verdict = is_residual_worth_it(evaluation(corrected=model(IDENTIFIED, stribeck(2.0))))
    assert not verdict.worth and "it does harm on these data" in verdict.text and "% more" in verdict.text


def test_small_gains_and_small_forces_do_not_pay() -> None:
    """Both thresholds are options and stand in the text."""
    found = evaluation()
    small_gain = is_residual_worth_it(found, smallest_gain=0.999)
    assert not small_gain.worth and "less than the 100 % that would pay for it" in small_gain.text
    small_force = is_residual_worth_it(with_examination(found, force_share=0.004))
    assert not small_force.worth and "its share of the force, 0.4 %, is below 1 %" in small_force.text


def test_a_broken_certificate_forbids_use() -> None:
    """However accurate, a residual that breaks its promise is not to be used."""
    found = evaluation()
    broken = replace(found.scores["identified+residual"].examination.certificates[0], worst=0.5)
    verdict = is_residual_worth_it(with_examination(found, certificates=(broken,)))
    assert not verdict.worth and verdict.text.startswith("Do not use this residual: DryFriction broke what it promises")
    assert "Certificates do not hold" in verdict.text and "power 0.500 W, allowed 0" in verdict.text


def test_divergence_forbids_use() -> None:
    """Diverged windows are counted in the text."""
    bad = Offset(dynamics=model(IDENTIFIED, stribeck(0.1)).dynamics, sensor=SENSOR, diverges=(1, 2))
    verdict = is_residual_worth_it(evaluation(corrected=bad))
    assert not verdict.worth and "its predictions diverge" in verdict.text and "diverged on 2 of 8 windows" in verdict.text


def test_a_diverging_reference_is_beaten() -> None:
    """A residual that keeps a diverging model finite is worth it, without a finite difference."""
    bad = Offset(dynamics=model().dynamics, sensor=SENSOR, diverges=tuple(range(8)))
    found = evaluate({"identified": bad, "identified+residual": model(TRUE, stribeck(0.5))}, windows(), resamples=200)
    verdict = is_residual_worth_it(found)
    assert verdict.worth and "no finite value" in verdict.text and "identified infinite rad" in verdict.text


def test_a_model_without_residual_is_said_to_have_none() -> None:
    """Identified against nominal: the numbers of the comparison, and nothing about a force or certificates."""
    verdict = is_residual_worth_it(evaluation(), reference="nominal", corrected="identified")
    assert not verdict.worth and verdict.text.startswith("No residual is needed: the identified model has none.")
    assert "the identified model changes the error of the nominal model by" in verdict.text and "ertificate" not in verdict.text


def test_a_single_window_has_no_interval() -> None:
    """The text says that the judgement rests on one prediction."""
    assert "rests on one prediction" in is_residual_worth_it(evaluation(count=1)).text


def test_without_the_models_there_is_no_verdict() -> None:
    """The message lists the models there are."""
    found = evaluate({"nominal": model()}, windows(), resamples=10)
    with pytest.raises(ValueError, match=r"corrected must be one of \['nominal'\]"):
        is_residual_worth_it(found)


@pytest.mark.parametrize(("x", "text"), [(0.0, "0"), (0.0123456, "0.0123"), (-1.5, "−1.50"), (1234.5, "1234"), (3e-7, "3e−07"),
                                         (np.inf, "infinite"), (np.nan, "unknown"), (9.999, "10.00")])
def test_numbers_have_three_digits(x: float, text: str) -> None:
    """Three significant digits, a true minus sign, words for what is no number."""
    assert number(x) == text


@pytest.mark.parametrize(("x", "text"), [(0.0, "0 %"), (0.0041, "0.41 %"), (0.04, "4 %"), (0.5, "50 %"), (-0.02, "−2 %"),
                                         (np.nan, "an unknown share")])
def test_fractions_are_written_in_per_cent(x: float, text: str) -> None:
    """Two digits below ten per cent, none behind the point above."""
    assert percent(x) == text
