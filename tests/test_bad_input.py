"""Wrong logs, wrong models, a full disk and Ctrl-C each end in one clear message, and nothing is left half-written."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from calibration_problem import TINY, change_log, column, contents, quick, write_logs

from residual_mbrl import artifact, files, simulated_servo
from residual_mbrl.baselines import Baseline
from residual_mbrl.calibration import calibrate
from residual_mbrl.datasets import bam
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import LogError, ModelError, OutputError, ResidualMBRLError
from residual_mbrl.identification import IdentifyOptions
from residual_mbrl.log_checks import check_units
from residual_mbrl.model import Model
from residual_mbrl.physics.pendulum import SPACE, Pendulum
from residual_mbrl.presets import PRESETS
from residual_mbrl.residuals import DryFriction, Feature, Unstructured
from residual_mbrl.trajectories import on_grid

LOG = "chirp_g400"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Short simulated servo logs, to copy and damage."""
    return write_logs(tmp_path_factory.mktemp("servo") / "logs")


@pytest.fixture
def data(pristine, tmp_path):
    """A copy of the logs."""
    folder = tmp_path / "logs"
    folder.mkdir()
    for path in pristine.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def spoiled(name, change):
    def spoil(folder):
        values = column(folder, LOG, name).astype(float)
        change_log(folder, LOG, **{name: change(values)})

    return spoil


def at(row, value):
    def change(values):
        values[row] = value
        return values

    return change


def cut(n):
    return lambda folder: change_log(folder, LOG, **{k: column(folder, LOG, k)[:n] for k in ("t", "q", "dq", "q_goal", "torque_on")})


BAD_LOGS = {
    "NaN in an angle": (spoiled("q", at(7, np.nan)), rf"{LOG}: measurement column 'q' is nan at row 7 \(1 such"),
    "NaN in a rate": (spoiled("dq", at(3, np.nan)), rf"{LOG}: measurement column 'dq' is nan at row 3"),
    "infinite command": (spoiled("q_goal", at(4, np.inf)), rf"{LOG}: command column 'goal' is inf at row 4"),
    "NaN in time": (spoiled("t", at(9, np.nan)), rf"{LOG}: command time is not finite at row 9"),
    "time backwards": (spoiled("t", at(9, 0.01)), rf"{LOG}: command time goes from 0\.04 to 0\.01 s at row 9; it must increase"),
    "time repeated": (spoiled("t", at(9, 0.04)), rf"{LOG}: command time goes from 0\.04 to 0\.04 s at row 9"),
    "degrees": (spoiled("q", np.degrees),
                rf"{LOG}: column 'q' is .* beyond the largest plausible .*degrees instead of radians"),
    "half the rate": (spoiled("t", lambda t: 1.5 * t), rf"{LOG}: sample 1 at 0\.0075 s lies off the model's 0\.005 s grid .*200 Hz"),
    "no rate": (lambda folder: change_log(folder, LOG, dq=None), r"no array \['dq'\]; there are"),
    "no gain": (lambda folder: change_log(folder, LOG, kp=None), r"no array \['kp'\]; there are"),
    "one sample": (cut(1), rf"{LOG}: 1 command sample\(s\); at least two are needed"),
    "no samples": (cut(0), rf"{LOG}: 0 command sample\(s\); at least two are needed"),
    "columns of different length": (spoiled("dq", lambda v: v[:-1]), "arrays differ in length.*dq"),
    "two columns in one": (spoiled("q", lambda q: np.stack([q, q], 1)), rf"{LOG}.*expected one number a row, received .*'q'"),
}


@pytest.mark.parametrize("fault", BAD_LOGS)
def test_a_bad_log_is_named_with_its_fault(data, tmp_path, fault):
    """The message names log, column, row and value; no output and no temporary file appears."""
    spoil, message = BAD_LOGS[fault]
    spoil(data)
    with quick(), pytest.raises(LogError, match=message):
        calibrate(TINY, data, tmp_path / "out", residual=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["logs"]


@pytest.mark.parametrize("fault", ["swapped", "wrong sign"])
def test_a_rate_that_is_no_rate_is_refused(tmp_path, fault):
    """Angle and rate swapped, or a rate of the wrong sign, show in how displacement and integrated rate agree."""
    with patch.object(simulated_servo, "SECONDS", 2.0):
        simulated_servo.simulate_logs(tmp_path)
    for name in ("sine_g200", "steps_g800"):
        q, dq = column(tmp_path, name, "q"), column(tmp_path, name, "dq")
        check_units(bam.read_log(tmp_path / f"{name}.npz"), TINY.sensor(TINY.baseline()))
        change_log(tmp_path, name, **({"q": dq, "dq": q} if fault == "swapped" else {"dq": -dq}))
        with pytest.raises(LogError, match=rf"{name}: column 'dq' does not move as the derivative of 'q' .*swapped or wrong columns"):
            check_units(bam.read_log(tmp_path / f"{name}.npz"), TINY.sensor(TINY.baseline()))


def test_a_gap_is_no_sample(data, tmp_path):
    """Rows that are missing on the grid are left out of the error, not interpolated, and the log is used."""
    keep = np.r_[0:20, 40 : len(column(data, LOG, "t"))]
    change_log(data, LOG, **{k: column(data, LOG, k)[keep] for k in ("t", "q", "dq", "q_goal", "torque_on")})
    log = next(t for t in TINY.read(data, ("train",)).logs["train"] if t.name == LOG)
    assert log.gaps() == [(19, pytest.approx(0.105))]
    grid = on_grid(log, 0.005)
    assert np.isnan(grid.measurements[20:40]).all()
    assert np.isfinite(grid.measurements[40:]).all()
    with quick():
        calibrate(TINY, data, tmp_path / "out", residual=False)
    assert artifact.load(tmp_path / "out").data


def test_a_model_without_free_parameters_is_refused(data, tmp_path):
    """The message says how to free some."""
    from dataclasses import replace

    from residual_mbrl.physics.servo import PARAMETERS, Servo

    fixed = replace(TINY, baseline=lambda: Servo(PARAMETERS.replaced(**{p.name: {"free": False} for p in PARAMETERS})))
    with quick(), pytest.raises(ModelError, match=r"nothing to identify: .*free="):
        calibrate(fixed, data, tmp_path / "out", residual=False)
    assert not (tmp_path / "out").exists()


class Opaque(Baseline):
    """A step function that knows of no forces."""

    space, parameters, dt = SPACE, Pendulum().parameters, 0.01

    def step(self, state, action, force=None, parameters=None):
        return state


@pytest.mark.parametrize(("residual", "port"), [
    (Unstructured(nv=1, features=[Feature(source="rate")], bound=1.0), "force"),
    (DryFriction(nv=1, features=[Feature(source="rate")], bound=1.0), "parameters")], ids=["force", "parameters"])
def test_a_residual_on_a_port_that_the_baseline_lacks_is_refused(residual, port):
    """Residual, port and baseline are named when they are joined, and the ports that there are."""
    with pytest.raises(ModelError, match=rf"(?s){type(residual).__name__}.*{port}.*Opaque"):
        ResidualDynamics(Opaque(), [residual])


def test_a_feature_that_the_baseline_lacks_is_refused():
    """A mistyped feature is named, with those that there are."""
    residual = Unstructured(nv=1, features=[Feature(source="velocty")], bound=1.0)
    state, action = torch.zeros(2, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    with pytest.raises(ModelError, match=r"'velocty'.*there are.*'rate'"):
        ResidualDynamics(Pendulum(), [residual]).step(state, action)


def test_a_full_disk_keeps_the_older_artefact(data, tmp_path, monkeypatch):
    """No space left while the new artefact is written: the old one stays to the last byte, and no other file remains."""
    out = tmp_path / "out"
    baseline = TINY.baseline()
    model = Model(dynamics=ResidualDynamics(baseline), sensor=TINY.sensor(baseline))
    artifact.save(out, artifact.Calibration(model=model, identified=model, preset="servo"))
    before, write = contents(out), files.write_bytes

    def full(path, content):
        if Path(path).name == "metrics.json":
            raise OutputError(f"{path}: could not be written: {os.strerror(errno.ENOSPC)}")
        write(path, content)

    with quick(), monkeypatch.context() as disk:
        disk.setattr(files, "write_bytes", full)
        with pytest.raises(OutputError, match="No space left on device"):
            calibrate(TINY, data, out, residual=False)
    assert contents(out) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [files.progress_folder(out).name, "logs", "out"]
    with quick():
        calibrate(TINY, data, out, residual=False)
    assert artifact.load(out).estimates
    assert sorted(p.name for p in tmp_path.iterdir()) == ["logs", "out"]


def test_a_full_disk_while_searching_is_one_error(data, tmp_path, monkeypatch):
    """No space left for a checkpoint: an OutputError that names the file, and no artefact."""
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with quick(), pytest.raises(OutputError, match=r"identify\.npz: could not be written: No space left"):
        calibrate(TINY, data, tmp_path / "out", residual=False)
    left = [p.name for p in tmp_path.rglob("*") if p.is_file() and p.parent != data]
    assert left == []


def test_every_error_on_purpose_is_one_family():
    """A caller catches all of them by one class, and the old ones by ValueError and OSError."""
    for kind, plain in ((LogError, ValueError), (ModelError, ValueError), (OutputError, OSError)):
        assert issubclass(kind, ResidualMBRLError)
        assert issubclass(kind, plain)


DRIVER = """
import sys
from dataclasses import replace
sys.path.insert(0, sys.argv[1])
import calibration_problem as c
from residual_mbrl import calibration, cli, files, presets

def main():
    slow = replace(c.TINY, identify=replace(c.TINY.identify, starts=16, candidates=8, iterations=6))
    presets.PRESETS["servo"] = slow
    with c.quick():
        return cli.main(sys.argv[2:])

if __name__ == "__main__":
    sys.exit(main())
"""


def test_ctrl_c_stops_the_command_line_and_the_same_command_completes(data, tmp_path):
    """SIGINT in the middle: exit code 130 and how to go on, only checkpoints left; the same command then completes."""
    script, out = tmp_path / "driver.py", tmp_path / "out"
    script.write_text(DRIVER)
    command = [sys.executable, str(script), str(Path(__file__).parent), "calibrate", "servo", "--data", str(data), "--out", str(out),
               "--workers", "1", "--no-residual"]
    environment = {**os.environ,
                   "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])),
                   "MPLBACKEND": "Agg"}
    kept = files.progress_folder(out)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while not list(kept.glob("*.npz")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None, process.communicate()
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, (stdout, stderr)
    assert "the same command goes on from the last checkpoint" in stderr
    assert "Traceback" not in stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == [kept.name, "driver.py", "logs"]
    assert all(p.suffix == ".npz" for p in kept.iterdir())
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0, again.stderr
    assert artifact.load(out).preset == "servo"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["driver.py", "logs", "out"]


def test_options_are_checked_where_they_are_used():
    """An unknown loss is refused by name, whichever function gets it."""
    from estimation_problem import pendulum, pendulum_logs, sensor

    from residual_mbrl.identification import identify

    with pytest.raises(ValueError, match="loss must be linear, soft_l1 or cauchy, received 'l1'"):
        identify(ResidualDynamics(pendulum()), sensor(), pendulum_logs(count=1, steps=4), IdentifyOptions(loss="l1"))  # type: ignore[arg-type]


def test_presets_are_looked_up_by_name():
    """The command line's presets are named as they are filed."""
    assert all(name == preset.name for name, preset in PRESETS.items())
