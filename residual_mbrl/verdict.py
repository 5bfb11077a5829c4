"""Is the residual worth it? One paragraph of plain words with the numbers behind it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from residual_mbrl.evaluation import Evaluation
from residual_mbrl.examination import Examination, Piece

_WHAT = {"frictionloss": "changes the dry-friction limit by", "damping": "adds a viscous coefficient of",
         "EffortActuator": "changes the drive's effort by", "CommandActuator": "changes the executed command by",
         "Conservative": "adds a potential's force of", "Unstructured": "adds a free force of", "StateDelta": "changes the next state by"}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether the residual is worth having.

    Args:
        worth: Whether it is.
        text: Why, in plain words with the numbers.
    """

    worth: bool
    text: str


def is_residual_worth_it(evaluation: Evaluation, *, column: str | None = None, reference: str | None = None, corrected: str | None = None,
                         smallest_gain: float = 0.03, smallest_share: float = 0.01) -> Verdict:
    """Judge the residual: it must lower the error beyond chance, by enough, with a noticeable force, and keep its certificates.

    Args:
        evaluation: On data that neither identification nor fitting has seen.
        column: The column to judge by; the first where None.
        reference: Model without the residual; "identified", else "nominal", where None.
        corrected: Model with it; "identified+residual", else "residual", where None.
        smallest_gain: Relative gain below which no residual is needed.
        smallest_share: Share of force below which no residual is needed.

    Raises:
        ValueError: if the models to compare were not evaluated.
    """
    reference = _first_of(evaluation, "reference", reference, ("identified", "nominal"))
    corrected = _first_of(evaluation, "corrected", corrected, ("identified+residual", "residual"))
    c = evaluation.column(column)
    examination = evaluation.scores[corrected].examination
    subject = "the residual" if examination.pieces else f"the {corrected} model"
    comparison = _Comparison.of(evaluation, c, subject, (reference, corrected))
    broken = [x for x in examination.certificates if not x.holds]
    reason = comparison.reason(examination.force_share, smallest_gain, smallest_share)
    if not math.isfinite(comparison.after):
        reason = "its predictions diverge"
    elif broken:
        reason = f"{' and '.join(x.residual for x in broken)} broke what it promises"
    elif not examination.pieces:
        reason = f"the {corrected} model has none"
    unusable = bool(broken) or not math.isfinite(comparison.after)
    opening = f"{'Do not use this residual' if unusable else 'No residual is needed'}: {reason}" if reason else "The residual is worth it"
    share = f"The residual's force is {percent(examination.force_share)} of the total that moves the plant (rms over the predictions)"
    rule = (f"Worth it means here: an interval below zero, an error at least {percent(smallest_gain)} lower, at least "
            f"{percent(smallest_share)} of the force, and certificates that hold")
    sentences = [opening, _errors(evaluation, c, (reference, corrected)), comparison.words(evaluation, c)]
    if examination.pieces:
        sentences += [share, *(_piece(p) for p in examination.pieces), _certificates(examination), rule]
    return Verdict(worth=not reason, text=" ".join(f"{s}." for s in sentences))


class _Comparison(NamedTuple):
    """Numbers of one paired comparison, in one column."""

    subject: str
    reference: str
    before: float
    after: float
    lower: float
    upper: float
    better: float

    @classmethod
    def of(cls, evaluation: Evaluation, c: int, subject: str, models: tuple[str, str]) -> _Comparison:
        """Read the comparison out of an evaluation."""
        pair = evaluation.pair(*models)
        before, after = (float(evaluation.scores[m].mae.value[c]) for m in models)
        lower, upper = float(pair.difference.lower[c]), float(pair.difference.upper[c])
        return cls(subject, models[0], before, after, lower, upper, float(pair.better[c]))

    @property
    def gain(self) -> float:
        """Relative gain; 1 where only the reference diverged."""
        if math.isinf(self.before):
            return float(math.isfinite(self.after))
        return 1 - self.after / self.before if self.before > 0 else 0.0

    def reason(self, share: float, smallest_gain: float, smallest_share: float) -> str:
        """Return why the residual is not worth it; empty where it is."""
        if self.lower > 0 and -self.gain < smallest_gain:
            return f"it raises the error, by {percent(-self.gain)}"
        if self.lower > 0:
            return "it does harm on these data"
        if self.upper >= 0:
            return "what it changes cannot be told from chance (the interval of the paired difference includes zero)"
        if self.gain < smallest_gain:
            return f"it lowers the error by {percent(max(self.gain, 0.0))}, less than the {percent(smallest_gain)} that would pay for it"
        if share < smallest_share:
            return f"its share of the force, {percent(share)}, is below {percent(smallest_share)}"
        return ""

    def words(self, evaluation: Evaluation, c: int) -> str:
        """Return the paired difference in words."""
        difference, unit, count, name = self.after - self.before, evaluation.units[c], evaluation.unit_count, evaluation.unit_name
        if not math.isfinite(difference):
            return f"A paired difference from the {self.reference} model has no finite value"
        start = f"Paired {name} by {name}, {self.subject} changes the error of the {self.reference} model by {number(difference)} {unit}"
        change = f"{percent(abs(self.gain))} {'less' if self.gain >= 0 else 'more'}"
        if math.isnan(self.lower):
            return f"{start} ({change}); with a single window there is no interval, so this rests on one prediction"
        return (f"{start} (95 % interval {number(self.lower)} to {number(self.upper)}; {change}; better on {round(self.better * count)} of "
                f"{count} {name}{'s' * (count != 1)})")


def number(x: float) -> str:
    """Write a number to three significant digits, without an exponent where it reads well."""
    if not math.isfinite(x):
        return "infinite" if math.isinf(x) else "unknown"
    size = abs(x)
    text = f"{x:.3g}" if size < 1e-4 or size >= 1e5 else f"{x:.{max(0, 2 - math.floor(math.log10(size)))}f}"
    text = "0" if size == 0 else text
    return text.replace("-", "−")


def percent(x: float) -> str:
    """Write a fraction in per cent, to two digits below ten."""
    return f"{100 * x:.0f} %" if abs(x) >= 0.0995 else f"{100 * x:.2g} %".replace("-", "−") if math.isfinite(x) else "an unknown share"


def _first_of(evaluation: Evaluation, what: str, given: str | None, wanted: tuple[str, ...]) -> str:
    for name in (given,) if given is not None else wanted:
        if name in evaluation.scores:
            return name
    raise ValueError(f"is_residual_worth_it: {what} must be one of {list(evaluation.models)}, received {given or wanted}")


def _errors(evaluation: Evaluation, c: int, models: tuple[str, str]) -> str:
    windows, seconds, logs = len(evaluation.log), (evaluation.measured.shape[1] - 1) * evaluation.dt, len(evaluation.logs)
    parts = []
    for m in dict.fromkeys(m for m in ("nominal", *models) if m in evaluation.scores):
        score = evaluation.scores[m]
        diverged = f" (diverged on {int(score.diverged.sum())} of {windows} windows)" if score.diverged.any() else ""
        parts.append(f"{m} {number(float(score.mae.value[c]))} {evaluation.units[c]}{diverged}")
    return (f"Mean absolute error of {evaluation.columns[c]} on {logs} {evaluation.split} log{'s' * (logs != 1)} ({windows} "
            f"window{'s' * (windows != 1)} of up to {seconds:.3g} s): {', '.join(parts)}")


def _piece(piece: Piece) -> str:
    what = _WHAT.get(piece.live or piece.name, f"changes {piece.live or 'the ' + piece.port} by")
    unit = "" if piece.unit == "1" else f" {piece.unit}"
    return (f"{piece.name} {what} {number(piece.low)} to {number(piece.high)}{unit} (5th to 95th percentile), "
            f"{percent(piece.share)} of the force by itself")


def _certificates(examination: Examination) -> str:
    broken = [f"{x.residual}: {x.quantity} {number(x.worst)} {x.unit}, allowed {number(x.limit)}"
              for x in examination.certificates if not x.holds]
    samples = min(x.samples for x in examination.certificates)
    if broken:
        return f"Certificates do not hold over {samples:,} visited states ({'; '.join(broken)})"
    return f"All certificates hold over {samples:,} visited states"
