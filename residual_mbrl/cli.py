"""The command line: thin subcommands over the library, generated from typed functions."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from residual_mbrl import files
from residual_mbrl.errors import LogError, ResidualMBRLError

if TYPE_CHECKING:
    from residual_mbrl.artifact import Calibration
    from residual_mbrl.metrics import Metric

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130
"""Exit codes: a check failed, a wrong argument or input, Ctrl-C."""

# Subcommands import the library inside, so that --help answers at once: importing torch takes seconds.


def demo(*, out: Path = Path("demo"), seed: int = 0) -> int:
    """Calibrate a simulated 7-joint arm whose payload, friction, delay and spring nobody told the model, and follow a motion with it.

    Args:
        out: Folder for the artefact and the report.
        seed: Seed of the simulated logs and of the search.
    """
    from residual_mbrl.demo import run_demo  # noqa: PLC0415

    with _resumable(out), _progress() as progress:
        metrics = run_demo(out, seed, progress)
    _show(_metrics(metrics))
    _say(f"report: {out / 'report.html'}")
    return 0


def calibrate(plant: Annotated[str, tyro.conf.Positional], logs: Annotated[tuple[Path, ...], tyro.conf.Positional] = (), *, out: Path,
              data: Path | None = None, map: Path | None = None, free: tuple[str, ...] = (), dt: float | None = None,
              horizon: float | None = None, resample: bool = False, dry_run: bool = False, seed: int = 0, residual: bool = True,
              resume: bool = True, workers: int = 2) -> int:
    """Calibrate a plant on its logs: identify, fit, evaluate, report.

    The plant is a MuJoCo model (robot.xml LOGS --free PARAMETERS) or a preset (servo --data FOLDER).

    Args:
        plant: A model file, or one of the presets servo, drive, pendulum, double_pendulum.
        logs: Logs of the model: npz, CSV, Parquet (LeRobot), HDF5 (Minari, robomimic), MCAP.
        out: Folder for the artefact; an older artefact there is replaced once the new one is complete.
        data: Folder of a preset's logs.
        map: Which column is which joint, and its unit: mapping.toml.
        free: Parameters to identify, by name or glob pattern, such as "damping:*" "mass:link7".
        dt: Seconds per step; the model's own time step by default.
        horizon: Length of training windows in seconds.
        resample: Interpolate logs that were recorded at another rate.
        dry_run: Show what was understood of the logs, and stop.
        seed: Seed of the search and of the weights.
        residual: Fit a residual after identification.
        resume: Go on from where the same command was interrupted.
        workers: Processes that fit held-out folds side by side.
    """
    from residual_mbrl.calibration import calibrate as run  # noqa: PLC0415
    from residual_mbrl.presets import PRESETS  # noqa: PLC0415

    if plant in PRESETS:
        if data is None or logs:
            raise ValueError(f"the preset {plant!r} takes its logs from --data FOLDER")
        _require_folder(data)
        preset = PRESETS[plant]
    elif not Path(plant).suffix:
        raise ValueError(f"unknown plant {plant!r}; expected a model file such as robot.xml, or one of {', '.join(PRESETS)}")
    elif not logs or not (free or dry_run):
        raise ValueError(f"{plant}: expected logs after it, and --free with the parameters to identify, such as --free 'damping:*'")
    else:
        from residual_mbrl.column_map import read_map  # noqa: PLC0415
        from residual_mbrl.physics.mujoco_simulator import MujocoSimulator  # noqa: PLC0415
        from residual_mbrl.presets.simulator import HORIZON, read_logs, simulator_preset  # noqa: PLC0415

        simulator = MujocoSimulator(plant, free, dt=dt)
        columns = None if map is None else read_map(map, simulator.space)
        prepared = read_logs(simulator, logs, columns, resample=resample)
        Console().print(prepared.report.render())
        if dry_run:
            return 0
        preset, data, free = simulator_preset(simulator, prepared, logs, horizon=horizon or HORIZON), Path(), ()
    if not resume:
        shutil.rmtree(files.progress_folder(out), ignore_errors=True)
    with _resumable(out), _progress() as progress:
        done = run(preset, data, out, free=free or None, residual=residual, seed=seed, workers=workers, progress=progress,
                   mapping="" if map is None else map.read_text(encoding="utf-8"))
    _show(_parameters(done))
    for combination in done.unidentifiable:
        _say(f"not determined by the data: {combination}")
    _say(f"artefact: {out}\nreport: {out / 'report.html'}")
    return 0


def evaluate(artifact: Annotated[Path, tyro.conf.Positional], logs: Annotated[tuple[Path, ...], tyro.conf.Positional] = (), *, out: Path,
             data: Path | None = None, split: str = "test", map: Path | None = None, resample: bool = False) -> int:
    """Score a calibration on logs and write metrics.json and the report.

    Args:
        artifact: Folder of the calibration.
        logs: Logs of a MuJoCo model.
        out: Folder for metrics.json, the report and its figures.
        data: Folder of a preset's logs.
        split: Which part of a preset's logs to score.
        map: Mapping of these logs, where it is not that of the calibration.
        resample: Interpolate logs that were recorded at another rate.
    """
    from residual_mbrl.calibration import evaluate_artifact, evaluate_logs  # noqa: PLC0415

    if (data is None) == (not logs):
        raise ValueError("evaluate: expected logs after the artefact, or --data FOLDER for a preset's")
    if data is None:
        metrics = evaluate_logs(artifact, logs, out, mapping=map, resample=resample)
    else:
        _require_folder(data)
        metrics = evaluate_artifact(artifact, data, out, split=split)
    _show(_metrics(metrics))
    _say(f"written to {out}")
    return 0


def protocol(plant: Annotated[str, tyro.conf.Positional], *, data: Path, out: Path, candidate: str = "",
             fractions: tuple[float, ...] = (0.25, 0.5), seeds: tuple[int, ...] = (0, 1, 2),
             options: tuple[str, ...] = ("ridge=0.01", "ridge=0.2"), folds: int = 3, horizons: tuple[int, ...] = (1, 10, 100),
             disturb: str = "", workers: int = 2, retries: int = 1, timeout: float = 3600.0, quick: bool = False) -> int:
    """Run the evaluation protocol of a preset: ablations, amount of data, seeds, options, regimes, realism, recovery.

    Train and validation logs only. Every cell is a process and a file; the same command goes on where it stopped and runs failed
    cells again. It returns 1 where a cell failed in the end.

    Args:
        plant: One of the presets servo, drive, pendulum, double_pendulum.
        data: Folder of its logs.
        out: Folder for protocol.json, protocol.html and the cells.
        candidate: Residual of the main model, such as "dry friction"; the preset's first by default.
        fractions: Amounts of training data.
        seeds: Seeds of search and weights.
        options: Options of fitting changed one at a time, such as ridge=0.1.
        folds: Most folds that are held out.
        horizons: Steps ahead at which errors are reported.
        disturb: Change planted half-way in a flight of the identified model, such as load_mass=1.3.
        workers: Processes side by side.
        retries: How often a crashed cell is run again.
        timeout: Seconds after which a cell counts as crashed.
        quick: The smallest protocol that shows every table.
    """
    from residual_mbrl.presets import PRESETS  # noqa: PLC0415
    from residual_mbrl.protocol.cells import ProtocolOptions  # noqa: PLC0415
    from residual_mbrl.protocol.run import DOCUMENT, PAGE, run_protocol  # noqa: PLC0415
    from residual_mbrl.protocol.run import quick as smallest  # noqa: PLC0415

    if plant not in PRESETS:
        raise ValueError(f"unknown plant {plant!r}; expected one of {', '.join(PRESETS)}")
    _require_folder(data)
    asked = ProtocolOptions(candidate=candidate, fractions=fractions, seeds=seeds, options=tuple(map(_assignment, options)), folds=folds,
                            horizons=horizons, disturbance=_assignment(disturb) if disturb else None, workers=workers, retries=retries,
                            timeout=timeout)
    with _progress() as progress:
        document = run_protocol(PRESETS[plant], data, out, smallest(asked) if quick else asked, progress=progress,
                                command=f"residual-mbrl protocol {plant} --data FOLDER --out OUT")
    table = _table("held-out errors", "model", "column", "mean error", "diverged", "failed")
    for row in document["tables"]["ablations"]:
        value = "" if row["mae"] is None else f"{row['mae']:.4g} {row['unit']}"
        table.add_row(Text(row["model"]), Text(row["column"]), value, str(row.get("diverged", "")), str(row["failed"] or ""))
    _show(table)
    _say(f"{document['done']} of {document['cells']} cells done\nreport: {out / PAGE}\nnumbers: {out / DOCUMENT}")
    return FAILED if document["failed"] else 0


def export(artifact: Annotated[Path, tyro.conf.Positional], mjcf: Annotated[Path, tyro.conf.Positional]) -> int:
    """Write the identified parameters of a calibrated MuJoCo model back into its MJCF.

    Args:
        artifact: Folder of the calibration.
        mjcf: File to write.
    """
    from residual_mbrl.artifact import load  # noqa: PLC0415
    from residual_mbrl.mjcf_export import export_mjcf  # noqa: PLC0415

    calibration = load(artifact)
    written = export_mjcf(calibration, mjcf)
    _say(f"{mjcf}: {len(written)} identified parameters written")
    if calibration.model.dynamics.residuals:
        _say("the residual is not part of MJCF: MujocoPlugin adds it in the simulation loop")
    return 0


def inspect(artifact: Annotated[Path, tyro.conf.Positional]) -> int:
    """Show what an artefact holds.

    Args:
        artifact: Folder of the calibration.
    """
    from residual_mbrl.artifact import METRICS, load, read_metrics  # noqa: PLC0415

    calibration = load(artifact)
    _show(_summary(calibration))
    _show(_parameters(calibration))
    for combination in calibration.unidentifiable:
        _say(f"not determined by the data: {combination}")
    if (artifact / METRICS).exists():
        _show(_metrics(read_metrics(artifact / METRICS)["metrics"]))
    return 0


def check() -> int:
    """Check this installation: gradients, guarantees, engines, speed."""
    from residual_mbrl.check import run_checks  # noqa: PLC0415

    table = _table("", "check", "", "found", "s")
    passed = True
    with Console(stderr=True).status("checking") as status:
        for result in run_checks():
            status.update(f"checked {result.name}")
            table.add_row(result.name, Text("ok", "green") if result.passed else Text("failed", "bold red"), Text(result.detail),
                          f"{result.seconds:.1f}")
            passed &= result.passed
    _show(table)
    return 0 if passed else FAILED


SUBCOMMANDS: dict[str, Callable[..., int]] = {f.__name__: f for f in (demo, calibrate, evaluate, protocol, inspect, export, check)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    Args:
        argv: Arguments without the program's name; those of the process where None.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    logging.basicConfig(level=logging.WARNING, format="%(message)s",
                        handlers=[RichHandler(console=Console(stderr=True), show_path=debug)])
    logging.getLogger("residual_mbrl").setLevel(logging.DEBUG if debug else logging.WARNING)
    try:
        return int(tyro.extras.subcommand_cli_from_dict(
            SUBCOMMANDS, prog="residual-mbrl", args=[a for a in arguments if a != "--debug"],
            description="Correct a known model by what its logs show. --debug shows the traceback of an error."))
    except SystemExit as stop:  # tyro has said what was wrong, or printed its help
        return stop.code if isinstance(stop.code, int) else WRONG_USE
    except KeyboardInterrupt:
        _complain("interrupted; nothing half-written was left")
        return INTERRUPTED
    except (ResidualMBRLError, ValueError, OSError) as error:
        if debug:
            raise
        _complain(f"error: {error}")
        return WRONG_USE


@contextmanager
def _resumable(out: Path) -> Iterator[None]:
    """On Ctrl-C, say how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        kept = files.progress_folder(out)
        _complain(f"the same command goes on from the last checkpoint in {kept}; delete it to start anew" if kept.exists()
                  else "no checkpoint had been reached: the same command starts anew")
        raise


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """Show a bar on stderr; yield a function that takes a phrase and the fraction done."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda phrase, done: bar.update(task, description=phrase, completed=done)


def _assignment(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise ValueError(f"expected NAME=NUMBER, received {text!r}") from None


def _require_folder(data: Path) -> None:
    if not data.is_dir():
        raise LogError(f"--data {data}: expected a folder of logs")


def _summary(calibration: Calibration) -> Table:
    dynamics, space = calibration.model.dynamics, calibration.space

    def named(names: Sequence[str]) -> str:
        return ", ".join(f"{n} [{space.unit(n)}]" for n in names)

    table = _table("", "calibration", "")
    for row in (("preset", calibration.preset or "none"),
                ("baseline", f"{type(dynamics.baseline).__name__}, {calibration.dt:g} s per step"),
                ("states", named(space.state_names)), ("actions", named(space.action)),
                ("measured", ", ".join(f"{c.name} ({c.source})" for c in calibration.model.sensor.columns)),
                ("residuals", ", ".join(type(r).__name__ for r in dynamics.residuals) or "none"),
                ("weights", str(sum(w.numel() for w in dynamics.parameters()))),
                ("logs", f"{len(calibration.data)}: {', '.join(calibration.data)}" if calibration.data else "none named"),
                ("seeds", ", ".join(f"{n} {s}" for n, s in calibration.seeds.items()) or "none"),
                ("made with", ", ".join(f"{n} {v}" for n, v in _versions(calibration).items())), ("notes", calibration.notes)):
        table.add_row(*map(Text, row))
    return table


def _versions(calibration: Calibration) -> dict[str, object]:
    packages = calibration.environment.get("packages")
    return {"python": calibration.environment.get("python", "?"), **(packages if isinstance(packages, dict) else {})}


def _parameters(calibration: Calibration) -> Table:
    """Table of every physical and sensor parameter: nominal, identified with its interval, and refined with the residual."""
    model, identified = calibration.model, calibration.identified
    rows = {str(e["name"]): e for e in calibration.estimates}
    table = _table("parameters", "name", "nominal", "identified", "95 % interval", "with residual", "unit")
    found = {**identified.sensor.parameters.nominal(), **identified.dynamics.values, **identified.sensor_values}
    refined = {**found, **model.dynamics.values, **model.sensor_values}
    for p in (*model.dynamics.baseline.parameters, *model.sensor.parameters):
        row = rows.get(p.name)
        interval = "" if row is None else _interval(row["interval"]) + (" at bound" if row.get("at_bound") else "")
        table.add_row(Text(p.name), f"{p.nominal:.4g}", "fixed" if row is None else f"{found[p.name]:.4g}", interval,
                      f"{refined[p.name]:.4g}", Text(p.unit))
    return table


def _metrics(metrics: Sequence[Metric]) -> Table:
    table = _table("metrics", "model", "metric", "horizon", "value", "95 % interval", "unit")
    for m in metrics:
        horizon = "" if m.horizon is None else str(m.horizon)
        table.add_row(Text(m.model), Text(m.metric), horizon, f"{m.value:.5g}", _interval(m.ci95), Text(m.unit))
    return table


def _interval(bounds: object) -> str:
    if not isinstance(bounds, list | tuple):
        return ""
    return f"{bounds[0]:.4g} to {bounds[1]:.4g}"


def _table(title: str, *header: str) -> Table:
    table = Table(title=title or None, title_justify="left")
    for name in header:
        table.add_column(name)
    return table


def _show(table: Table) -> None:
    Console().print(table)


def _say(text: str) -> None:
    Console(highlight=False).print(Text(text), soft_wrap=True)


def _complain(text: str) -> None:
    """Print one red line to stderr."""
    Console(stderr=True, highlight=False).print(Text(" ".join(text.split()), "bold red"), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
