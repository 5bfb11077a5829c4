"""The command line passes its arguments on, shows results, and turns every failure into one line and an exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from residual_mbrl import artifact, files
from residual_mbrl.artifact import Calibration, estimate_table, save, write_metrics
from residual_mbrl.cli import main
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.effects import Bias
from residual_mbrl.errors import LogError
from residual_mbrl.identifiability import Estimate
from residual_mbrl.metrics import Metric
from residual_mbrl.model import Model
from residual_mbrl.physics.pendulum import Pendulum
from residual_mbrl.residuals import Dissipative, Feature
from residual_mbrl.sensors import Column, Sensor

METRIC = Metric(model="identified", metric="mae_rad", value=0.03125, unit="rad", horizon=10, ci95=(0.03, 0.04))


def calibrated():
    baseline = Pendulum(dt=0.02)
    sensor = Sensor(space=baseline.space, columns=(Column(name="encoder", source="angle", noise=1e-3, effects=(Bias(),)),))
    identified = Model(dynamics=ResidualDynamics(baseline, (), {"inertia": 0.75}), sensor=sensor, sensor_values={"encoder.bias": 0.0625})
    residual = Dissipative(nv=1, features=[Feature(source="velocity")], bound=1.0)
    model = Model(dynamics=identified.dynamics.with_residuals([residual]), sensor=sensor, sensor_values=identified.sensor_values)
    estimate = Estimate(parameter=baseline.parameters["inertia"], value=0.75, std=0.01, at_bound=True)
    return Calibration(model=model, identified=identified, estimates=estimate_table([estimate]), unidentifiable=("only together: a, b",),
                       data={"swing[1]": "ab"}, preset="pendulum", seeds={"search": 4})


@pytest.fixture
def library(monkeypatch):
    """Stand-ins for the long-running functions; ``calls`` keeps what they were given and ``error`` is raised by them."""
    stub = ModuleType("residual_mbrl.calibration")
    stub.calls, stub.error = [], None

    def run(*arguments, progress=None, **options):
        stub.calls.append((arguments, options))
        if progress is not None:
            progress("refining start 1 of [2]", 0.5)
        if stub.error is not None:
            raise stub.error
        return stub.result

    stub.calibrate, stub.result = run, calibrated()
    stub.evaluate_artifact = lambda *a, **o: (run(*a, **o), [METRIC])[1]
    stub.evaluate_logs = stub.evaluate_artifact
    demo = ModuleType("residual_mbrl.demo")
    demo.run_demo = lambda out, seed, progress: run(out, seed, progress=progress)
    presets = ModuleType("residual_mbrl.presets")
    presets.PRESETS = {"servo": "the servo", "drive": "the drive"}
    for module in (stub, demo, presets):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return stub


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """A terminal wide enough that no line is broken."""
    monkeypatch.setenv("COLUMNS", "250")


def test_help_is_quick_and_imports_no_torch():
    """--help lists the subcommands without importing torch."""
    code = "import sys; from residual_mbrl.cli import main; code = main(['--help']); assert 'torch' not in sys.modules; sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("demo", "calibrate", "evaluate", "inspect", "check"):
        assert name in done.stdout


def test_calibrate_passes_everything_on(library, tmp_path, capsys):
    """Each option reaches the library under its name, and the identified values are shown."""
    out = tmp_path / "out"
    options = ["--free", "load_*", "coulomb", "--seed", "3", "--no-residual", "--workers", "1"]
    assert main(["calibrate", "servo", "--data", str(tmp_path), "--out", str(out), *options]) == 0
    expected = {"free": ("load_*", "coulomb"), "residual": False, "seed": 3, "workers": 1, "mapping": ""}
    assert library.calls == [(("the servo", tmp_path, out), expected)]
    shown = capsys.readouterr().out
    assert "0.75" in shown
    assert "0.7304 to 0.7696 at bound" in shown
    assert "encoder.bias" in shown


def test_calibrate_defaults(library, tmp_path):
    """Without options the preset's own parameters are free and a residual is fitted."""
    main(["calibrate", "drive", "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    expected = {"free": None, "residual": True, "seed": 0, "workers": 2, "mapping": ""}
    assert library.calls == [(("the drive", tmp_path, tmp_path / "out"), expected)]


def test_evaluate(library, tmp_path, capsys):
    """The metrics of an artefact are shown with unit, horizon and interval."""
    assert main(["evaluate", str(tmp_path), "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--split", "validation"]) == 0
    assert library.calls == [((tmp_path, tmp_path, tmp_path / "out"), {"split": "validation"})]
    row = next(line for line in capsys.readouterr().out.splitlines() if "mae_rad" in line)
    assert all(x in row for x in ("identified", "10", "0.03125", "0.03 to 0.04", "rad"))


def test_evaluate_logs(library, tmp_path):
    """Logs after the artefact are scored by themselves; logs and a preset's folder together are refused."""
    assert main(["evaluate", str(tmp_path), "a.npz", "b.npz", "--out", str(tmp_path / "out"), "--resample"]) == 0
    assert library.calls == [((tmp_path, (Path("a.npz"), Path("b.npz")), tmp_path / "out"), {"mapping": None, "resample": True})]
    assert main(["evaluate", str(tmp_path), "a.npz", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2


def test_demo(library, tmp_path, capsys):
    """The demo shows the errors on unseen logs and says where its report is."""
    library.result = [METRIC]
    assert main(["demo", "--out", str(tmp_path / "d"), "--seed", "5"]) == 0
    assert library.calls == [((tmp_path / "d", 5), {})]
    shown = capsys.readouterr().out
    assert "mae_rad" in shown
    assert str(tmp_path / "d" / "report.html") in shown


def test_inspect(tmp_path, capsys):
    """An artefact's plant, residuals, parameters, logs, verdict and metrics are shown; brackets are no markup."""
    save(tmp_path / "a", calibrated())
    write_metrics(tmp_path / "a" / artifact.METRICS, dataset="swing", split="test", metrics=[METRIC], seconds=1.0)
    assert main(["inspect", str(tmp_path / "a")]) == 0
    shown = capsys.readouterr().out
    for text in ("Pendulum, 0.02 s per step", "angle [rad], rate [rad/s]", "Dissipative", "swing[1]", "search 4",
                 "only together: a, b", "mae_rad"):
        assert text in shown


def one_line(capsys):
    """The single line on stderr."""
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    return lines[0]


def test_damaged_artefact(tmp_path, capsys):
    """A truncated artefact is one line that names the file, exit code 2."""
    save(tmp_path / "a", calibrated())
    (tmp_path / "a" / artifact.WEIGHTS).write_bytes(b"")
    assert main(["inspect", str(tmp_path / "a")]) == 2
    assert "weights.safetensors: truncated or changed" in one_line(capsys)


def test_missing_artefact(tmp_path, capsys):
    """A folder that is no artefact is one line."""
    assert main(["inspect", str(tmp_path / "no[thing]")]) == 2
    assert "no[thing]" in one_line(capsys)


def test_unknown_preset(library, tmp_path, capsys):
    """The presets that exist are listed."""
    assert main(["calibrate", "toaster", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert one_line(capsys) == "error: unknown plant 'toaster'; expected a model file such as robot.xml, or one of servo, drive"
    assert library.calls == []


@pytest.mark.parametrize("given", [["robot.xml"], ["robot.xml", "a.npz"], ["servo", "a.npz"]])
def test_incomplete_plant(library, tmp_path, capsys, given):
    """A model needs logs and free parameters, a preset a folder; it is said before anything is read."""
    assert main(["calibrate", *given, "--out", str(tmp_path / "out")]) == 2
    said = one_line(capsys)
    assert "--free" in said or "--data" in said
    assert library.calls == []


def test_missing_data(library, tmp_path, capsys):
    """A data folder that is not there is named before anything runs."""
    assert main(["calibrate", "servo", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert "expected a folder of logs" in one_line(capsys)
    assert library.calls == []


@pytest.mark.parametrize("error", [LogError("run_3: column 'q'\nis NaN"), ValueError("dt"),
                                   PermissionError(13, "Permission denied", "logs")])
def test_errors_are_one_line(library, tmp_path, capsys, error):
    """Errors of the package, of arguments and of the system are one line and exit code 2."""
    library.error = error
    assert main(["calibrate", "servo", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert " ".join(str(error).split()) in one_line(capsys)


def test_debug_shows_the_traceback(library, tmp_path):
    """--debug lets the error through."""
    library.error = LogError("run_3")
    with pytest.raises(LogError, match="run_3"):
        main(["calibrate", "servo", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--debug"])


def test_errors_that_are_bugs_are_not_hidden(library, tmp_path):
    """A bug keeps its traceback."""
    library.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        main(["calibrate", "servo", "--data", str(tmp_path), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize("checkpoint", [True, False])
def test_interruption_tells_how_to_go_on(library, tmp_path, capsys, checkpoint):
    """Ctrl-C exits with 130, says whether the same command resumes, and keeps the checkpoints."""
    out = tmp_path / "out"
    if checkpoint:
        files.progress_folder(out).mkdir()
    library.error = KeyboardInterrupt()
    assert main(["calibrate", "servo", "--data", str(tmp_path), "--out", str(out)]) == 130
    said = capsys.readouterr().err
    assert ("goes on from the last checkpoint" in said) == checkpoint
    assert files.progress_folder(out).exists() == checkpoint


def test_no_resume_discards_checkpoints(library, tmp_path):
    """--no-resume starts anew."""
    files.progress_folder(tmp_path / "out").mkdir()
    main(["calibrate", "servo", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--no-resume"])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("arguments", [[], ["fly"], ["calibrate", "servo"],
                                       ["calibrate", "servo", "--data", ".", "--out", "o", "--seed", "x"]])
def test_wrong_usage(arguments, capsys):
    """Missing or wrong arguments exit with 2 and say what was expected."""
    assert main(arguments) == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize("passed", [True, False])
def test_check_exit_code(monkeypatch, capsys, passed):
    """A failed check is shown and makes the exit code non-zero."""
    from residual_mbrl import check
    result = check.CheckResult(name="MuJoCo", passed=passed, detail="agrees [to 1e-15]", seconds=0.1)
    monkeypatch.setattr(check, "run_checks", lambda: iter([result]))
    assert main(["check"]) == (0 if passed else 1)
    shown = capsys.readouterr().out
    assert "agrees [to 1e-15]" in shown
    assert ("failed" in shown) != passed
