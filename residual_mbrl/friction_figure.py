"""The friction law that a calibration ended with, read off along its own data."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from residual_mbrl.calibration_figures import friction_curve
from residual_mbrl.model import Model
from residual_mbrl.physics.mechanical import MechanicalBaseline
from residual_mbrl.residuals import DryFriction
from residual_mbrl.windows import Windows

POINTS = 121
LEVELS = (0.1, 0.5, 0.9)

DISTINCT = 10
"""Fewer values of the baseline's limit than this are a constant, or one for each direction."""


def learned_friction(model: Model, windows: Windows) -> dict[str, tuple[Figure, str]]:
    """Draw the dry-friction limit over velocity with and without the residual, at three loads from the data.

    Returns an empty dict for plants with more than one degree of freedom and for those without dry friction. The loads are
    visited states and commands at the 10, 50 and 90 % quantiles of the baseline's limit, or of the position where the limit knows no load.

    Args:
        model: The calibrated model.
        windows: Data to take states and commands from.
    """
    dynamics, baseline = model.dynamics, model.dynamics.baseline
    if not isinstance(baseline, MechanicalBaseline) or baseline.space.nv != 1:
        return {}
    prediction = model.predict(windows)
    states, actions = prediction.states[:, :-1].flatten(0, 1), prediction.actions.flatten(0, 1)
    p = dynamics.resolve(None, states)
    q, v, _ = baseline.space.split(states[..., : baseline.space.nx])
    limit = baseline.frictionloss(q, v, actions, p)
    if limit is None:
        return {}
    limit = limit.expand(*v.shape)[..., 0]
    if len(limit.round(decimals=6).unique()) < DISTINCT:
        limit = q[..., 0]  # a limit that knows no load: spread the curves over positions instead
    chosen = [int((limit - torch.quantile(limit[:: max(1, len(limit) // 100_000)], level)).abs().argmin()) for level in LEVELS]
    fastest = float(torch.quantile(v.abs()[:: max(1, len(v) // 100_000)], 0.99))
    speed = torch.linspace(-fastest, fastest, POINTS, dtype=states.dtype)
    plain, corrected, labels = [], [], []
    unit = baseline.space.unit(baseline.space.velocity[0])
    force = "N" if unit == "m/s" else "N·m"
    for i in chosen:
        x = states[i].repeat(POINTS, 1)
        x[:, baseline.space.nq] = speed
        u = actions[i].expand(POINTS, -1)
        alone = baseline.frictionloss(*baseline.space.split(x[:, : baseline.space.nx])[:2], u, p)
        assert alone is not None  # noqa: S101
        added = torch.zeros(POINTS, 1, dtype=x.dtype)
        with torch.no_grad():
            for residual, context in zip(dynamics.residuals, dynamics.contexts(x, u, p), strict=True):
                if isinstance(residual, DryFriction):
                    added = added + residual(context)
        plain.append(alone.expand(POINTS, 1)[:, 0])
        corrected.append((alone + added).clamp_min(0)[:, 0])
        labels.append(f"at {baseline.space.position[0]} {float(q[i, 0]):.2f} {baseline.space.unit(baseline.space.position[0])}")
    figure = friction_curve(speed.numpy(), torch.stack(plain).numpy(), torch.stack(corrected).numpy(), labels=labels, velocity_unit=unit,
                            force_unit=force)
    return {"friction": (figure, "Dry-friction limit over velocity at three loads from the data, without and with the residual.")}
