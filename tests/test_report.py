"""The report is one whole file that says everything and asks for nothing from elsewhere."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from evaluation_problem import evaluation, identification
from matplotlib.figure import Figure

from residual_mbrl.errors import OutputError
from residual_mbrl.report import ReportInput, render, write_report
from residual_mbrl.verdict import is_residual_worth_it, number

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Reads a page: its text, its tags, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data if "style" not in self.open else ""


@pytest.fixture(scope="module")
def report() -> ReportInput:
    found = evaluation()
    extra = Figure()
    extra.subplots().plot([0, 1])
    return ReportInput(
        title="Servo <b>7</b> & load", evaluations=(found,), verdict=is_residual_worth_it(found), identification=identification(),
        figures={"friction": (extra, 'The "learned" curve <i>')}, options={"fit": {"epochs": 30, "note": "<script>alert(1)</script>"}},
        environment={"torch": "2.13.0"}, seeds={"identify": 3}, data={"log_0.csv": "ab12"}, command="residual-mbrl calibrate a && b")


@pytest.fixture(scope="module")
def written(report: ReportInput, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("out") / "report.html"
    write_report(path, report)
    return path


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page(written.read_text(encoding="utf-8"))


def test_it_opens_with_the_verdict(page: Page, report: ReportInput) -> None:
    """Title, then the paragraph, then everything else."""
    assert re.search(rf"{re.escape(report.title)}\s+{re.escape(report.verdict.text)}", page.words)


def test_it_is_well_formed(page: Page) -> None:
    """Every tag that opens closes, in order."""
    assert page.open == []


def test_it_needs_nothing_from_elsewhere(page: Page) -> None:
    """No link, script or image is loaded: pictures are held inside."""
    assert not {t for t, _ in page.tags} & {"link", "script", "iframe", "a"}
    for tag, attributes in page.tags:
        assert "href" not in attributes and not any(a.startswith("on") for a in attributes)
        if tag == "img":
            assert str(attributes["src"]).startswith("data:image/png;base64,") and attributes["alt"]


def test_the_style_loads_nothing(written: Path) -> None:
    """Neither the page nor its style names another address."""
    text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", written.read_text(encoding="utf-8"))
    assert "http" not in text and "url(" not in text and "@import" not in text


def test_everything_from_outside_is_escaped(written: Path, page: Page) -> None:
    """Markup in titles, captions, options and findings is shown, not obeyed."""
    text = written.read_text(encoding="utf-8")
    assert "<script>" not in text and "<b>7" not in text and "<gravity>" not in text
    for shown in ("Servo <b>7</b> & load", "<script>alert(1)</script>", "-0.9 N·m of <gravity>", 'The "learned" curve <i>', "a && b"):
        assert shown in page.words


def test_numbers_of_every_table_are_there(page: Page, report: ReportInput) -> None:
    """Errors, differences, logs, parameters, certificates, options and hashes appear as they are."""
    found = report.evaluations[0]
    for score in found.scores.values():
        value, lower, upper = (number(float(x[0])) for x in score.mae)
        assert f"{value} [{lower}, {upper}]" in page.words
        assert number(float(score.log_mae[5, 1])) in page.words
    for words in ("identified+residual against identified", "less error", "gravity", "[1.11, 1.19]", "not determined", "at bound",
                  "Of the plant", "Of the sensors", "only together", "identified+residual: DryFriction", "holds", "dissipated [J]",
                  "fit.epochs", "torch2.13.0", "identify3", "log_0.csvab12", "seed 0"):
        assert words in page.words, words


def test_figures_are_written_beside_it(written: Path) -> None:
    """Every picture of the page is a PNG in figures/ too, and nothing else is left in the folder."""
    assert sorted(p.name for p in (written.parent / "figures").iterdir()) == [
        "friction.png", "horizon-test.png", "logs-test.png", "parameters.png", "predicted-test.png"]
    assert sorted(p.name for p in written.parent.iterdir()) == ["figures", "report.html"]


def test_the_same_input_gives_the_same_file(written: Path, report: ReportInput, tmp_path: Path) -> None:
    """A report can be compared byte by byte."""
    write_report(tmp_path / "report.html", report)
    assert (tmp_path / "report.html").read_bytes() == written.read_bytes()


def test_it_works_without_identification(report: ReportInput) -> None:
    """Sections without content are left out."""
    words = Page(render(replace(report, identification=None, figures={}, options={}, data={}), {})).words
    assert "Of the plant" not in words and "What was learned" not in words and "Options" not in words


def test_two_splits_have_their_own_sections(report: ReportInput, tmp_path: Path) -> None:
    """Each evaluation has its section and its figures."""
    both = replace(report, evaluations=(report.evaluations[0], replace(report.evaluations[0], split="train")))
    files = write_report(tmp_path / "report.html", both)
    assert {"predicted-test.png", "predicted-train.png"} <= {f.name for f in files}
    assert "Prediction on the train logs" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_failed_write_leaves_the_older_report(report: ReportInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full, the file that was there is still whole and no temporary one remains."""
    path = tmp_path / "report.html"
    path.write_text("older")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        write_report(path, report)
    assert path.read_text() == "older" and list(tmp_path.glob("*.tmp")) == []


def test_a_folder_that_cannot_be_made_is_named(report: ReportInput, tmp_path: Path) -> None:
    """A file in the way of figures/ gives the package's own error."""
    (tmp_path / "figures").write_text("")
    with pytest.raises(OutputError, match="figures"):
        write_report(tmp_path / "report.html", report)


@pytest.mark.parametrize(("change", "message"), [({"evaluations": ()}, "at least one evaluation"),
                                                 ({"figures": {"../x": (Figure(), "")}}, "stem")])
def test_input_that_cannot_be_reported_is_named(report: ReportInput, change: dict, message: str) -> None:
    """Nothing to report, or a figure that would be written elsewhere, is refused at once."""
    with pytest.raises(ValueError, match=message):
        replace(report, **change)


def test_own_figures_are_not_replaced(report: ReportInput, tmp_path: Path) -> None:
    """A further figure with the name of one of the report's own is refused."""
    with pytest.raises(ValueError, match="parameters"):
        write_report(tmp_path / "report.html", replace(report, figures={"parameters": (Figure(), "")}))
