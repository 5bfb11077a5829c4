"""Models held out by folds: each fold's windows belong to its own dynamics."""

from __future__ import annotations

import time
from multiprocessing import active_children
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from calibration_problem import fit_for_minutes
from evaluation_problem import IDENTIFIED, SENSOR, TRUE, model, stribeck, windows

from residual_mbrl import selection
from residual_mbrl.evaluation import evaluate
from residual_mbrl.examination import Examination, examine
from residual_mbrl.model import Model
from residual_mbrl.selection import HeldOut
from residual_mbrl.windows import Windows, joined

MEMBERS = (model(TRUE, stribeck(0.5)), model(IDENTIFIED, stribeck(0.02)))
"""Two folds whose residuals differ much."""


def folds() -> list[Windows]:
    """Three logs held out by the first fold, five by the second."""
    data = windows()
    return [data.take(torch.arange(3)), data.take(torch.arange(3, 8))]


def held_out(members: tuple[Model, ...] = MEMBERS) -> HeldOut:
    """Join the folds."""
    return HeldOut(dynamics=members[-1].dynamics, sensor=SENSOR, members=tuple(zip(folds(), members, strict=True)))


def examination(m: Model, data: Windows) -> Examination:
    """Examine one model."""
    return evaluate({"m": m}, data, resamples=10).scores["m"].examination


def test_each_fold_predicts_what_it_held_out() -> None:
    """Rows in the order of the folds, each by its own model."""
    found = held_out().predict(joined(folds())).measurements
    assert torch.equal(found[:3], MEMBERS[0].predict(folds()[0]).measurements)
    assert torch.equal(found[3:], MEMBERS[1].predict(folds()[1]).measurements)


def test_shorter_windows_may_be_asked_for() -> None:
    """The horizon is that of the windows, not of the folds."""
    found = held_out().predict(joined(folds()).first(20)).measurements
    assert torch.allclose(found, held_out().predict(joined(folds())).measurements[:, :21])


def test_other_windows_are_refused() -> None:
    """A model that held out eight windows has nothing to say about three."""
    with pytest.raises(ValueError, match="held out 8 windows, received 3"):
        held_out().predict(folds()[0])


def test_forces_and_energies_are_each_folds_own() -> None:
    """In the order of the windows, as if each fold had been examined alone."""
    found = examination(held_out(), joined(folds()))
    alone = [examination(m, f) for m, f in zip(MEMBERS, folds(), strict=True)]
    np.testing.assert_array_equal(found.residual_force, np.concatenate([x.residual_force for x in alone]))
    for name in ("stored", "dissipated", "residual_work"):
        np.testing.assert_array_equal(getattr(found.energy, name), np.concatenate([getattr(x.energy, name) for x in alone]))


def test_share_of_force_is_over_all_folds() -> None:
    """It is the rms over all steps of all folds; the last fold's residual is far from it."""
    found = examination(held_out(), joined(folds()))
    part = total = 0.0
    for m, f in zip(MEMBERS, folds(), strict=True):
        states, force = m.predict(f).states, examination(m, f).residual_force[..., 0]
        inside = np.isfinite(force)
        part += float((force[inside] ** 2).sum() / m.dynamics.values["inertia"])
        moved = np.diff(states[..., 1].numpy(), axis=1)[inside] / m.dynamics.dt
        total += float((moved**2).sum() * m.dynamics.values["inertia"])
    assert found.force_share == pytest.approx(np.sqrt(part / total))
    assert found.force_share > 2 * examination(MEMBERS[1], folds()[1]).force_share
    assert found.pieces[0].share == pytest.approx(found.force_share)


def test_certificates_are_the_worst_of_any_fold() -> None:
    """A promise that one fold breaks is broken, whichever fold it is."""
    class Driving(type(stribeck(0.5))):
        def certificate(self, context, baseline):
            from dataclasses import replace

            return replace(super().certificate(context, baseline), worst=2.0)

    bad = model(TRUE, stribeck(0.5))
    bad.dynamics.residuals[0].__class__ = Driving
    good = model(IDENTIFIED, stribeck(0.1))
    for members in ((bad, good), (good, bad)):
        certificate, = examination(held_out(members), joined(folds())).certificates
        assert not certificate.holds and certificate.worst == 2.0
        assert certificate.samples == int(joined(folds()).recorded.any(-1)[:, 1:].sum())


def test_pieces_are_quantiles_over_all_folds() -> None:
    """What a residual adds spans what it adds in each fold."""
    piece, = examination(held_out(), joined(folds())).pieces
    alone = [examination(m, f).pieces[0] for m, f in zip(MEMBERS, folds(), strict=True)]
    assert alone[1].high < 0.2 * alone[0].high
    assert piece.low == pytest.approx(alone[1].low, rel=0.2)
    assert piece.high > 0.8 * alone[0].high


def test_a_fold_that_diverged_leaves_the_others() -> None:
    """Steps that are not finite count in no fold, and no fold's numbers become unknown by another's."""
    data, model_ = joined(folds()), held_out()
    prediction = model_.predict(data)
    states = prediction.states.clone()
    states[:3] = torch.nan
    length = data.recorded.any(-1).sum(1) - 1
    found = examine(model_.parts(data), prediction._replace(states=states), length)
    alone = examination(MEMBERS[1], folds()[1])
    assert found.force_share == pytest.approx(alone.force_share)
    assert found.certificates == alone.certificates and found.pieces[0].high == pytest.approx(alone.pieces[0].high)
    assert np.isnan(found.residual_force[:3]).all() and np.isnan(found.energy.stored[:3]).all()


def test_interrupted_workers_are_ended(tmp_path):
    """Ctrl-C while folds are fitted side by side ends at once and leaves no process behind."""
    folds = [SimpleNamespace(name=n) for n in "abc"]
    before, begun = set(active_children()), time.monotonic()

    def interrupted(_phrase, _done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        selection._each_fold(fit_for_minutes, None, folds, tmp_path, interrupted, 2)
    assert time.monotonic() - begun < 60
    assert set(active_children()) <= before
