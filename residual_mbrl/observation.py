"""Simulating windows as their log would show them, from a first state that the sensor would show as the first sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from residual_mbrl.baselines import Values
from residual_mbrl.errors import ModelError
from residual_mbrl.sensors import Sensor
from residual_mbrl.windows import Windows

Roll = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Simulate from states [*batch, nx] under actions [*batch, H, nu] that came after others [*batch, L, nu]; returns [*batch, H + 1, nx]."""

NEWTON_STEPS = 10
"""Most Newton steps to a first state. Three or four are usual; long filters over fast motion take up to eight."""
DIFFERENCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Step of the Jacobian of the first sample by the state it comes from, for each dtype."""


class Prediction(NamedTuple):
    """What a model says of windows; a leading [M] where several copies were simulated."""

    measurements: Tensor
    """Predicted columns, shape [*M, B, H + 1, ny]."""
    states: Tensor
    """Simulated states, shape [*M, B, H + 1, nx]."""
    actions: Tensor
    """Commands as they reached the plant, shape [*M, B, H, nu]."""


def observe(roll: Roll, sensor: Sensor, windows: Windows, values: Values, *, copies: int | None = None,
            offsets: Tensor | None = None) -> Prediction:
    """Simulate windows and pass the states through the sensor.

    Delays, lags and filters of the commands start from those before the window, which ``windows.lead`` holds. Columns that
    were filtered or differentiated need the samples around them. The simulation then begins ``sensor.reach`` steps before
    each window and ends as many after it, under the commands there, and the state that it begins in is solved for: the one
    from which the sensor shows exactly the window's first sample.

    Args:
        roll: The simulation.
        sensor: From states to columns.
        windows: The data; only first samples, commands and times are used.
        values: Sensor parameters by name, each broadcastable to [*M, B].
        copies: M, where the simulation takes several copies of the model.
        offsets: Added to the first states, shape [*M, B, nx].
    """
    before, after = sensor.reach
    dt = windows.dt
    begin = max(before, windows.lead.shape[1])
    commands = _executed(sensor, windows, values, begin, after)
    lead, actions = commands[..., : begin - before, :], commands[..., begin - before :, :]
    batch = (len(windows),) if copies is None else (copies, len(windows))
    start = sensor.start(windows, values).expand(*batch, -1)
    if before:
        around = commands[..., : begin + after, :]
        start = _start_before(roll, sensor, windows, values, start, around.expand(*batch, *around.shape[-2:]))
    if offsets is not None:
        start = start + offsets
    states = roll(start, actions, lead)
    steps = torch.arange(-before, windows.horizon + after + 1, dtype=windows.time.dtype, device=windows.time.device)
    time = windows.time[:, :1] + dt * steps
    shown = sensor.measure(states, time, dt, values, lead=before)
    keep = slice(before, before + windows.horizon + 1)
    return Prediction(shown[..., keep, :], states[..., keep, :], actions[..., before : before + windows.horizon, :])


def _executed(sensor: Sensor, windows: Windows, values: Values, before: int, after: int) -> Tensor:
    """Return the commands as they reach the plant from ``before`` steps ahead of the windows to ``after`` steps behind them.

    Where the windows do not know as many, the earliest and the last known ones hold; shape [*M, B, before + H + after, nu].
    """
    sent = torch.cat([windows.lead, windows.actions, windows.trail[:, :after]], 1)
    first, last = sent[:, :1].expand(-1, before - windows.lead.shape[1], -1), sent[:, -1:]
    sent = torch.cat([first, sent, last.expand(-1, max(0, after - windows.trail.shape[1]), -1)], 1)
    dt, time = windows.dt, windows.time
    ahead = time[:, :1] - dt * torch.arange(before, 0, -1, dtype=time.dtype, device=time.device)
    behind = time[:, -1:] + dt * torch.arange(after, dtype=time.dtype, device=time.device)
    return sensor.command(sent, torch.cat([ahead, time[:, :-1], behind], 1), dt, values, lead=before)


def _start_before(roll: Roll, sensor: Sensor, windows: Windows, values: Values, guess: Tensor, actions: Tensor) -> Tensor:
    """Solve by Newton's method for the state ``before`` steps earlier that the sensor shows as the first sample.

    ``actions`` holds the commands that lead in to that state, then those of the ``before + after`` steps that the sample needs.
    One equation per state entry: the column that stands for it. The Jacobian is taken by differences, its copies side by
    side in one rollout. Iterations end when no step is larger than half the digits of the dtype, or after ``NEWTON_STEPS``,
    which only candidates without a solution should need. The last step is differentiable, which gives the implicit
    derivative of the solution.
    """
    before, after = sensor.reach
    space, dt = sensor.space, windows.dt
    places = [sensor.place(n) for n in space.state_names]
    if None in places or space.quaternions:
        raise ModelError("a sensor with filtered columns needs a column for every state entry, and no quaternions, to find first states")
    columns = [p for p in places if p is not None]
    target = windows.measurements[:, 0][:, columns]
    begin = actions.shape[-2] - before - after
    steps = torch.arange(-before, after + 1, dtype=windows.time.dtype, device=windows.time.device)
    time = windows.time[:, :1] + dt * steps
    q, v, rest = space.split(guess)
    x = torch.cat([q - before * dt * v, v, rest], -1)
    n, b, h = len(columns), len(windows), DIFFERENCE[x.dtype]
    largest, small = 0.5 * (1 + x.detach().abs()), torch.finfo(x.dtype).eps ** 0.5

    def shown(states: Tensor, repeat: int) -> Tensor:
        """Sample that the sensor shows ``before`` steps on, from states [*M, repeat * B, nx]."""
        tiled = actions.repeat(*(1,) * (actions.ndim - 3), repeat, 1, 1)
        repeated = {k: p.repeat(*(1,) * (p.ndim - 1), repeat) if p.ndim and p.shape[-1] == b and b > 1 else p for k, p in values.items()}
        simulated = roll(states, tiled[..., begin:, :], tiled[..., :begin, :])
        return sensor.measure(simulated, time.repeat(repeat, 1), dt, repeated, lead=before)[..., before, columns]

    with torch.no_grad():
        jacobian, nudges = torch.empty(0), h * torch.eye(n, dtype=x.dtype, device=x.device)
        for _ in range(NEWTON_STEPS - 1):
            moved = torch.cat([x, *(x + e for e in nudges)], -2)
            y = shown(moved, n + 1).unflatten(-2, (n + 1, b))
            jacobian = ((y[..., 1:, :, :] - y[..., :1, :, :]) / h).movedim(-3, -1)
            step = _newton_step(jacobian, target - y[..., 0, :, :], largest)
            x = x + step
            if bool((step.abs() <= small * (1 + x.abs())).all()):
                break
    return x + _newton_step(jacobian, target - shown(x, 1), largest)


def _newton_step(jacobian: Tensor, error: Tensor, largest: Tensor) -> Tensor:
    """Solve for a step that stays within bounds and finite: candidates far from the truth must not end the whole batch."""
    step = torch.linalg.solve_ex(jacobian, error)[0]
    return torch.minimum(torch.maximum(torch.nan_to_num(step, nan=0.0), -largest), largest)
