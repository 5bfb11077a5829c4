"""Recovery from a disturbance planted in the middle of a flight: how wrong a fixed model is then, and how soon an adapted one is not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from residual_mbrl.adaptation import OnlineAdaptation
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.rollouts import rollout


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """One-step errors [noise standard deviations] around a change.

    Args:
        before: Mean error of the adapted model before the change.
        fixed: Mean error of the model that does not adapt, after it.
        after: Mean error of the adapted model in the last quarter.
        seconds: Time from the change until the parameter has come within a tenth of its change; infinite if it never does.
    """

    before: float
    fixed: float
    after: float
    seconds: float


def disturbance_recovery(dynamics: ResidualDynamics, state: torch.Tensor, actions: torch.Tensor, *, parameter: str, factor: float,
                         noise: float = 0.01, forgetting: float = 0.99, seed: int = 0) -> Recovery:
    """Fly a model one parameter of which changes half-way, and follow it online from noisy states.

    Args:
        dynamics: Plant and first model.
        state: First state, shape [nx] of the baseline.
        actions: Commands, shape [H, nu].
        parameter: What changes, as a payload changes a mass.
        factor: By which it changes.
        noise: Measurement noise, in standard deviations of each entry's change in a step.
        forgetting: Of the adaptation.
        seed: Of the noise.

    Raises:
        ValueError: if there is no such parameter, or its changed value lies outside its bounds.
    """
    own = dynamics.baseline.parameters[parameter]
    value, half = dynamics.values[parameter], len(actions) // 2
    changed = factor * value
    if not own.lower <= changed <= own.upper or changed == value:
        raise ValueError(f"disturbance {parameter}: expected a new value within [{own.lower}, {own.upper}], received {changed:g}")
    plain = dynamics.with_residuals([])
    with torch.no_grad():
        first = rollout(plain, state, actions[:half])
        last = rollout(plain, first[-1], actions[half:], {parameter: torch.tensor(changed, dtype=state.dtype)})
    states = torch.cat([first, last[1:]])
    space = plain.space
    spread = noise * space.difference(states[1:], states[:-1]).std(0).clamp_min(1e-9)
    shown = space.integrate(states, spread * torch.randn(len(states), space.ndx, generator=torch.Generator().manual_seed(seed),
                                                         dtype=states.dtype))
    tracker = OnlineAdaptation(plain, [own], noise=(2**0.5 * spread).tolist(), forgetting=forgetting)
    estimate, values = tracker.begin(shown[0].numpy(), actions[0].numpy()), []
    for action, after in zip(actions.numpy(), shown[1:].numpy(), strict=True):
        estimate = tracker.update(estimate, action, after)
        values.append(float(estimate.unknowns[0]))
    followed = torch.tensor([value, *values[:-1]], dtype=state.dtype)
    with torch.no_grad():
        each = {}
        for name, p in (("fixed", {}), ("adapted", {parameter: followed})):
            said = rollout(plain, shown[:-1], actions.unsqueeze(1), p)[:, 1]
            each[name] = (space.difference(shown[1:], said) / (2**0.5 * spread)).abs().mean(-1).numpy()
    near = np.abs(np.array(values[half:]) - changed) <= 0.1 * abs(changed - value)
    seconds = float(np.argmax(near) * plain.dt) if near.any() else float("inf")
    return Recovery(before=float(each["adapted"][half // 2 : half].mean()), fixed=float(each["fixed"][half:].mean()),
                    after=float(each["adapted"][half + half // 2 :].mean()), seconds=seconds)
