"""The protocol: cells that crash alone and go on, and what its tables say; realism and recovery against closed forms."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from calibration_problem import TINY, quick, write_logs
from protocol_cells import CELLS, count
from uncertainty_problem import model

from residual_mbrl.cli import main
from residual_mbrl.fitting import FitOptions
from residual_mbrl.protocol import run as protocol_run
from residual_mbrl.protocol.cells import BOTH, IDENTIFIED, NO_BASELINE, NONE, ONE_STEP, RESIDUAL, Cell, ProtocolOptions, plan
from residual_mbrl.protocol.realism import distribution_distance, realism, spectral_distance
from residual_mbrl.protocol.recovery import disturbance_recovery
from residual_mbrl.protocol.run import run_protocol
from residual_mbrl.protocol.workers import run_cells

SMALL = ProtocolOptions(fractions=(0.5,), seeds=(0, 1), options=(("ridge", 0.1),), folds=1, horizons=(1, 10), workers=0, retries=0)


@pytest.fixture
def calls(tmp_path, monkeypatch):
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return lambda: (tmp_path / "calls").read_text().split()


def test_crashed_cell_is_tried_again_and_reported(tmp_path, calls):
    """A process that dies takes nothing with it; its exit code is what is known of it."""
    code = ("from pathlib import Path; from protocol_cells import CELLS, count; from residual_mbrl.protocol.workers import run_cells; "
            f"run_cells(count, CELLS, Path({str(tmp_path)!r}) / 'cells', fingerprint='a', workers=3, retries=1)")
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)})
    found = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "cells").glob("*.json")}
    by = {r["cell"]["variant"]: r for r in found.values()}
    assert by["good"]["status"] == "done"
    assert by["good"]["result"] == {"value": 1}
    assert (by["raises"]["attempts"], by["raises"]["error"]) == (2, "RuntimeError: no such luck")
    assert "exit code 3" in by["dies"]["error"]
    assert sorted(calls()) == ["dies", "dies", "good", "raises", "raises"]


def test_repeated_run_goes_on(tmp_path, calls, monkeypatch):
    """What is done is not done again, what failed is; results of other data or options are not used."""
    cells = [CELLS[0], Cell(variant="mended", fold="f")]
    run_cells(count, cells, tmp_path / "cells", fingerprint="a", workers=0, retries=0)
    monkeypatch.setenv("MENDED", "1")
    again = run_cells(count, cells, tmp_path / "cells", fingerprint="a", workers=0, retries=0)
    assert {r["status"] for r in again.values()} == {"done"}
    assert calls() == ["good", "mended", "mended"]
    run_cells(count, cells[:1], tmp_path / "cells", fingerprint="b", workers=0)
    assert calls()[-1] == "good"
    assert len(calls()) == 4


def test_damaged_result_is_made_again(tmp_path, calls):
    """A file that was cut short counts as none."""
    run_cells(count, CELLS[:1], tmp_path, fingerprint="a", workers=0)
    (tmp_path / f"{CELLS[0].name}.json").write_text('{"status": "do')
    assert run_cells(count, CELLS[:1], tmp_path, fingerprint="a", workers=0)[CELLS[0].name]["status"] == "done"


def test_plan_has_every_ablation_and_shares_trainings():
    """The main model with all data and the first seed is one training in four tables."""
    cells = plan(replace(SMALL, candidate="b"), ["a", "b"], ["x"])
    variants = {c.variant for c in cells if c.purpose == "ablations"}
    assert variants == {NONE, IDENTIFIED, RESIDUAL + "a", RESIDUAL + "b", BOTH + "a", BOTH + "b", "identified + free force", NO_BASELINE,
                        ONE_STEP + "b"}
    main_cells = [c for c in cells if c.variant == BOTH + "b" and c.fraction == 1 and c.seed == 0 and not c.changes]
    assert len(main_cells) == 3
    assert len({c.name for c in main_cells}) == 1
    assert len({c.name for c in cells}) == len({(c.variant, c.fraction, c.seed, str(c.changes)) for c in cells})


def test_protocol_of_a_small_preset(tmp_path):
    """Every table is there, numbers are finite, the page holds the options, and a second call trains nothing."""
    data = write_logs(tmp_path / "logs")
    preset = replace(TINY, fit=FitOptions(rounds=1, iterations=1, every=8))
    options = replace(SMALL, disturbance=("load_mass", 1.2))
    with quick():
        document = run_protocol(preset, data, tmp_path / "out", options)
    assert not document["failed"], document["failed"]
    rows = document["tables"]["ablations"]
    assert [r["model"] for r in rows] == [NONE, IDENTIFIED, RESIDUAL + "dry friction", BOTH + "dry friction", "identified + free force",
                                          NO_BASELINE, ONE_STEP + "dry friction"]
    assert all(np.isfinite(r["mae"]) and r["error"]["1"] >= 0 and r["realism"]["values"] >= 0 for r in rows)
    assert all(r["spread"] is not None for r in document["tables"]["seeds"])
    assert {r["regime"] for r in document["regimes"]}
    assert document["recovery"]["parameter"] == "load_mass"
    page = (tmp_path / "out" / "protocol.html").read_text()
    assert all(t in page for t in ("Ablations", "Amount of data", "Seeds", "Options of fitting", "By regime", "Realism", "Recovery"))
    assert json.loads((tmp_path / "out" / "protocol.json").read_text())["options"]["fit"]["ridge"] == preset.fit.ridge
    with quick():
        again = run_protocol(preset, data, tmp_path / "out", options, run=lambda cell: pytest.fail(f"{cell.label} was run again"))
    assert again["tables"] == document["tables"]


def test_failed_cells_are_on_the_page(tmp_path):
    """With their error, and the rest of the table stands."""
    data = write_logs(tmp_path / "logs")

    def run(cell):
        if cell.variant == NONE:
            raise RuntimeError("<out of luck>")
        column = {"q": 1.0}
        return {"units": {"q": "rad"}, "mae": column, "rmse": column, "error": {"q": {"1": 1.0}}, "regimes": {"g": column}, "realism": {},
                "diverged": 0, "force_share": 0.0, "certificates": {}}

    document = run_protocol(TINY, data, tmp_path / "out", SMALL, run=run)
    assert [f["error"] for f in document["failed"]] == ["RuntimeError: <out of luck>"]
    assert "&lt;out of luck&gt;" in (tmp_path / "out" / "protocol.html").read_text()


def test_command_passes_its_options_on(tmp_path, monkeypatch, capsys):
    """And says by its exit code that a cell failed."""
    seen = {}

    def stub(preset, data, out, options, **rest):
        seen.update(preset=preset.name, options=options)
        return {"tables": {"ablations": []}, "done": 1, "cells": 2, "failed": [{}]}

    monkeypatch.setattr(protocol_run, "run_protocol", stub)
    assert main(["protocol", "servo", "--data", str(tmp_path), "--out", str(tmp_path / "o"), "--options", "ridge=0.5", "--seeds", "3", "4",
                 "--disturb", "load_mass=1.3", "--quick"]) == 1
    assert seen["preset"] == "servo"
    assert (seen["options"].seeds, seen["options"].options, seen["options"].disturbance) == ((3, 4), (("ridge", 0.5),), ("load_mass", 1.3))
    assert main(["protocol", "servo", "--data", str(tmp_path), "--out", str(tmp_path / "o"), "--options", "ridge"]) == 2
    assert "NAME=NUMBER" in capsys.readouterr().err
    assert main(["protocol", "servo", "--data", str(tmp_path), "--out", str(tmp_path / "o"), "--options", "colour=1"]) == 2
    assert "no options of fitting ['colour']" in " ".join(capsys.readouterr().err.split())
    assert main(["protocol", "toaster", "--data", str(tmp_path), "--out", str(tmp_path / "o")]) == 2


def test_realism_of_a_copy_is_zero_and_of_twice_the_size_is_six_decibels():
    """Log spectra differ by 20 log10(2); values and increments by the mean distance of their quantiles."""
    x = np.random.default_rng(0).normal(size=(200, 64)).cumsum(1)
    assert max(realism(x, x[::-1].copy()).values()) < 1e-9
    assert spectral_distance(x, 2 * x) == pytest.approx(20 * np.log10(2))
    y = np.random.default_rng(1).normal(size=4000)
    assert distribution_distance(y, y + 3) == pytest.approx(3 / y.std())
    broken = x.copy()
    broken[:] = np.nan
    assert set(realism(x, broken).values()) == {np.inf}


def test_recovery_finds_a_planted_payload():
    """The fixed model errs beyond its noise after the change, the adapted one does not in the end."""
    dynamics = model().dynamics
    u = 2 * torch.randn(400, dynamics.space.nu, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = disturbance_recovery(dynamics, torch.tensor([0.5, 0.0], dtype=torch.float64), u, parameter="inertia", factor=1.4)
    assert found.fixed > 3 * found.before
    assert found.after < 1.5 * found.before
    assert found.seconds < 2.0


@pytest.mark.parametrize(("call", "message"), [
    (lambda: ProtocolOptions(options=(("colour", 1.0),)), "no options of fitting"),
    (lambda: ProtocolOptions(fractions=(1.5,)), "fractions in"),
    (lambda: plan(replace(SMALL, candidate="c"), ["a"], ["x"]), "candidate must be one of"),
    (lambda: realism(np.zeros((2, 3)), np.zeros((2, 3))), "T >= 4"),
    (lambda: disturbance_recovery(model().dynamics, torch.zeros(2).double(), torch.zeros(4, 1).double(), parameter="inertia", factor=1e6),
     "within"),
])
def test_bad_input_is_named(call, message):
    """Before anything is computed."""
    with pytest.raises(ValueError, match=message):
        call()
