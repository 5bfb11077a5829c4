"""Examples run as a user runs them, and what they claim to show is there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from residual_mbrl import artifact

ROOT = Path(__file__).parents[1]
SERVO_ARTIFACT = ROOT / "benchmarks" / "artifacts" / "servo"
CALL = """
import json, pathlib, runpy, sys
path, folders, options = sys.argv[1], *map(json.loads, sys.argv[2:])
result = runpy.run_path(path)["main"](**{n: pathlib.Path(x) for n, x in folders.items()}, **options)
print(json.dumps(result, default=vars))
"""


def example(name: str, folders: dict[str, Path] | None = None, **options: object) -> Any:
    """Call an example's main in a process of its own (shapes are not checked at every call there) and return what it returns."""
    arguments = [json.dumps({n: str(x) for n, x in (folders or {}).items()}), json.dumps(options)]
    command = [sys.executable, "-c", CALL, str(ROOT / "examples" / f"{name}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def quick_servo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artefact that example 01 made in its quick form."""
    out = tmp_path_factory.mktemp("servo") / "calibration"
    example("01_calibrate_servo", {"out": out}, quick=True)
    return out


def test_01_finds_a_heavier_load(quick_servo: Path) -> None:
    """The quick form of 01 writes an artefact and a report, and moves the load away from the data sheet's 0.49 kg."""
    calibration = artifact.load(quick_servo)
    assert calibration.model.dynamics.values["load_mass"] > 0.55
    assert (quick_servo / "report.html").is_file()


def test_02_learns_the_cable() -> None:
    """A user's own baseline and arrays: the residual lowers the held-out error of the identified model by more than half."""
    errors = example("02_own_baseline")
    assert errors["identified+residual"] < 0.5 * errors["identified"] < 0.5 * errors["nominal"]


@pytest.mark.parametrize("source", ["quick", "benchmark"])
def test_03_predicts_and_linearises(source: str, quick_servo: Path) -> None:
    """An artefact predicts a reachable angle, and its linearisation agrees with a small change of command."""
    if source == "benchmark" and not (SERVO_ARTIFACT / artifact.CALIBRATION).is_file():
        pytest.skip(f"no committed artefact at {SERVO_ARTIFACT}")
    outcome = example("03_use_the_artifact", {"folder": quick_servo if source == "quick" else SERVO_ARTIFACT})
    assert 0.2 < outcome["angle"] < 0.9
    assert outcome["linear_error"] < 1e-3


def test_04_residual_learns_the_filter() -> None:
    """Without a sensor model the residual matches the column and moves away from the true angle; with one it is not needed."""
    outcomes = example("04_sensor_or_residual")
    as_angle, modelled = outcomes["taken as the angle"], outcomes["modelled as a low-pass"]
    assert as_angle["identified+residual"]["worth"]
    assert as_angle["identified+residual"]["column"] < 0.5 * as_angle["identified"]["column"]
    assert as_angle["identified+residual"]["angle"] > as_angle["identified"]["angle"]
    assert modelled["identified"]["angle"] < 0.4 * as_angle["identified"]["angle"]
    assert not modelled["identified+residual"]["worth"]


def test_06_wraps_an_environment() -> None:
    """Through the environment's own step the mass is found, and the learned drag halves what is left."""
    pytest.importorskip("gymnasium")
    outcome = example("06_wrap_a_gymnasium_env")
    assert outcome["slope"] == pytest.approx(0.15, rel=1e-6)
    assert outcome["mass"] == pytest.approx(1.4, rel=0.05)
    assert outcome["identified+residual"] < 0.6 * outcome["identified"] < 0.6 * outcome["nominal"]


def test_07_wraps_a_function() -> None:
    """A gradient through a numpy function, the mass of the load within five per cent, and a correction that takes most of the error."""
    outcome = example("07_wrap_a_black_box")
    assert outcome["slope"] == pytest.approx(0.02 / 2 * (1 - 0.375 * 0.02), rel=1e-6)
    assert outcome["mass"] == pytest.approx(3.0, rel=0.05)
    assert outcome["identified+residual"] < 0.4 * outcome["identified"] < 0.4 * outcome["nominal"]


def test_05_wraps_an_mjcf() -> None:
    """The payload is found within one per cent, and the written MJCF holds it."""
    outcome = example("05_wrap_an_mjcf")
    assert outcome["mass"] == pytest.approx(outcome["true"], rel=0.01)
    assert outcome["written"] == outcome["mass"]
    assert outcome["slope"] != 0


def test_09_finds_the_dead_contact() -> None:
    """In the two worlds that touch the floor, at the first step that starts below it; without the defect nothing is found."""
    outcome = example("09_audit_a_gradient")
    assert outcome["broken"] == [["dead", [0], 20, "height"], ["dead", [1], 32, "height"]]
    assert outcome["repaired"]
    assert 50 < outcome["cut"] < 150


def test_08_runs_in_the_users_loop() -> None:
    """The plain loop with the plug-in is the calibrated model's rollout."""
    outcome = example("08_in_the_viewer_loop", seconds=0.4)
    assert outcome["difference"] < 1e-9
    assert outcome["force"] > 0.1


def test_10_fuses_a_users_equations() -> None:
    """The Warp form agrees with the torch form, gradient included, and a loaded machine still shows what it is for."""
    outcome = example("10_fuse_your_own_system")
    assert outcome["error"] < 1e-5
    assert outcome["ratio"] > 5


def test_11_calibrates_a_contact() -> None:
    """Numbers of the contact take most of the error, the learned force most of the rest; the MJCF holds the friction."""
    outcome = example("11_my_robot_drops_things_differently", steps=25, tosses=8)
    assert outcome["identified+residual"] < 0.5 * outcome["identified"] < 0.5 * outcome["nominal"]
    assert outcome["friction"] == pytest.approx(0.35, rel=0.1)
    assert outcome["held"]
    assert outcome["played"] < 0.2 * outcome["nominal"]


def test_12_controls_a_plant_in_another_process(tmp_path: Path) -> None:
    """The loop runs its time, what was sent as NaN is in its log, and log and figure are written."""
    outcome = example("12_control_a_separate_process", {"out": tmp_path}, seconds=3.0, learning=3.0)
    assert outcome["ticks"] == 151
    assert "observation not finite" in outcome["reasons"]
    assert (tmp_path / "loop.png").is_file()
    assert len((tmp_path / "switches.jsonl").read_text().splitlines()) == len(outcome["reasons"])


@pytest.mark.slow
def test_14_learns_from_seconds(tmp_path: Path) -> None:
    """The payload and friction that the MJCF lacks are found, and the fingertip is nearer to its target."""
    pytest.importorskip("gymnasium", reason="gymnasium is not installed")
    found = example("14_learn_from_seconds", {"out": tmp_path / "run"})
    assert found["payload"] == pytest.approx(40.0, rel=0.02)
    assert found["learned"] < found["as known"]
