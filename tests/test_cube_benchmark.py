"""The benchmark's fast rollouts are the library's own, with the friction law and with learned parameters."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from residual_mbrl.rollouts import rollout
from residual_mbrl.trajectories import Trajectory

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def modules(monkeypatch):
    """The benchmark's modules by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("cube_model", "toss_rollout", "learned_contact", "tosses", "toss_search")
    yield {n: importlib.import_module(n) for n in names}
    for n in names:
        sys.modules.pop(n, None)


@pytest.fixture
def starts():
    """Cubes above the table that turn and fall."""
    rng = np.random.default_rng(0)
    q = rng.standard_normal((6, 4))
    return np.concatenate([rng.uniform(-0.1, 0.1, (6, 2)), rng.uniform(0.1, 0.13, (6, 1)), q / np.linalg.norm(q, axis=1, keepdims=True),
                           rng.uniform(-1, 1, (6, 3)), rng.uniform(-3, 3, (6, 3))], 1)


VALUES = {"friction:floor.slide": 0.22, "impact_friction": 0.15, "impact_speed": 0.5, "depth_rate": 100.0, "half_width.x": 0.052,
          "solref:floor.timeconst": 0.012}


def test_without_a_law_they_are_the_simulators(modules, starts):
    """Row by row, past a log's end its last row, and alike where cubes at rest are left where they are."""
    model, fast = modules["cube_model"], modules["toss_rollout"]
    simulator = model.build()
    values = {n: VALUES[n] for n in ("friction:floor.slide", "half_width.x", "solref:floor.timeconst")}
    rows = np.array([40, 60, 60, 90, 90, 90])
    found = fast.rollout(simulator, starts, rows, values, stop=False)
    fixed = {n: torch.tensor(x, dtype=torch.float64) for n, x in model.expand(simulator, values).items()}
    states = simulator.rollout(torch.from_numpy(starts), torch.zeros(6, 89, 0, dtype=torch.float64), fixed).numpy()
    for x, y, n in zip(found, states, rows, strict=True):
        assert np.abs(x[:n] - y[:n, :7]).max() < 1e-9
        assert np.array_equal(x[n - 1 :], np.broadcast_to(x[n - 1], x[n - 1 :].shape))
    assert np.abs(fast.rollout(simulator, starts, rows, values) - found).max() < 1e-3


def test_learned_parameters_are_those_of_the_residuals(modules, starts):
    """Which see the engine's contacts, not the corners."""
    model, fast, learned = (modules[n] for n in ("cube_model", "toss_rollout", "learned_contact"))
    simulator = model.build()
    values = {p.name: p.nominal for p in model.searched(simulator)} | VALUES
    networks = learned.make(values, steps=50)
    rng = np.random.default_rng(1)
    w = learned.weights(networks)
    learned.set_weights(networks, w + 0.3 * rng.standard_normal(len(w)))
    found = fast.rollout(simulator, starts, np.full(6, 40), values, learned.law_of(networks, simulator.dt), stop=False)
    states = rollout(learned.dynamics(simulator, values, networks), torch.from_numpy(starts), torch.zeros(6, 39, 0, dtype=torch.float64))
    assert np.abs(found - states[..., :7].detach().numpy()).max() < 1e-6


def test_law_is_between_sliding_and_impact(modules):
    """A corner that slides has the one friction, a hard hit the other."""
    fast = modules["toss_rollout"]
    one = lambda x: np.array([[x]])  # noqa: E731
    for falling, mu in ((0.0, 0.22), (50.0, 0.15)):
        assert fast.load_friction(fast.Corners(one(0.0), one(falling), one(1.0), one(True)), VALUES) == pytest.approx([mu])


def test_networks_start_as_the_law(modules):
    """To a hundredth, for all contacts that are likely."""
    fast, learned = modules["toss_rollout"], modules["learned_contact"]
    networks = learned.make(VALUES)
    rng = np.random.default_rng(0)
    n = 200
    corners = fast.Corners(-rng.uniform(0, 0.004, (n, 1)), rng.uniform(0, 1.2, (n, 1)), rng.uniform(0, 1.5, (n, 1)), np.ones((n, 1), bool))
    own = {"friction": np.full(n, 0.22), "timeconst": np.full(n, 0.012), "dampratio": np.full(n, 0.7)}
    found = learned.law_of(networks, 0.0068)(corners, own)
    assert np.abs(found["friction"] - fast.load_friction(corners, VALUES)).max() < 0.01
    assert found["timeconst"] == pytest.approx(own["timeconst"])


def test_search_finds_what_was_planted(modules):
    """Friction and the time constant of tosses of this very model, from values far off."""
    model, fast, tosses, search = (modules[n] for n in ("cube_model", "toss_rollout", "tosses", "toss_search"))
    simulator, rng, n, rows = model.build(), np.random.default_rng(3), 12, 60
    q = rng.standard_normal((n, 4))
    starts = np.concatenate([np.zeros((n, 2)), rng.uniform(0.12, 0.15, (n, 1)), q / np.linalg.norm(q, axis=1, keepdims=True),
                             rng.uniform(-1, 1, (n, 3)), rng.uniform(-3, 3, (n, 3))], 1)
    names, true = ("friction:floor.slide", "solref:floor.timeconst"), (0.24, 0.013)
    x = fast.rollout(simulator, starts, np.full(n, rows), dict(zip(names, true, strict=True)))
    time = simulator.dt * np.arange(rows)
    columns = tuple("abcdefghijklm")
    logs = [Trajectory(name=f"toss{k}", command_time=time, commands=np.zeros((rows, 0)), command_names=(), measurement_time=time,
                       measurements=np.concatenate([p, np.zeros((rows, 6))], 1), measurement_names=columns) for k, p in enumerate(x)]
    data = tosses.Tosses(logs, starts)

    def values(z):
        return {names[0]: 0.15 + 0.02 * z[0], names[1]: 0.02 + 0.0015 * z[1]}

    lines = []
    z = search.search(data, lambda z, d, r: d.poses(simulator, values(z), None, r), 2, scale=(0.0142, 0.292), tell=lines.append,
                      horizons=[search.Horizon(10, 8, 100), search.Horizon(30, 4, 100)])
    assert [values(z)[k] for k in names] == pytest.approx(true, rel=0.05)
    assert len(lines) >= 3
