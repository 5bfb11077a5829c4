"""What a cell reports: errors by column, horizon and flight regime, how its rollouts look, and what its certificates say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from residual_mbrl.evaluation import evaluate
from residual_mbrl.model import Model
from residual_mbrl.protocol.realism import realism
from residual_mbrl.windows import Windows


def score_cell(model: Model, held: Windows, horizons: Sequence[int]) -> dict[str, object]:
    """Score a model on held-out windows.

    Args:
        model: The model.
        held: Windows that it has not seen.
        horizons: Steps ahead.

    Returns:
        "mae" and "rmse" by column, "error" by column and horizon, "regimes": mean error by group of logs and column, "realism" by
        column, "diverged" windows, "force_share" of the residual, "certificates": whether each holds, and "units".
    """
    steps = sorted({h for h in horizons if h < held.horizon} | {held.horizon})
    found = evaluate({"model": model}, held, horizons=steps, split="held-out", resamples=200)
    score = found.scores["model"]
    columns = found.columns
    where = {h: int(np.searchsorted(found.steps, h)) for h in steps}
    group = np.array([held.groups[i] or held.names[i] for i in held.log.tolist()])
    measured = np.where(np.isnan(found.measured), score.predicted, found.measured)
    length = np.isfinite(found.measured).any(2).sum(1).min()
    with np.errstate(invalid="ignore"):
        regimes = {str(g): {c: _mean(score.error[group == g][..., k]) for k, c in enumerate(columns)} for g in dict.fromkeys(group)}
    looks = {c: realism(measured[:, :length, k], score.predicted[:, :length, k]) for k, c in enumerate(columns)} if length >= 4 else {}
    return {
        "units": dict(zip(columns, found.units, strict=True)),
        "mae": {c: float(score.mae.value[k]) for k, c in enumerate(columns)},
        "rmse": {c: float(score.rmse.value[k]) for k, c in enumerate(columns)},
        "error": {c: {str(h): float(score.over_horizon.value[where[h], k]) for h in steps} for k, c in enumerate(columns)},
        "regimes": regimes,
        "realism": looks,
        "diverged": int(score.diverged.sum()),
        "force_share": float(score.examination.force_share),
        "certificates": {f"{i}.{c.residual}": c.holds for i, c in enumerate(score.examination.certificates)},
    }


def _mean(error: np.ndarray) -> float:
    return float(np.nanmean(error)) if np.isfinite(error).any() or np.isinf(error).any() else float("nan")
