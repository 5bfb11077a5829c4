"""Exploration that must not leave a rail: violations and the data that parameters take, with a veto and without, on cart-poles.

Each seed is another cart-pole of a stated prior: masses and length within 30 % of the nominal ones, friction from half to twice. ``learn``
excites it by random levels of the full force for some seconds and identifies it after every second. With a veto an action passes only if
the model as it is known, with a brake after the action, stays on the rail less a margin: the half width of an interval that holds all but a
stated part of the prediction errors of plants drawn from the prior, simulated before anything is done to the plant. A seed violates if it
leaves the rail at any step. Stated is at most 5 %; the number of violations is tested against it by the binomial distribution, and its
chance bounded from above on all plants explored with the veto, further ones among them that are not identified.

    python benchmarks/safe_exploration.py --json benchmarks/results/safe_exploration.json
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from common import Options as CommonOptions
from common import machine, say, show
from excitation import NOISE, RAIL, experiment
from numpy.typing import NDArray
from scipy.stats import binomtest

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.exploration import Veto, random_excitation
from residual_mbrl.files import write_json
from residual_mbrl.identification import IdentifyOptions
from residual_mbrl.learning import Budget, LearnOptions, ModelPlant, Planning, learn
from residual_mbrl.learning.acting import Guard
from residual_mbrl.planners import ILQROptions
from residual_mbrl.policies import LinearPolicy
from residual_mbrl.rollouts import rollout

Array = NDArray[np.float64]
FREE = ("cart_mass", "pole_mass", "length", "cart_viscous", "pole_viscous")
STATED = 0.05
"""Of seeds that may leave the rail."""
AHEAD = 30
"""Steps that the veto looks ahead."""
HOLD = 0.12


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    """Options of this benchmark.

    Args:
        seeds: Plants.
        others: Further plants that are only explored, with the veto: of so few the chance is bounded.
        rounds: Of a second each.
        error: Of parameters, whose seconds of data are compared.
    """

    seeds: int = 20
    others: int = 60
    rounds: int = 6
    error: float = 0.02


def drawn(model: ResidualDynamics, seed: int) -> dict[str, float]:
    """Return the parameters of a seed's plant, from the prior about the nominal ones."""
    rng = np.random.default_rng(seed)
    factor = {n: rng.uniform(0.7, 1.3) if not n.endswith("viscous") else 2 ** rng.uniform(-1, 1) for n in FREE}
    return {n: model.values[n] * float(f) for n, f in factor.items()}


def brake(model: ResidualDynamics) -> LinearPolicy:
    """Return what brings the cart back: a spring and a damper."""
    gain, rest, none = torch.tensor([[15.0, 0.0, 8.0, 0.0]]).double(), torch.zeros(4).double(), torch.zeros(1).double()
    return LinearPolicy.feedback(space=model.space, gain=gain, target=rest, action=none, low=-10.0, high=10.0)


def margin(model: ResidualDynamics, *, plants: int = 200, level: float = 0.99) -> Array:
    """Return half widths of the intervals of the cart's place 1 to ``AHEAD`` steps ahead, shape [AHEAD, 4].

    Plants are drawn from the prior, states about rest, the first one as measured; an action of anything and the brake follow.
    """
    generator, policy, rng = torch.Generator().manual_seed(1), brake(model), np.random.default_rng(1)
    values = [drawn(model, 100_000 + k) for k in range(plants)]
    parameters = {n: torch.tensor([[v[n]] for v in values], dtype=torch.float64) for n in FREE}
    states = torch.randn(plants, 20, 4, generator=generator, dtype=torch.float64) * torch.tensor([0.2, 0.4, 0.8, 2.0])
    measured = states + torch.from_numpy(rng.standard_normal(states.shape)) * torch.tensor(NOISE, dtype=torch.float64)
    action = 10 * (2 * torch.rand(plants, 20, 1, generator=generator, dtype=torch.float64) - 1)
    with torch.no_grad():
        real, seen, u, w, off = states, measured, action, action, []
        for _ in range(AHEAD):
            real = rollout(model, real, u.unsqueeze(-2), parameters)[..., -1, :]
            seen = rollout(model, seen, w.unsqueeze(-2))[..., -1, :]
            off.append((real - seen)[..., 0].abs().flatten())
            u, w = policy(real), policy(seen)
    half = torch.stack(off).quantile(level, dim=-1).numpy()
    return np.stack([half, *[np.zeros(AHEAD)] * 3], -1)


class Railed(ModelPlant):
    """A plant that notes how far its cart has been."""

    furthest = 0.0

    def step(self, action: Array) -> tuple[Array, bool]:
        """Act."""
        found = super().step(action)
        assert self._state is not None
        self.furthest = max(self.furthest, abs(float(self._state[0])))
        return found


def explored(model: ResidualDynamics, task: Any, seed: int, options: Options, guard: Guard | None, *,
             identifies: bool = True) -> tuple[list[float], float]:
    """Return the error of the parameters after each second, and how far the cart has been [m]."""
    true = drawn(model, seed)
    plant, errors = Railed(model.with_values(true), NOISE), list[float]()
    settings = LearnOptions(window=50, stride=50, noise=NOISE, seed=seed, fit=None, identify=None if not identifies else
                            IdentifyOptions(free=list(FREE), candidates=1, starts=1, iterations=40, horizons=[25], start_std=NOISE,
                                            loss="linear"))

    def excite(dynamics: ResidualDynamics, task: Any, steps: int, drawn_seed: int) -> Array:
        return random_excitation(dynamics, task, steps, drawn_seed, hold=HOLD)

    def note(made: Any) -> None:
        errors.append(float(np.sqrt(np.mean([(made.values[n] / x - 1) ** 2 for n, x in true.items()]))))

    with tempfile.TemporaryDirectory() as folder:
        budget = Budget(rounds=options.rounds, steps=50, excited=options.rounds)
        never = Planning(steps=2, options=ILQROptions(iterations=1))
        learn(plant, model, task, never, budget, Path(folder), settings, excite=excite, guard=guard, progress=note)
    return errors, plant.furthest


def seconds_to(errors: list[list[float]], error: float) -> float | None:
    """Return the seconds after which the median error is below one; None where it never is."""
    middle = np.median(np.array(errors), 0)
    below = np.flatnonzero(middle <= error)
    if not len(below):
        return None
    if (k := int(below[0])) == 0:
        return 1.0
    share = np.log(middle[k - 1] / error) / np.log(middle[k - 1] / middle[k])
    return float(np.exp(np.log(k) + share * np.log((k + 1) / k)))


def main(options: Options) -> None:
    torch.set_num_threads(1)
    model, _, task = experiment()
    half, policy, rows = margin(model), brake(model), []
    vetoes: list[Veto] = []

    def guard(act: Any, dynamics: ResidualDynamics) -> Any:
        vetoes.append(Veto(act, dynamics, policy, np.array([RAIL, np.inf, np.inf, np.inf]), horizon=AHEAD, margin=half))
        return vetoes[-1]

    for name, given in (("veto", guard), ("none", None)):
        found = [explored(model, task, seed, options, given) for seed in range(4 if options.quick else options.seeds)]
        left = sum(far > RAIL for _, far in found)
        errors = [e for e, _ in found]
        rows.append({"guard": name, "seeds": len(found), "left_rail": left, "furthest": max(far for _, far in found),
                     "p_above_stated": float(binomtest(left, len(found), STATED, alternative="greater").pvalue),
                     "median_error": np.median(np.array(errors), 0).tolist(), "seconds_to_error": seconds_to(errors, options.error)})
    header = ["guard", "left the rail", "furthest [m]", f"p of so many at {STATED:g}", f"seconds to {options.error:g}"]
    show("Exploration on a rail", header,
         [(r["guard"], f"{r['left_rail']} of {r['seeds']}", r["furthest"], r["p_above_stated"], r["seconds_to_error"]) for r in rows])
    further = range(1000, 1004 if options.quick else 1000 + options.others)
    others = [explored(model, task, seed, options, guard, identifies=False)[1] for seed in further]
    explorations, left = rows[0]["seeds"] + len(others), rows[0]["left_rail"] + sum(far > RAIL for far in others)
    bound = float(binomtest(left, explorations, alternative="less").proportion_ci(0.95).high)
    say(f"with the veto {left} of {explorations} plants left the rail: the chance is below {bound:.3f} (95 %); {max(others):.4f} m at most")
    share = sum(v.vetoed for v in vetoes) / (len(vetoes) * 50)
    say(f"actions vetoed: {100 * share:.0f} %; margin after {AHEAD} steps {half[-1, 0]:.3f} m")
    say("median error after each second: " + "; ".join(f"{r['guard']} {', '.join(f'{e:.3g}' for e in r['median_error'])}" for r in rows))
    if options.json:
        write_json(options.json, {"machine": machine(), "stated": STATED, "rail": RAIL, "margin": half[:, 0].tolist(), "vetoed": share,
                                  "all_with_veto": {"plants": explorations, "left_rail": left, "chance_below": bound},
                                  "error": options.error, "rows": rows})


if __name__ == "__main__":
    main(tyro.cli(Options))
