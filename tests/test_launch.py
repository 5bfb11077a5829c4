"""How launches are shared out over threads, and what is remembered between processes."""

import json

import pytest
import torch
from problems import random_actions, random_states, randomise, residual, system

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.kernels import lanes, launch, native
from residual_mbrl.rollouts import rollout


@pytest.fixture
def fused(monkeypatch):
    """States and weight gradients of a model that no test has run before, with threads that always take part."""
    monkeypatch.setattr(launch, "THREAD_WORK", 0)
    monkeypatch.setattr(launch, "PATIENCE", float("inf"))
    from residual_mbrl.fused import system as fused_system

    monkeypatch.setattr(fused_system, "_engines", fused_system._engines.__class__())

    def run(batch=150, times=4):
        baseline = system("pendulum", integrator="semi_implicit")
        dynamics = ResidualDynamics(baseline, [randomise(residual("unstructured", baseline), scale=0.5)])
        x, u = random_states(baseline, batch), random_actions(baseline, batch, 20)
        found = []
        for _ in range(times):
            states = rollout(dynamics, x, u, backend="fused")
            found.append((states.detach(), *torch.autograd.grad(states.square().sum(), list(dynamics.parameters()))))
        return found

    return run


def test_threads_change_no_bit(fused, monkeypatch):
    """Neither states nor weight gradients depend on which thread took which worlds, or on how often a rollout was run."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    first, *others = fused(times=12)
    for found in others:
        for a, b in zip(found, first, strict=True):
            assert torch.equal(a, b)


def test_threads_of_our_own_compute_the_same(fused, monkeypatch):
    """Where torch has no threads that it could lend."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    lent = fused()[-1]
    monkeypatch.setattr(launch, "parallel_region", lambda: 0)
    for a, b in zip(fused()[-1], lent, strict=True):
        assert torch.equal(a, b)


def test_threads_pause_where_they_do_not_pay(monkeypatch):
    """After a launch that took longer than one thread alone, the next ones go alone, twice as many each time."""
    monkeypatch.setattr(launch, "PATIENCE", 0.0)
    pace, tried = launch.Pace(), []

    def call(values):
        tried.append(bool(values[launch.REGION]))

    for _ in range(30):
        values = [0] * len(launch.FIELDS)
        values[launch.THREADS], values[launch.REGION] = 2, 1
        pace.launch(call, values)
    assert [i for i, with_threads in enumerate(tried) if with_threads] == [2, 7, 20]


def test_lanes_are_measured_once(monkeypatch, tmp_path):
    """Another process finds the number where the first has left it, whatever else the file holds is kept."""
    monkeypatch.setattr(lanes.wp.config, "kernel_cache_dir", str(tmp_path))
    path = tmp_path / "residual_mbrl_lanes.json"
    path.write_text('{"another processor float": 8}')
    count = lanes.lane_count.__wrapped__("float")
    assert count in (8, 16)
    assert json.loads(path.read_text()) == {"another processor float": 8, f"{lanes._processor()} float": count}
    monkeypatch.setattr(lanes, "_seconds_per_world", None)
    assert lanes.lane_count.__wrapped__("float") == count


@pytest.mark.parametrize("text", ["", "no json", '{"x": 1'])
def test_a_broken_memory_is_measured_again(monkeypatch, tmp_path, text):
    """A file that is no JSON, or was cut off."""
    monkeypatch.setattr(lanes.wp.config, "kernel_cache_dir", str(tmp_path))
    monkeypatch.setattr(lanes, "_seconds_per_world", lambda real, count: count)
    (tmp_path / "residual_mbrl_lanes.json").write_text(text)
    assert lanes.lane_count.__wrapped__("double") == 4


def test_too_little_memory_says_how_much_was_needed():
    """And not only that there was none."""
    with pytest.raises(MemoryError, match=r"rollout: \d+ MiB were needed for an array of shape"):
        launch.aligned_zeros(2**40, 2**20)


def test_a_table_keeps_its_length():
    """More values than fields are refused before anything is written behind it."""
    table = native.Kernel("a[0] = 1;", 2).table()
    table([0, 7])
    assert list(table.table) == [1, 7]
    with pytest.raises(ValueError, match="size"):
        table([0, 7, 8])
