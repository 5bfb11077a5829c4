"""The drive's procedure on a slice of its training record that the fit has not seen: a second opinion on the test numbers.

The test slice of this record has been read twice (README), so it cannot judge the procedure any more. Here everything is fitted on the
first 10 s of the training record and the next 5 s are forecast, in windows and in one open loop. The residual is the one that
cross-validation over blocks of the whole training record chose, so these 5 s have taken part in that choice, and in nothing else.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
import tyro
from common import Options, Row, compare, show, write_rows

from residual_mbrl.calibration import make_recipe
from residual_mbrl.datasets import emps
from residual_mbrl.model import Model
from residual_mbrl.presets.drive import DRIVE
from residual_mbrl.windows import Windows, cut_windows

FITTED, FORECAST = (0, 10_000), (10_000, 15_000)
CHOSEN = "friction along the axis, by direction"


def rmse(model: Model, windows: Windows) -> float:
    """Root mean square error of the position [mm]."""
    error = model.predict(windows).measurements - windows.measurements
    return float(1e3 * error[..., 0].square().mean().sqrt())


def main(options: Options) -> None:
    """Fit on one part of the training record, forecast the next.

    Args:
        options: JSON file; a quick run is the same as a full one.
    """
    data = Path(os.environ.get("RESIDUAL_MBRL_DATA", "../shared/data")) / "emps"
    record = emps._record(data / "emps.npz")
    recipe = make_recipe(DRIVE)
    dt = recipe.dynamics.dt
    seen, ahead = (emps._trajectory(record, a, b, name) for (a, b), name in ((FITTED, "fitted"), (FORECAST, "forecast")))
    starts = [list(range(emps.WARM_UP, FITTED[1] - emps.WINDOW, emps.STRIDE))]
    fitted = cut_windows([seen], dt, horizon=emps.WINDOW, starts=starts)
    identified = recipe.model(recipe.identified(fitted))
    corrected = recipe.corrected(identified, recipe.candidates[CHOSEN], fitted)
    tests = {"2 s windows": cut_windows([ahead], dt, horizon=emps.WINDOW - 1, stride=500), "5 s open loop": cut_windows([ahead], dt)}
    rows: list[Row] = [compare(f"drive, forecast, {name}, identified+residual / identified", rmse(corrected, w), rmse(identified, w), "mm")
                       for name, w in tests.items()]
    write_rows(options.json, rows)
    show("forecast of 5 s after 10 s of training, RMSE [mm]", ("what", "identified+residual", "identified"),
         [(r.name, r.ours, r.peer) for r in rows])


if __name__ == "__main__":
    torch.set_num_threads(1)
    np.seterr(all="raise", under="ignore")
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Options]))
