"""The CUDA kernels: run thread by thread on the CPU against torch, compiled for GPUs without one, and run where there is one."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import warp as wp
from problems import MOVING, random_actions, random_states, randomise, residual, system
from quadrotor_problem import quadrotor, random_flight

from residual_mbrl.dynamics import ResidualDynamics, ensemble
from residual_mbrl.fused import call as fused_call
from residual_mbrl.fused.devices import flat_of, thread_engine
from residual_mbrl.fused.inputs import constants_on, parameter_rows
from residual_mbrl.fused.model import prepare
from residual_mbrl.fused.system import engine
from residual_mbrl.kernels import cuda, cuda_launch
from residual_mbrl.kernels.cuda import Grid
from residual_mbrl.kernels.cuda_launch import Program, ThreadEngine
from residual_mbrl.kernels.system import Cost
from residual_mbrl.residuals import Unstructured
from residual_mbrl.rollouts import linearise, rollout


def model(name, kinds=("unstructured",), seed=0):
    baseline = quadrotor() if name == "quadrotor" else system(name, integrator="semi_implicit")
    return ResidualDynamics(baseline, [randomise(residual(k, baseline), scale=0.5, seed=seed + i) for i, k in enumerate(kinds)])


def inputs(dynamics, batch, horizon):
    if dynamics.space.quaternions:
        x, u = random_flight(batch)[:2]
        return x, u.unsqueeze(1).expand(-1, horizon, -1)
    return random_states(dynamics.baseline, batch) / 3, random_actions(dynamics.baseline, batch, horizon)


def values(dynamics, batch):
    """A value of each parameter for each world."""
    return {n: v * (1 + 0.01 * torch.arange(batch, dtype=torch.float64)) for n, v in dynamics.values.items()}


@pytest.fixture
def threads(monkeypatch):
    """Fused rollouts by the kernels of a GPU, wherever the tensors are."""
    def plan_on(built, like, horizon, members):
        return thread_engine(built, like.device).plan(like.shape[0], horizon, members)

    monkeypatch.setattr(fused_call, "plan_on", plan_on)


def by_kernels(dynamics, x, u, p):
    return rollout(dynamics, x, u, p, backend="fused")


def by_torch(dynamics, x, u, p):
    return rollout(dynamics, x, u, p, backend="torch")


def relative(found, exact):
    return float((found.double().cpu() - exact.cpu()).norm() / exact.norm().clamp_min(1e-12))


def gradients(run, dynamics, x, u, p):
    """States, and the gradients of a random weighting of them by everything."""
    x, u, p = x.clone().requires_grad_(), u.clone().requires_grad_(), {n: v.clone().requires_grad_() for n, v in p.items()}
    states = run(dynamics, x, u, p)
    by = torch.randn(states.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(states)
    wanted = {"state": x, "actions": u, **p, **dict(dynamics.named_parameters())}
    found = torch.autograd.grad((states * by).sum(), list(wanted.values()), allow_unused=True)
    return states.detach(), dict(zip(wanted, found, strict=True))


def assert_agrees(dynamics, x, u, device="cpu", dtype=torch.float32):
    """Within 1e-5 in values and 1e-4 in each gradient of float64 torch; in float64 to rounding."""
    p = values(dynamics, x.shape[0])
    exact, by_exact = gradients(by_torch, dynamics, x, u, p)
    found, by_found = gradients(by_kernels, dynamics.to(device), x.to(device, dtype), u.to(device, dtype),
                                {n: v.to(device, dtype) for n, v in p.items()})
    double = dtype == torch.float64
    assert relative(found, exact) < (1e-12 if double else 1e-5)
    for name, expected in by_exact.items():
        if expected is not None:
            assert relative(by_found[name], expected) < (1e-10 if double else 1e-4), name


@pytest.mark.parametrize(("name", "kinds", "batch", "horizon", "dtype"), [
    ("cartpole", ("unstructured",), 37, 19, torch.float32),
    ("double_pendulum", ("conservative", "dissipative"), 5, 9, torch.float32),
    ("pendulum", (), 3, 8, torch.float64),
    ("quadrotor", (), 2, 5, torch.float32),
])
@pytest.mark.usefixtures("threads")
def test_threads_compute_what_torch_does(name, kinds, batch, horizon, dtype):
    """States and every gradient, with lanes and rows left over, with and without networks."""
    dynamics = model(name, kinds)
    assert_agrees(dynamics, *inputs(dynamics, batch, horizon), dtype=dtype)


@pytest.mark.usefixtures("threads")
def test_members_have_weights_of_their_own():
    """As many groups of worlds as members, none of them full; weights' gradients stay apart."""
    dynamics = ensemble([model("cartpole", seed=s) for s in (0, 5)])
    x = random_states(dynamics.baseline, 2, 33) / 3
    u = random_actions(dynamics.baseline, 2, 33, 6)
    exact, by_exact = gradients(by_torch, dynamics, x, u, {})
    found, by_found = gradients(by_kernels, dynamics, x.float(), u.float(), {})
    assert relative(found, exact) < 1e-5
    for name, expected in by_exact.items():
        assert relative(by_found[name], expected) < 1e-4, name


@pytest.mark.usefixtures("threads")
def test_a_block_takes_several_groups_in_turn(monkeypatch):
    """A batch larger than the blocks in flight, whose scratch the groups share."""
    monkeypatch.setattr(cuda_launch, "GROUPS", 2)
    dynamics = model("cartpole")
    for w in dynamics.parameters():
        w.requires_grad_(False)
    x, u = inputs(dynamics, 5 * cuda_launch.WIDE + 3, 4)
    x.requires_grad_()
    exact = by_torch(dynamics, x, u, {})
    found = by_kernels(dynamics, x.float(), u.float(), {})
    by_exact, by_found = (torch.autograd.grad(s.square().sum(), x)[0] for s in (exact, found))
    assert relative(found.detach(), exact.detach()) < 1e-5
    assert relative(by_found, by_exact) < 1e-4


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.mark.parametrize(("name", "kinds"), [("cartpole", ("unstructured",)), ("double_pendulum", ("conservative", "dissipative")),
                                             ("quadrotor", ())])
def test_gpu_computes_what_torch_does(gpu, name, kinds):
    """The same as thread by thread, on the device."""
    dynamics = model(name, kinds)
    assert_agrees(dynamics, *inputs(dynamics, 37, 19), device=gpu)


@pytest.mark.parametrize("schedule", ["threads", "tiles"])
def test_repeated_call_on_a_gpu_is_a_replay(gpu, schedule):
    """Of other tensors each time, on the default stream and on another, with the results of the CPU."""
    by_threads, args = flattened(wide_cartpole(), *inputs(wide_cartpole(), 37, 9))
    engine = ThreadEngine(by_threads.system, by_threads.networks, by_threads.squashed, device=gpu, schedule=schedule)
    other = torch.cuda.Stream(gpu)
    for stream in (torch.cuda.current_stream(gpu), other):
        for n in range(4):
            changed = [a * (1 + 0.1 * n) for a in args]
            expected = by_threads.forward(*changed)
            other.wait_stream(torch.cuda.default_stream(gpu))
            with torch.cuda.stream(stream):
                moved = [a.to(gpu) for a in changed]
                states = engine.forward(*moved)
                by = torch.ones_like(states)
                found = engine.reverse(*moved[:3], moved[4], states, by, learn=True)
            stream.synchronize()
            assert relative(states, expected.double()) < 1e-5
            exact = by_threads.reverse(*changed[:3], changed[4], expected, by.cpu(), learn=True)
            for a, b in zip(found, exact, strict=True):
                assert relative(a, b.double()) < 1e-4
        with torch.cuda.stream(stream):
            assert engine.plan(37, 9).replays == {"forward", "reverse"}


class FakeGraph:
    """Replays what ran while it was captured, as a CUDA graph does."""

    made: ClassVar[list] = []

    def __init__(self):
        self.replays = 0
        self.made.append(self)

    def replay(self):
        self.replays += 1


def test_addresses_go_to_the_table_before_each_replay(monkeypatch):
    """The first call runs at once, the second is captured, all later ones are replays; entries of zero stay as they were laid out."""
    program = Program(torch.device("cpu"), [{"horizon": 5, "states": 7}, {"horizon": 5, "begin": 2}])
    issued = []
    program.issue.append(lambda: issued.append(program.table[:, [cuda.PLACES["actions"], cuda.PLACES["states"]]].tolist()))
    program.device = SimpleNamespace(type="cuda")
    empty = torch.empty

    def unpinned(*shape, pin_memory, **options):
        assert pin_memory
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", unpinned)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, capture_error_mode: nullcontext())
    for n in (11, 12, 13, 14):
        program.run(actions=n, states=0)
        assert program.table[:, cuda.PLACES["actions"]].tolist() == [n, n]
    assert issued == [[[11, 7], [11, 0]], [[12, 7], [12, 0]]]
    assert program.captured
    assert [g.replays for g in FakeGraph.made] == [3]


def running(x, u, r):
    return r[0] * (x[0] - r[1]) * (x[0] - r[1]) + x[1] * x[1] * 0.3 + 0.1 * u[0] * u[0]


def terminal(x, r):
    return r[0] * x[0] * x[0] + x[2] * x[3]


COST = Cost(running=running, terminal=terminal, nr=2, key="test")


@pytest.mark.parametrize("shared", [True, False])
def test_costs_and_their_gradients_are_those_of_torch(shared):
    """References for all worlds or for each, seeds, and the weights' gradients, over more than one chunk."""
    dynamics = model("cartpole")
    batch, horizon = 34, 11
    x, u = inputs(dynamics, batch, horizon)
    r = torch.rand(*(() if shared else (batch,)), horizon + 1, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    seeds = torch.rand(batch, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    x.requires_grad_()
    u.requires_grad_()
    states, every = by_torch(dynamics, x, u, {}), r.expand(batch, -1, -1)
    s, e, a, b = states[:, :-1].unbind(-1), states[:, -1].unbind(-1), every[:, :-1].unbind(-1), every[:, -1].unbind(-1)
    costs = running(s, u.unbind(-1), a).sum(-1) + terminal(e, b)
    by_x, by_u, *by_weights = torch.autograd.grad((costs * seeds).sum(), [x, u, *dynamics.parameters()])
    engine, args = flattened(dynamics, x.detach(), u.detach())
    alone = engine.cost(COST, *args, r.float())
    found, by = engine.cost_gradient(COST, *args, r.float(), seeds.float(), learn=True)
    assert torch.equal(alone, found)
    assert relative(found, costs.detach()) < 1e-5
    assert relative(by.initial, by_x) < 1e-4
    assert relative(by.actions, by_u) < 1e-4
    weights = [w for form in prepare(dynamics, x, u, {}).forms for w in form.weights()]
    order = [next(i for i, p in enumerate(dynamics.parameters()) if p is w) for w in weights]
    assert relative(by.weights[0], torch.cat([by_weights[i].flatten() for i in order])) < 1e-4


def flattened(dynamics, x, u):
    """The engine of a model for the CPU and its inputs in float32, as all of its kernels take them."""
    x, u = x.float(), u.float()
    ready = prepare(dynamics, x, u, {})
    weights = flat_of([w for form in ready.forms for w in form.weights()], 1, x)
    return thread_engine(engine(dynamics, ready, {}, x.dtype), x.device), (
        weights, constants_on(ready, x), parameter_rows(dynamics, ready, x, x.shape[:-1], {}).contiguous(), x, u.contiguous())


def test_linearisation_is_that_of_torch():
    """Jacobians of every step of every world."""
    dynamics = model("double_pendulum", ("conservative", "unstructured"))
    x, u = inputs(dynamics, 5, 7)
    states = by_torch(dynamics, x, u, {}).detach()
    engine, (flat, constants, parameters, _, actions) = flattened(dynamics, x, u)
    A, B = engine.linearise(flat, constants, parameters, states.float(), actions)
    with torch.no_grad():
        exact = linearise(dynamics, states, u, backend="torch")
    assert relative(A, exact.A) < 1e-5
    assert relative(B, exact.B) < 1e-5


@cache
def wide_cartpole():
    """A model that can be tiled."""
    force = Unstructured(nv=2, features=MOVING, sizes=[2, 2], bound=1.0, hidden=(12, 10))
    return ResidualDynamics(system("cartpole", integrator="semi_implicit"), [randomise(force, scale=0.3)])


def test_tiles_compute_what_threads_do():
    """Sweeps there and back with every gradient, two groups of worlds with a remainder, widths that fill no register."""
    by_threads, args = flattened(wide_cartpole(), *inputs(wide_cartpole(), 37, 6))
    by_tiles = ThreadEngine(by_threads.system, by_threads.networks, by_threads.squashed, device="cpu", schedule="tiles")
    weights, constants, parameters, _, actions = args
    states, expected = by_tiles.forward(*args), by_threads.forward(*args)
    assert relative(states, expected.double()) < 1e-6
    by = torch.randn(states.shape, generator=torch.Generator().manual_seed(3))
    found, exact = (e.reverse(weights, constants, parameters, actions, expected, by, learn=True) for e in (by_tiles, by_threads))
    for a, b in zip(found, exact, strict=True):
        assert relative(a, b.double()) < 1e-5


def test_tiles_of_other_networks_are_refused():
    """With what would fit."""
    engine = engine_of("cartpole")
    with pytest.raises(ValueError, match=r"one network with two hidden layers, received 'tiles' for networks of sizes \[\(.*, 8, 2\)\]"):
        ThreadEngine(engine.system, engine.networks, engine.squashed, device="cpu", schedule="tiles")


def test_running_out_of_memory_says_how_much_was_missing(monkeypatch):
    """Together with the shape that needed it."""
    dynamics = model("cartpole")
    x, u = inputs(dynamics, 3, 4)
    engine, args = flattened(dynamics, x, u)

    def none_left(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch, "zeros", none_left)
    with pytest.raises(MemoryError, match=r"fused rollout of 3 worlds over 4 steps needs 0\.\d\d GiB of scratch more on cpu"):
        engine.forward(*args)


def test_tensors_that_are_not_contiguous_are_refused():
    """A kernel would read other numbers."""
    dynamics = model("cartpole")
    x, u = inputs(dynamics, 3, 4)
    engine, (flat, constants, parameters, state, actions) = flattened(dynamics, x, u)
    with pytest.raises(ValueError, match=r"initial must be contiguous, received strides \(8, 2\) of shape \(3, 4\)"):
        engine.forward(flat, constants, parameters, torch.cat([state, state], -1)[:, ::2], actions)


@cache
def engine_of(name):
    dynamics = model(name, () if name == "quadrotor" else ("unstructured",))
    return flattened(dynamics, *inputs(dynamics, 1, 1))[0]


COMPILED = [*(("cartpole", k, a) for a in (80, 90)
              for k in ("forward", "reverse", "cost", "cost_gradient", "linearise", "pack", "hand_over")),
            *(("double_pendulum", k, 90) for k in ("forward", "reverse", "linearise")),
            ("tiles", "forward", 80), ("tiles", "reverse", 90), ("quadrotor", "forward", 90), ("quadrotor", "reverse", 90),
            pytest.param("quadrotor", "linearise", 90, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("name", "kind", "architecture"), COMPILED)
def test_kernels_compile_for_gpus(name, kind, architecture, tmp_path):
    """To machine code, with the compiler that comes with Warp; no device is needed."""
    wp.init()
    if architecture not in wp.get_cuda_supported_archs():
        pytest.skip(f"this build of Warp cannot compile for sm_{architecture}")
    if name == "tiles":
        engine = flattened(wide_cartpole(), *inputs(wide_cartpole(), 1, 1))[0]
        kernel = engine.tile_kernel(kind, engine.plan(1, 1).network, 32)
    else:
        kernel = engine_of(name).kernel(kind, Grid("float", 128, cuda_launch.CHUNK), COST if "cost" in kind else None)
    (path,) = kernel.compile_for(architecture, tmp_path)
    assert path.suffix == ".cubin"
    assert path.read_bytes()[:4] == b"\x7fELF"
