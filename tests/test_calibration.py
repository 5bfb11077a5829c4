"""From a folder of logs to an artefact and its report, resumable at any moment, on a servo of a few seconds."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from calibration_problem import TINY, contents, quick, values, write_logs

from residual_mbrl import artifact, files
from residual_mbrl.calibration import calibrate, evaluate_artifact, make_folds, make_recipe
from residual_mbrl.errors import ArtifactError, LogError, ModelError, OutputError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Short simulated servo logs."""
    return write_logs(tmp_path_factory.mktemp("servo") / "logs")


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """One whole calibration, with every progress report."""
    out, told = tmp_path_factory.mktemp("made") / "servo", []
    with quick():
        calibration = calibrate(TINY, data, out, progress=lambda phrase, done: told.append((phrase, done)))
    return out, calibration, told


def test_the_artefact_loads(made):
    """What was saved is what was returned."""
    out, calibration, _ = made
    loaded = artifact.load(out)
    assert loaded.model.dynamics.values == calibration.model.dynamics.values
    assert loaded.identified.dynamics.values == calibration.identified.dynamics.values
    assert [type(r).__name__ for r in loaded.model.dynamics.residuals] == ["DryFriction"]
    assert loaded.preset == "servo"
    assert loaded.seeds == {"calibrate": 0}
    assert loaded.notes.startswith("Residual 'dry friction', chosen on held-out logs")
    assert {str(e["name"]) for e in loaded.estimates} == {p.name for p in TINY.baseline().parameters if p.free}


def test_training_and_validation_logs_are_named_and_test_logs_are_not(made, data):
    """The artefact holds the hash of each log it was made from; test logs were not read."""
    split = json.loads((data / "split.json").read_text())
    assert set(made[1].data) == {f"{n}.npz" for p in ("train", "val") for n in split[p]}
    assert made[1].data == {n: files.sha256(data / n) for n in made[1].data}


def test_the_folder_holds_what_it_should(made):
    """Calibration, weights, metrics, report and figures, and nothing else beside them or left over."""
    out = made[0]
    assert {p.name for p in out.iterdir()} == set(artifact.ENTRIES)
    assert [p.name for p in out.parent.iterdir()] == ["servo"]
    assert all(p.suffix == ".png" for p in (out / "figures").iterdir())
    assert any((out / "figures").iterdir())


def test_metrics_have_the_documented_form(made):
    """metrics.json: data set, split, rows of model, metric, horizon, value, unit, interval; certificates; seconds; environment."""
    document = json.loads((made[0] / "metrics.json").read_text())
    assert set(document) == {"dataset", "split", "metrics", "certificates", "seconds", "environment"}
    assert (document["dataset"], document["split"]) == ("servo", "held-out")
    assert {m["model"] for m in document["metrics"]} == {"nominal", "identified", "residual", "identified+residual", "network"}
    for row in document["metrics"]:
        assert set(row) == {"model", "metric", "horizon", "value", "unit", "ci95"}
        assert isinstance(row["value"], float)
        assert row["ci95"] is None or len(row["ci95"]) == 2
    assert all(c["holds"] for c in document["certificates"].values())
    assert document["certificates"]
    assert document["seconds"] > 0


def test_the_report_is_one_self_contained_page(made):
    """The page loads nothing from elsewhere, holds its figures, and says whether the residual is worth it."""
    page = (made[0] / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:|#)""", page)
    assert "self-check on simulated logs" in page
    assert "load_mass" in page


def test_progress_only_grows(made):
    """Fractions rise from nothing to all, each with a phrase."""
    told = made[2]
    fractions = [f for _, f in told]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0.0
    assert fractions[-1] == pytest.approx(1.0)
    assert all(phrase for phrase, _ in told)


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_an_interrupted_calibration_goes_on_to_the_same_values(made, data, tmp_path, share):
    """Stopped by Ctrl-C early or late, the repeated call ends with the same numbers to the last bit."""
    whole, _, told = made
    out, seen = tmp_path / "servo", []

    def interrupt(phrase, done):
        seen.append(phrase)
        if len(seen) > share * len(told):
            raise KeyboardInterrupt

    with quick():
        with pytest.raises(KeyboardInterrupt):
            calibrate(TINY, data, out, progress=interrupt)
        assert [p.name for p in tmp_path.iterdir()] == [files.progress_folder(out).name]
        calibrate(TINY, data, out)
    assert values(out) == values(whole)
    assert (out / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["servo"]


def test_an_older_artefact_survives_an_interrupted_run(made, data, tmp_path):
    """Until the new artefact is whole, the old one stays as it was to the last byte."""
    out = tmp_path / "servo"
    artifact.save(out, artifact.load(made[0]))
    before, seen = contents(out), []

    def interrupt(phrase, done):
        seen.append(done)
        if done >= 0.7:
            raise KeyboardInterrupt

    with quick(), pytest.raises(KeyboardInterrupt):
        calibrate(TINY, data, out, residual=False, seed=1, progress=interrupt)
    assert contents(out) == before


def test_without_a_residual(data, tmp_path):
    """Asked for no residual, identification alone makes the artefact, and the report compares it with the nominal model."""
    with quick():
        calibration = calibrate(TINY, data, tmp_path / "servo", residual=False)
    assert len(calibration.model.dynamics.residuals) == 0
    assert calibration.notes == "identified parameters only"
    assert artifact.load(tmp_path / "servo").model.dynamics.values == calibration.identified.dynamics.values
    assert "identified+residual" not in (tmp_path / "servo" / "report.html").read_text()


def test_chosen_parameters_are_freed(data, tmp_path):
    """``free`` replaces what the preset frees, by glob pattern."""
    with quick():
        calibration = calibrate(TINY, data, tmp_path / "servo", residual=False, free=["visc*", "coulomb"])
    assert [e["name"] for e in calibration.estimates] == ["viscous", "coulomb"]
    assert calibration.model.dynamics.values["load_mass"] == 0.49


def test_a_pattern_that_matches_nothing_leaves_nothing(data, tmp_path):
    """A mistyped parameter is refused by name, and no output appears."""
    with quick(), pytest.raises(ModelError, match="'visous' matches no parameter"):
        calibrate(TINY, data, tmp_path / "servo", residual=False, free=["visous"])
    assert not (tmp_path / "servo").exists()


def test_an_interrupted_run_with_other_options_is_refused(data, tmp_path):
    """Checkpoints of another seed are not mixed in; the message names the file to delete."""
    def interrupt(phrase, done):
        if "start 2" in phrase:
            raise KeyboardInterrupt

    with quick():
        with pytest.raises(KeyboardInterrupt):
            calibrate(TINY, data, tmp_path / "servo", residual=False, progress=interrupt)
        with pytest.raises(ModelError, match=r"identify\.npz: checkpoint of another model, data or options; delete it"):
            calibrate(TINY, data, tmp_path / "servo", residual=False, seed=3)


def test_somebodys_files_are_never_replaced(data, tmp_path):
    """An output folder that holds anything else is refused before any work is done."""
    (tmp_path / "notes.txt").write_text("precious")
    with quick(), pytest.raises(OutputError, match=r"holds 'notes\.txt'"):
        calibrate(TINY, data, tmp_path, progress=lambda phrase, done: pytest.fail("work was done"))
    assert contents(tmp_path) == {"notes.txt": b"precious"}


def test_evaluation_scores_each_part(made, data, tmp_path):
    """An artefact is scored by the data set's own metric, for each model; the report and metrics are written."""
    metrics = evaluate_artifact(made[0], data, tmp_path / "scored", split="val")
    means = {m.model: m.value for m in metrics if m.metric == "mae_rad"}
    assert set(means) == {"nominal", "identified", "identified+residual"}
    assert means["identified"] < means["nominal"]
    document = json.loads((tmp_path / "scored" / "metrics.json").read_text())
    assert document["split"] == "val"
    written = {(m["model"], m["metric"]): m["value"] for m in document["metrics"]}
    assert all(written[m.model, m.metric] == m.value for m in metrics)
    assert {p.name for p in (tmp_path / "scored").iterdir()} == set(artifact.REPORT)
    again = evaluate_artifact(made[0], data, tmp_path / "scored", split="val")
    assert again == metrics


def test_an_unknown_split_is_refused(made, data, tmp_path):
    """The message lists the parts."""
    with pytest.raises(LogError, match="split must be train, val or test, received 'tset'"):
        evaluate_artifact(made[0], data, tmp_path / "scored", split="tset")
    assert not (tmp_path / "scored").exists()


def test_an_artefact_of_no_preset_is_refused(made, data, tmp_path):
    """Without a preset there is no telling how to read its logs."""
    artifact.save(tmp_path / "own", replace(artifact.load(made[0]), preset="homemade"))
    with pytest.raises(ArtifactError, match="its preset is 'homemade'; expected one of"):
        evaluate_artifact(tmp_path / "own", data, tmp_path / "scored")


def test_folds_hold_out_what_the_preset_says(data):
    """The validation part, or one gain at a time; training and held-out windows share no log."""
    logs = TINY.read(data, ("train", "val"))
    dt = TINY.baseline().dt
    train, everything, folds = make_folds(TINY, logs, dt)
    assert (len(train), len(everything), [f.name for f in folds]) == (5, 7, ["validation"])
    _, _, groups = make_folds(replace(TINY, leave_group_out=True), logs, dt)
    assert {f.name for f in groups} == {"kp200", "kp400", "kp800"}
    for fold in (*folds, *groups):
        names = [{w.names[i] for i in w.log.tolist()} for w in (fold.train, fold.held)]
        assert not names[0] & names[1]


def test_one_log_holds_nothing_out(data):
    """A single window cannot both teach and judge."""
    logs = TINY.read(data, ("train",))
    alone = replace(logs, logs={"train": logs.logs["train"][:1]})
    with pytest.raises(LogError, match=r"1 window\(s\) of data: at least two logs"):
        make_folds(TINY, alone, TINY.baseline().dt)


def test_disturbances_belong_to_the_corrected_model_alone():
    """A drift is free only where the residual is fitted; identification holds it."""
    from residual_mbrl.presets import PRESETS

    recipe = make_recipe(PRESETS["drive"])
    assert recipe.disturbance
    assert not recipe.sensor.parameters["force.drift"].free
    assert recipe.disturbed.parameters["force.drift"].free
    assert not make_recipe(TINY).disturbance
