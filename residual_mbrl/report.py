"""The report of a calibration: one self-contained HTML file that opens with the verdict, and its figures as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from residual_mbrl import html_page as html
from residual_mbrl import report_tables as tables
from residual_mbrl.calibration_figures import parameter_intervals
from residual_mbrl.errors import OutputError
from residual_mbrl.evaluation import Evaluation
from residual_mbrl.figure_style import png
from residual_mbrl.figures import error_over_horizon, errors_per_log, predicted_against_measured
from residual_mbrl.files import write_bytes, write_text
from residual_mbrl.identification import Identification
from residual_mbrl.verdict import Verdict, number

LONG_TABLE = 12


@dataclass(frozen=True, kw_only=True)
class ReportInput:
    """Everything that a report shows.

    Args:
        title: Heading.
        evaluations: One for each split, the one that counts first.
        verdict: Whether the residual is worth it.
        identification: Identified parameters; None where nothing was identified.
        figures: Further figures (learned friction curve, error over amount of data) by file stem, with their captions.
        column: Column that figures show; the first one evaluated where None.
        options: Options of every stage, nested.
        environment: Versions and machine.
        seeds: Seed of every stage.
        data: Hash of every log file by name.
        command: What to run to get this again; "" where there is no such command.
    """

    title: str
    evaluations: Sequence[Evaluation]
    verdict: Verdict
    identification: Identification | None = None
    figures: Mapping[str, tuple[Figure, str]] = field(default_factory=dict)
    column: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, object] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    command: str = ""

    def __post_init__(self) -> None:
        """Check that there is something to report and that figure stems are plain file names."""
        if not self.evaluations:
            raise ValueError("ReportInput: expected at least one evaluation")
        splits = [e.split for e in self.evaluations]
        if len(set(splits)) != len(splits):
            raise ValueError(f"ReportInput: splits must have different names, received {splits}")
        for stem in [*self.figures, *splits]:
            if not stem or not all(c.isalnum() or c in "-_" for c in stem):
                raise ValueError(f"ReportInput: a figure's stem and a split's name must be letters, digits, - and _, received {stem!r}")


def write_report(path: Path, report: ReportInput) -> list[Path]:
    """Write the report and, into ``figures/`` beside it, every figure.

    The HTML holds its figures and style inside, so it can be sent on its own; each file is whole or absent.

    Args:
        path: The HTML file.
        report: What to show.

    Returns:
        The files written, the HTML last.

    Raises:
        OutputError: if a file cannot be written.
    """
    path = Path(path)
    drawn = {stem: (png(figure), caption) for stem, (figure, caption) in _figures(report).items()}
    folder = path.parent / "figures"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: could not be made: {error.strerror or error}") from error
    written = []
    for stem, (data, _) in drawn.items():
        write_bytes(folder / f"{stem}.png", data)
        written.append(folder / f"{stem}.png")
    write_text(path, render(report, drawn))
    return [*written, path]


def render(report: ReportInput, drawn: Mapping[str, tuple[bytes, str]]) -> str:
    """Return the page as text.

    Args:
        report: What to show.
        drawn: PNG and caption of each figure by file stem.
    """
    pictures = {stem: html.picture(*x) for stem, x in drawn.items()}
    body = [html.paragraph(report.verdict.text, "lead good" if report.verdict.worth else "lead")]
    for evaluation in report.evaluations:
        body.append(html.section(f"Prediction on the {evaluation.split} logs", _prediction(report, evaluation, pictures)))
    body += [html.section("What was learned", [pictures[stem] for stem in report.figures]),
             html.section("Parameters", _parameters(report, pictures)),
             html.section("Energy and certificates", _physics(report)),
             html.section("To get this again", _repetition(report))]
    return html.page(report.title, body)


def _figures(report: ReportInput) -> dict[str, tuple[Figure, str]]:
    figures: dict[str, tuple[Figure, str]] = {}
    for e in report.evaluations:
        column = e.columns[e.column(report.column)]
        figures[f"predicted-{e.split}"] = (
            predicted_against_measured(e, column=report.column),
            f"{column} of the worst, the median and the best {e.unit_name} of the {e.split} logs, its error, and the force of the residual "
            f"along the prediction.")
        figures[f"horizon-{e.split}"] = (
            error_over_horizon(e, column=report.column),
            f"Error of {column} over the time predicted ahead: mean over windows, 95 % bootstrap interval over {e.unit_name}s.")
        if len(e.logs) > 1:
            figures[f"logs-{e.split}"] = (errors_per_log(e, column=report.column), f"Error of {column} on each log.")
    if report.identification is not None:
        figures["parameters"] = (
            parameter_intervals(report.identification.estimates),
            "Identified parameters with 95 % intervals; zero is nominal, an arrow an interval that goes on, an open dot a bound.")
    overlap = sorted(figures.keys() & report.figures.keys())
    if overlap:
        raise ValueError(f"ReportInput: figures {overlap} are drawn by the report itself; choose other names")
    return {**figures, **report.figures}


def _prediction(report: ReportInput, e: Evaluation, pictures: Mapping[str, str]) -> list[str]:
    how = (f"{len(e.log)} windows of {len(e.logs)} logs, each simulated from its own first sample. Intervals are 95 % bootstrap over "
           f"{e.unit_count} {e.unit_name}s ({e.resamples:,} resamples, seed {e.seed}).")
    if e.unit_count == 1:
        how = "One window of one log, simulated from its first sample; a single one has no bootstrap interval."
    out = [html.paragraph(how, "note"), *(pictures.get(f"{kind}-{e.split}", "") for kind in ("predicted", "horizon", "logs"))]
    for c, name in enumerate(e.columns):
        out += [html.heading(f"{name}: over the whole window"), tables.errors(e, c)]
        if e.pairs:
            out += [html.heading(f"{name}: paired differences"), tables.differences(e, c)]
        out += [html.heading(f"{name}: mean absolute error by horizon [{e.units[c]}]"), tables.horizons(e, c)]
        per_log = tables.logs(e, c)
        out += [html.folded(f"{name}: each of {len(e.logs)} logs", per_log) if len(e.logs) > LONG_TABLE else
                html.heading(f"{name}: each log, mean absolute error") + per_log]
    return out


def _parameters(report: ReportInput, pictures: Mapping[str, str]) -> list[str]:
    found = report.identification
    if found is None:
        return []
    sensor = [e for e in found.estimates if e.parameter.name in found.sensor_values]
    plant = [e for e in found.estimates if e.parameter.name not in found.sensor_values]
    out = [pictures["parameters"]]
    out += [html.heading("Of the plant"), tables.parameters(plant)] if plant else []
    out += [html.heading("Of the sensors"), tables.parameters(sensor)] if sensor else []
    out.append(html.heading("What the data can tell apart"))
    out += [html.paragraph("The data do not determine:"), html.bullets(found.unidentifiable)] if found.unidentifiable else [
        html.paragraph("Every parameter is determined by the data.")]
    out.append(html.paragraph(f"The search {_ended(found)} after {found.evaluations:,} simulations ({found.seconds:.1f} s); condition of "
                              f"the scaled Jacobian {number(found.condition)}.", "note"))
    return out


def _ended(found: Identification) -> str:
    return "converged" if found.status.name == "CONVERGED" else f"ended ({found.status.value})"


def _physics(report: ReportInput) -> list[str]:
    out: list[str] = []
    for e in report.evaluations:
        energies, certificates = tables.energies(e), tables.certificates(e)
        if energies:
            out += [html.heading(f"Energy, mean over the windows of the {e.split} logs"), energies]
        if certificates:
            out += [html.heading(f"Worst found over the states visited on the {e.split} logs"), certificates]
    if out:
        out.append(html.paragraph("Stored: change of the energy that the baseline knows. Dissipated: work of viscous and dry friction, "
                                  "those of the residuals included; a passive model never has it positive. Supplied: the rest, by "
                                  "commands and other forces.", "note"))
    return out


def _repetition(report: ReportInput) -> list[str]:
    out = [html.heading("Command"), html.code(report.command)] if report.command else []
    for title, values in (("Seeds", report.seeds), ("Options", report.options), ("Environment", report.environment),
                          ("Data (SHA-256)", report.data)):
        if values:
            shown = html.listing(values)
            out += [html.folded(f"{title} ({len(values)})", shown) if len(values) > LONG_TABLE else html.heading(title) + shown]
    return out
