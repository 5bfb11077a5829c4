"""A hundred thousand ticks with faults: does the controller keep its deadline, its limits, its cost, and does it say why?

A cart-pole in MuJoCo is balanced along a moving reference at 100 Hz by iLQR under a calibrated model (``cart_pole_plant``). In most
episodes of ten seconds one fault is injected:

- slow: every plan takes ten times as long;
- stalled: every plan takes three hundred times as long;
- nan weights, wrong sign: the residual's weights become NaN, or it acts the other way round;
- nan observation, frozen observation: nothing else is observed for a fifth of a second, five times;
- hit: cart and pole get a push;
- far away: the reference moves the cart 2.5 m away and back, twice as far as any log goes.

The clock is simulated: it goes on with the CPU seconds of this thread, which other programs do not lengthen, and a plan counts with
the seconds that its computation took, times the slowdown. Beside it the same controller runs with the model without its residual
("identified"), and with the data sheet's model, through the same episodes and the same faults of clock, observation and plant; there
are no weights to break in them. Thread seconds also count moments in which a core is stopped by the host of a virtual computer: a
witness notes them (``stillness``), and missed ticks that were in time without them are told apart. Every model is given the force
that it is found to lack in the loop. Costs are summed from the fault to the end of its episode. What is asked for is that the learned part
never makes the loop more than 5 % worse than either.

    python benchmarks/faults.py --options.json benchmarks/results/faults.json --work /tmp/faults
"""

from __future__ import annotations

import copy
import gc
import json
import time as clock
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from cart_pole_plant import Calibrated, Plant, Truth, calibrate
from common import Options, machine, say, show
from numpy.typing import NDArray
from stillness import Witness

from residual_mbrl.controller import LQR, Controller, Hold, Level, Switch, calibrate_interval
from residual_mbrl.controller.chain import SOUND
from residual_mbrl.controller.planning import FAILED, LATE, PLAN_NOT_FINITE
from residual_mbrl.controller.rehearsal import SimulatedTime, SimulatedWorker
from residual_mbrl.controller.trust import BEYOND, NOT_FINITE, WORSE
from residual_mbrl.controller.watch import FROZEN, JUMP, NAN
from residual_mbrl.controller.worker import Job
from residual_mbrl.costs import QuadraticCost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.files import write_json
from residual_mbrl.planners.ilqr import ILQR, ILQROptions
from residual_mbrl.planners.limits import Limits
from residual_mbrl.planners.plan import Plan
from residual_mbrl.residuals import HeldForce

Array = NDArray[np.float64]

PERIOD, DEADLINE, STEPS = 0.01, 0.008, 100
EPISODE = 1000
"""Ticks."""
LIMITS = Limits(action_lower=-15.0, action_upper=15.0, action_rate=600.0)
STATE, ACTION, TERMINAL = np.array([10.0, 10.0, 0.5, 0.5]), np.array([0.01]), np.array([300.0, 1000.0, 100.0, 100.0])
SOLVES = ("slow", "stalled")
BOUND = (5.0, 1.0)
"""Of the force that a model is found to lack in the loop [N, N·m]."""
SETTLING = {"ours": 0.4, "identified": 0.4, "data sheet": 1.0}
"""Of its estimate [s]: what costs least without faults, on episodes of another seed; quicker ones make the data sheet's model unstable."""
ALLOWED = 1.05
"""Of the cost under the model without its residual."""

EXPECTED: Mapping[str, frozenset[str]] = {
    "none": frozenset(), "slow": frozenset({LATE}), "stalled": frozenset({LATE}),
    "nan weights": frozenset({NOT_FINITE, FAILED, PLAN_NOT_FINITE}), "wrong sign": frozenset({WORSE, BEYOND}),
    "nan observation": frozenset({NAN}), "frozen observation": frozenset({FROZEN}),
    "hit": frozenset({JUMP, BEYOND, WORSE}), "far away": frozenset({BEYOND, WORSE}),
}
"""Right reasons for a switch by fault."""


class FixedIterations(ILQR):
    """iLQR with as many iterations as it has been given, whatever the wall clock of a shared computer says."""

    def plan(self, *args: object, deadline: float | None = None, **options: object) -> Plan:
        """Return the plan."""
        return super().plan(*args, **options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Fault:
    """One fault in one episode."""

    kind: str
    start: int
    """Tick in the episode."""
    ticks: int


@dataclass
class Count:
    """What was seen of one kind of fault, under one controller."""

    episodes: int = 0
    missed: int = 0
    stood_still: int = 0
    """Missed ticks that were in time but for a pause of the core."""
    outside: int = 0
    costs: list[float] = field(default_factory=list)
    fell: int = 0
    explained: int = 0
    wrong: list[str] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    longest: float = 0.0
    laws: dict[str, int] = field(default_factory=dict)


class Reference:
    """Where the cart-pole shall be: to and fro, and 2.5 m away and back from a time on."""

    away = np.inf

    def __call__(self, time: Array) -> Array:
        """Return the goals at times [s], shape [T, 4]."""
        rate, far = 2 * np.pi / 6, 2 * np.pi / 5
        goal = np.zeros((len(time), 4))
        goal[:, 0], goal[:, 2], goal[:, 1] = 0.5 * np.sin(rate * time), 0.5 * rate * np.cos(rate * time), np.pi
        since = np.clip(np.nan_to_num(time - self.away, neginf=0.0), 0.0, 5.0)
        goal[:, 0] += 1.25 * (1 - np.cos(far * since))
        goal[:, 2] += 1.25 * far * np.sin(far * since)
        return goal


def make_controller(models: Mapping[str, ResidualDynamics], calibrated: Calibrated, clock: SimulatedTime, worker: SimulatedWorker,
                    reference: Reference, *, settling: float) -> Controller:
    """Put a controller with these models together, the best first, by which the regulator is made once and for all, before any fault."""
    held = calibrated.held
    pulled = {n: m.with_residuals([*m.corrections, HeldForce(bound=BOUND, dt=PERIOD)]) for n, m in models.items()}
    space = next(iter(pulled.values())).space
    weights = {"state": torch.tensor(STATE).float(), "action": torch.tensor(ACTION).float()}

    def cost(time: float) -> QuadraticCost:
        target = torch.from_numpy(reference(time + PERIOD * np.arange(STEPS + 1))).float()
        return QuadraticCost(space=space, **weights, terminal=torch.tensor(TERMINAL).float(), target=target, trajectory=True)

    levels = [Level(planner=FixedIterations(pulled[n], cost(0.0), ILQROptions(iterations=3), steps=STEPS, limits=LIMITS), name=n,
                    interval=calibrate_interval(m, held.measurements, held.commands[:-1])) for n, m in models.items()]
    still = QuadraticCost(space=space, **weights, target=torch.tensor([0.0, np.pi, 0.0, 0.0]).float())
    regulator = LQR(list(pulled.values())[-1], still)  # of the simplest model, which no dry friction holds at the reference
    return Controller(levels[0], fallback=[*levels[1:], regulator, Hold([0.0])], period=PERIOD, deadline=DEADLINE, cost=cost,
                      settling=settling, worker=worker, clock=clock)


class Injector:
    """Puts faults in and takes them out again."""

    def __init__(self, dynamics: ResidualDynamics, worker: SimulatedWorker) -> None:
        self._weights = {n: w.detach().clone() for n, w in dynamics.named_parameters()}
        self._dynamics, self._worker = dynamics, worker
        self._frozen: Array | None = None

    def clear(self) -> None:
        """Take the fault out."""
        self._worker.slowdown, self._frozen = 1.0, None
        with torch.no_grad():
            for name, weight in self._dynamics.named_parameters():
                weight.copy_(self._weights[name])

    def begin(self, kind: str) -> None:
        """Put in what lasts."""
        self._worker.slowdown = {"slow": 10.0, "stalled": 300.0}.get(kind, 1.0)
        with torch.no_grad():
            for weight in self._dynamics.parameters():
                if kind == "nan weights":
                    weight.fill_(float("nan"))
                elif kind == "wrong sign":  # springs and dry friction are odd functions of their weights
                    weight.neg_()

    def observe(self, kind: str, seen: Array, since: int) -> Array:
        """Return what is observed so many ticks after the fault began: every fifth of a second a fifth of a second of it."""
        faulty = 0 <= since < 200 and since % 40 < 20
        if kind == "nan observation" and faulty:
            return np.full_like(seen, np.nan)
        if kind == "frozen observation" and faulty:
            self._frozen = seen if self._frozen is None else self._frozen
            return self._frozen
        self._frozen = None
        return seen


class NotedWorker(SimulatedWorker):
    """Notes when it did its last jobs, at which the clock of the loop stands."""

    def __init__(self, clock: SimulatedTime) -> None:
        super().__init__(clock)
        self.done: deque[tuple[float, float]] = deque(maxlen=3)

    def submit(self, job: Job) -> None:
        """Do the job."""
        begun = clock.monotonic()
        super().submit(job)
        self.done.append((begun, clock.monotonic()))


class Bench:
    """One controller, and what was seen of it.

    Args:
        make: Puts it together.
        learned: The model whose weights are to be broken.
        witness: Of moments in which the core stood still.
    """

    def __init__(self, make: Callable[[SimulatedTime, SimulatedWorker, Reference], Controller], learned: ResidualDynamics,
                 witness: Witness) -> None:
        self.clock, self.reference, self.witness = SimulatedTime(), Reference(), witness
        self.worker = NotedWorker(self.clock)
        self.controller, self.injector = make(self.clock, self.worker, self.reference), Injector(learned, self.worker)

    def run(self, number: int, fault: Fault, seed: int) -> tuple[Count, list[Switch]]:
        """Run an episode from upright; after a gap in time the controller starts anew."""
        rng, plant, count = np.random.default_rng([seed, number]), Plant(Truth(), seed=seed * 100_003 + number), Count()
        controller, reference, begin = self.controller, self.reference, number * (EPISODE * PERIOD + 1.0)
        reference.away = begin + fault.start * PERIOD if fault.kind == "far away" else np.inf
        plant.state = reference(np.array([begin]))[0] + np.array([0.05, 0.05, 0.1, 0.1]) * rng.standard_normal(4)
        known, hit = len(controller.log), rng.uniform(-1, 1, 2)
        cost, before = 0.0, np.zeros(1)
        paused: dict[float, float] = {}
        for tick in range(EPISODE):
            time = begin + tick * PERIOD
            if tick == fault.start:
                self.injector.begin(fault.kind)
                if fault.kind == "hit":
                    plant.data.qvel[:] += np.sign(hit) * (np.array([0.5, 1.0]) + 0.5 * np.abs(hit))
            if tick == fault.start + fault.ticks:
                self.injector.clear()
            seen = self.injector.observe(fault.kind, plant.read(), tick - fault.start)
            self.clock.set(time)
            begun, logged = clock.monotonic(), len(controller.log)
            command = controller.act(seen, time)
            late = self.clock() - time
            if late > DEADLINE:
                count.missed += 1
                count.stood_still += late - self.still(begun, clock.monotonic()) <= DEADLINE
            if len(controller.log) > logged and fault.kind not in SOLVES:
                paused[time] = max(self.witness.still(*plan) for plan in self.worker.done)
            count.longest = max(count.longest, late)
            count.outside += bool(np.any(np.abs(command) > 15.0) or (tick > 0 and np.any(np.abs(command - before) > 6.0 + 1e-9)))
            plant.run(PERIOD, command, before, min(late, PERIOD))
            before = command
            if tick >= fault.start:
                count.laws[controller.last.law] = count.laws.get(controller.last.law, 0) + 1
                error = plant.state - reference(np.array([time + PERIOD]))[0]
                cost += PERIOD * float(STATE @ error**2 + ACTION @ command**2)
        self.injector.clear()
        count.fell, count.episodes, count.costs = int(abs(plant.state[1] - np.pi) > 1.0), 1, [cost]
        entries = list(controller.log)[known:]
        judge(count, fault, entries, begin, paused)
        return count, entries

    def still(self, begin: float, end: float) -> float:
        """Return the seconds of a tick, its planning left out, in which the core stood still."""
        inside = [t for plan in self.worker.done for t in plan if t > begin]
        times = [begin, *inside, end]
        return sum(self.witness.still(a, b) for a, b in zip(times[::2], times[1::2], strict=True))


def judge(count: Count, fault: Fault, entries: list[Switch], begin: float, paused: Mapping[float, float]) -> None:
    """Compare the log of an episode with what was injected; beside a late plan stands how long the core stood still in it."""
    started = begin + fault.start * PERIOD
    right = [e for e in entries if e.reason in EXPECTED[fault.kind] and e.time >= started - 1e-9]
    count.explained += bool(right)
    if right:
        count.delays.append(right[0].time - started)
    away = [e for e in entries if e.reason not in SOUND]
    count.wrong += [f"{e.reason}; core stood still for {1e3 * paused.get(e.time, 0.0):.1f} ms" if e.reason == LATE else e.reason
                    for e in away if e not in right]


def schedule(episodes: int, seed: int) -> list[Fault]:
    """Return one fault an episode, every kind equally often."""
    rng, kinds = np.random.default_rng(seed), list(EXPECTED)
    return [Fault(kinds[i % len(kinds)], int(rng.integers(200, 400)), int(rng.integers(100, 300))) for i in range(episodes)]


def main(options: Options, seed: int = 1, work: Path | None = None, minutes: float = np.inf) -> dict[str, object]:
    """Run the benchmark.

    Args:
        options: As of all benchmarks.
        seed: Of plants and faults.
        work: Folder for the episodes done, from which a run that was stopped goes on.
        minutes: When to stop and report what is done.
    """
    until = clock.monotonic() + 60 * minutes
    torch.set_num_threads(1)
    witness = Witness()
    models = calibrate(Truth(), PERIOD)  # the same at every call, so that a stopped run goes on with the models it had
    learned = copy.deepcopy(models.calibrated)
    chains = {"ours": {"calibrated": learned, "identified": models.identified}, "identified": {"identified": models.identified},
              "data sheet": {"data sheet": models.nominal}}
    benches = {n: Bench(partial(make_controller, chain, models, settling=SETTLING[n]), learned if n == "ours" else models.nominal,
                        witness)
               for n, chain in chains.items()}
    gc.collect()
    gc.freeze()  # a full collection over all that torch has loaded takes longer than a tick
    faults, done = schedule(9 if options.quick else 100, seed), Path("" if work is None else work / f"episodes_{seed}.jsonl")
    rows = [json.loads(line) for line in done.read_text().splitlines()] if done.is_file() else []
    for number, fault in enumerate(faults):
        if number < len(rows) or clock.monotonic() > until:
            continue
        begun = clock.monotonic()
        seen = {n: bench.run(number, fault, seed) for n, bench in benches.items()}
        still = witness.share(begun, clock.monotonic())
        rows.append({"fault": asdict(fault), "stood_still": still, **{n: asdict(count) for n, (count, _) in seen.items()},
                     "switches": [s.to_json() for s in seen["ours"][1]]})
        if work is not None:
            with done.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
        print(f"{number + 1} of {len(faults)}: {fault.kind}, cost " + ", ".join(f"{n} {c.costs[0]:.3f}" for n, (c, _) in seen.items()),
              flush=True)
    for bench in benches.values():
        bench.controller.close()
    witness.close()
    return summarise(rows[: len(faults)], options, seed)


def summarise(rows: list[dict[str, Any]], options: Options, seed: int) -> dict[str, object]:
    """Print and write what the episodes add up to."""
    kinds: dict[str, dict[str, Any]] = {k: row([r for r in rows if r["fault"]["kind"] == k]) for k in EXPECTED}
    report = {"machine": machine(), "period": PERIOD, "deadline": DEADLINE, "seed": seed, "ticks": len(rows) * EPISODE, "faults": kinds,
              "longest": max(r["ours"]["longest"] for r in rows), "switches": sum(len(r["switches"]) for r in rows),
              "stood_still": float(np.mean([r["stood_still"] for r in rows])) if rows[0]["stood_still"] is not None else None}
    lines = [[k, r["episodes"], r["missed"], r["stood_still"], r["outside"], r["cost"], r["identified"]["ratio"], r["identified"]["worst"],
              r["identified"]["above"], r["data sheet"]["ratio"], r["data sheet"]["above"], r["explained"], len(r["wrong"]),
              "" if r["delay"] is None else r["delay"]] for k, r in kinds.items() if r]
    header = ["fault", "episodes", "missed", "stood still", "outside", "cost", "/ identified", "worst", "> 1.05", "/ data sheet", "> 1.05",
              "logged",
              "other reasons", "delay [s]"]
    show(f"{len(rows) * EPISODE} ticks at 100 Hz, deadline 8 ms", header, lines)
    say(f"longest tick {1e3 * report['longest']:.2f} ms, {report['switches']} switches")  # type: ignore[operator]
    if options.json is not None:
        write_json(options.json, report)
    return report


def row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the episodes of one kind of fault add up to; nothing without any."""
    if not rows:
        return {}
    ours = [r["ours"] for r in rows]
    mine = np.array([c["costs"][0] for c in ours])
    delays = [d for c in ours for d in c["delays"]]
    found: dict[str, Any] = {n: int(sum(c[n] for c in ours)) for n in ("episodes", "missed", "stood_still", "outside", "fell", "explained")}
    found |= {"cost": float(mine.mean()), "wrong": [w for c in ours for w in c["wrong"]],
              "delay": float(np.median(delays)) if delays else None,
              "laws": {n: sum(c["laws"].get(n, 0) for c in ours) for c in ours for n in c["laws"]}}
    for peer in ("identified", "data sheet"):
        other = np.array([r[peer]["costs"][0] for r in rows])
        found[peer] = {"cost": float(other.mean()), "ratio": float(mine.sum() / other.sum()), "worst": float((mine / other).max()),
                       "above": int((mine > ALLOWED * other).sum()), "fell": int(sum(r[peer]["fell"] for r in rows)),
                       **{n: int(sum(r[peer][n] for r in rows)) for n in ("missed", "stood_still")}}
    return found


if __name__ == "__main__":
    tyro.cli(main)
