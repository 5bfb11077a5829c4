"""Any step function as a baseline: the equations it holds, their gradients, and what becomes of the batch when it misbehaves."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import timeit
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from black_boxes import DT, cannot_be_made, exits, has_torch, misbehaves, misbehaving_batch, names_its_thread, pendulum
from torch import Tensor

from residual_mbrl.baselines import Port
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import ModelError
from residual_mbrl.physics.black_box import BlackBox
from residual_mbrl.physics.pendulum import PARAMETERS, SPACE, Pendulum
from residual_mbrl.residuals import Feature, StateDelta, Unstructured
from residual_mbrl.rollouts import linearise, rollout
from residual_mbrl.status import StepStatus

TESTS = Path(__file__).parent
SPEED = (Feature(source="velocity"),)


def inputs(*batch: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state, action, force = (torch.randn((*batch, n), generator=generator, dtype=torch.float64) for n in (2, 1, 1))
    return state.to(dtype), action.to(dtype), force.to(dtype)


@pytest.mark.parametrize(("workers", "mode"), [(0, "threads"), (2, "threads"), (2, "processes")])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_steps_what_it_is_given(workers: int, mode: Any, batched: bool, batch: tuple[int, ...]) -> None:
    """However it is run, with a force and parameters or without, the function's own result; the caller's state is not written to."""
    state, action, force = inputs(*batch)
    before, mass = state.clone(), 0.5 + state[..., 0].abs()
    with BlackBox(pendulum, SPACE, DT, parameters=PARAMETERS, force=True, batched=batched, workers=workers, mode=mode) as box:
        found = box.step(state, action, force, {"inertia": mass})
        torch.testing.assert_close(found, Pendulum().step(state, action, force, {"inertia": mass}), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(box.step(state, action), Pendulum().step(state, action), rtol=1e-12, atol=1e-12)
        assert torch.equal(state, before)
        assert box.status == [StepStatus.OK] * state[..., 0].numel()


def test_ports_follow_from_what_the_step_takes() -> None:
    """State and action always; force and live parameters where they are declared."""
    plain, full = BlackBox(pendulum, SPACE, DT), BlackBox(pendulum, SPACE, DT, parameters=PARAMETERS, force=True)
    assert plain.ports == {Port.ACTION, Port.STATE}
    assert full.ports == set(Port)
    assert full.live == set(PARAMETERS.names)
    push = Unstructured(nv=1, features=SPEED, bound=1.0)
    with pytest.raises(ModelError, match="BlackBox"):
        ResidualDynamics(plain, [push])


@pytest.mark.parametrize("batched", [False, True])
def test_gradients_by_differences(batched: bool) -> None:
    """State, action, force and parameters agree with autograd of the same equations to 1e-6."""
    leaves = [x.requires_grad_() for x in inputs(3)]
    gravity = torch.tensor(8.0, dtype=torch.float64, requires_grad=True)
    box = BlackBox(pendulum, SPACE, DT, parameters=PARAMETERS, force=True, batched=batched)
    for found, exact in zip(*(torch.autograd.grad(b.step(*leaves, {"gravity_moment": gravity}).square().sum(), [*leaves, gravity])
                              for b in (box, Pendulum())), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-8)


def test_jacobian() -> None:
    """The Jacobian on the tangent space, for what torch cannot take in forward mode."""
    state, action, _ = inputs(4)
    found = BlackBox(pendulum, SPACE, DT, parameters=PARAMETERS).jacobian(state, action, None, {"inertia": torch.tensor(1.5).double()})
    exact = torch.func.vmap(torch.func.jacfwd(lambda x, u: Pendulum().step(x, u, None, {"inertia": torch.tensor(1.5).double()}),
                                              (0, 1)))(state, action)
    torch.testing.assert_close(found.state, exact[0], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found.action, exact[1], rtol=1e-7, atol=1e-9)
    assert found.parameters["inertia"].shape == (4, 2)


def test_linearised_along_a_rollout() -> None:
    """With a residual on it, its linearisation is that of the equations with the same residual."""
    delta = StateDelta(nv=1, features=SPEED, bound=0.5, hidden=(4,))
    state, action, _ = inputs(3)
    actions = action[:, None].expand(3, 4, 1)
    states = rollout(ResidualDynamics(Pendulum(), [delta]).double(), state, actions)
    found, exact = (linearise(ResidualDynamics(b, [delta]).double(), states, actions) for b in (BlackBox(pendulum, SPACE, DT), Pendulum()))
    torch.testing.assert_close(found.A, exact.A, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.B, exact.B, rtol=1e-6, atol=1e-8)


def test_no_gradients_is_an_error_not_zeros() -> None:
    """A box made without gradients says so, in reverse mode and for its Jacobian; values it still gives."""
    box, (state, action, _) = BlackBox(pendulum, SPACE, DT, gradients=None), inputs(3)
    after = box.step(state.requires_grad_(), action)
    torch.testing.assert_close(after, Pendulum().step(state, action))
    with pytest.raises(ModelError, match="has no gradients"):
        after.sum().backward()
    with pytest.raises(ModelError, match="has no gradients"):
        box.jacobian(state.detach(), action)


def test_a_residual_on_its_state_port() -> None:
    """A state correction joins it, rolls out in float32, and gets gradients through several steps."""
    delta = StateDelta(nv=1, features=SPEED, bound=0.5, hidden=(4,))
    dynamics = ResidualDynamics(BlackBox(pendulum, SPACE, DT), [delta]).float()
    state, action, _ = inputs(3, dtype=torch.float32)
    states = rollout(dynamics, state, action[:, None].expand(3, 5, 1))
    states.square().sum().backward()
    assert states.dtype is torch.float32
    assert all(w.grad is not None and torch.isfinite(w.grad).all() for w in delta.parameters())


MISBEHAVIOUR = {1: (StepStatus.RAISED, "ArithmeticError: the solver gave up"), 2: (StepStatus.NOT_FINITE, "not finite"),
                3: (StepStatus.REJECTED, r"expected a next state of shape \(.*2,\), received shape \(.*5,\)"),
                7: (StepStatus.RAISED, "SystemExit: leaving")}
FATAL = {4: (StepStatus.CRASHED, "exit code 7"), 5: (StepStatus.CRASHED, "SIGSEGV"), 6: (StepStatus.TIMED_OUT, "longer than 0.5 s")}


def check_isolated(box: BlackBox, kinds: list[int], expected: dict[int, tuple[StepStatus, str]]) -> None:
    """Step worlds of these kinds; those of kind 0 must go on, all others be NaN, with status and message."""
    state, action = torch.zeros(len(kinds), 2, dtype=torch.float64), torch.tensor(kinds, dtype=torch.float64)[:, None]
    after = box.step(state, action)
    well = action[:, 0] == 0
    assert torch.equal(after[well], torch.ones_like(after[well]))
    assert after[~well].isnan().all()
    assert box.status == [expected[k][0] if k else StepStatus.OK for k in kinds]
    assert [f.world for f in box.failures] == [i for i, k in enumerate(kinds) if k]
    for failure in box.failures:
        assert re.search(expected[int(failure.action[0])][1], failure.message), failure.message


@pytest.mark.parametrize(("workers", "mode"), [(0, "threads"), (3, "threads"), (2, "processes")])
@pytest.mark.parametrize("batched", [False, True])
def test_bad_results_are_isolated(workers: int, mode: Any, batched: bool) -> None:
    """An exception, a wrong shape, NaN and an exit make NaN of their own world alone, with the traceback of where it happened."""
    step = misbehaving_batch if batched else misbehaves
    kinds = {k: e for k, e in MISBEHAVIOUR.items() if not (batched and k == 3)}
    with BlackBox(step, SPACE, DT, batched=batched, workers=workers, mode=mode) as box:
        check_isolated(box, [0, *kinds, 0, 0, 1], MISBEHAVIOUR)
        raised = next(f for f in box.failures if f.status is StepStatus.RAISED)
        assert 'raise ArithmeticError("the solver gave up")' in raised.traceback


@pytest.mark.parametrize("batched", [False, True])
def test_crashes_and_hangs_are_isolated(batched: bool) -> None:
    """os._exit, a segmentation fault and a hang cost their own world; its stack is in the report, and the box goes on."""
    step = misbehaving_batch if batched else misbehaves
    with BlackBox(step, SPACE, DT, batched=batched, workers=2, mode="processes", timeout=0.5) as box:
        check_isolated(box, [0, 4, 0, 5, 0, 6, 0], FATAL)
        by_status = {f.message: f.traceback for f in box.failures}
        for message, trace in by_status.items():
            assert "exit code" in message or "in misbehaves" in trace, message
        check_isolated(box, [0, 0, 0], FATAL)


def test_a_dead_world_is_not_stepped_again_and_keeps_its_reason() -> None:
    """In a rollout the state after a failure is NaN, the simulator is spared it, and the report tells the first cause."""
    calls: list[float] = []

    def step(state: np.ndarray, action: np.ndarray) -> np.ndarray:
        calls.append(state[0])
        return misbehaves(state, action)

    box = BlackBox(step, SPACE, DT)
    actions = torch.zeros(2, 4, 1, dtype=torch.float64)
    actions[1, 1] = 1
    states = box.rollout(torch.zeros(2, 2, dtype=torch.float64), actions)
    assert states[0, :, 0].tolist() == [0, 1, 2, 3, 4]
    assert states[1, :, 0].isnan().tolist() == [False, False, True, True, True]
    assert len(calls) == 6
    (failure,) = box.failures
    assert (failure.world, failure.status, failure.state.tolist()) == (1, StepStatus.RAISED, [1.0, 1.0])


def test_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    """The first failure of a kind is logged with its traceback, later ones are not."""
    box = BlackBox(misbehaves, SPACE, DT)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            box.step(torch.zeros(2, 2).double(), torch.ones(2, 1).double())
    assert len(caplog.records) == 1
    assert "the solver gave up" in caplog.text
    assert "in misbehaves" in caplog.text


def test_a_simulator_that_cannot_be_made() -> None:
    """The worker's own traceback, whether its factory raises or ends the process."""
    for factory, message in ((cannot_be_made, "no licence for this simulator"), (exits, "exit code 3 while it started")):
        with BlackBox(None, SPACE, DT, factory=factory, workers=2, mode="processes") as box, pytest.raises(ModelError, match=message):
            box.step(*inputs(3)[:2])


def test_what_cannot_be_pickled_is_refused() -> None:
    """A closure cannot go to a process; the message says what can."""
    box = BlackBox(lambda s, a: s, SPACE, DT, workers=1, mode="processes")
    with pytest.raises(ModelError, match="cannot be sent to a worker process.*factory="):
        box.step(*inputs(3)[:2])


@pytest.mark.parametrize("mode", ["threads", "processes"])
def test_each_worker_makes_a_simulator_of_its_own(mode: Any) -> None:
    """Simulators with buffers of their own run side by side."""
    with BlackBox(None, SPACE, DT, factory=names_its_thread, workers=2, mode=mode) as box:
        state, action, _ = inputs(8)
        after = box.step(state, action)
    assert len(after.unique(dim=0)) == 2
    assert ((after[:, 0] == os.getpid()) == (mode == "threads")).all()


def test_threads_run_side_by_side() -> None:
    """Steps that wait outside the interpreter overlap."""
    box, (state, action, _) = BlackBox(None, SPACE, DT, factory=names_its_thread, workers=4), inputs(8)
    box.step(state, action)
    assert timeit.timeit(lambda: box.step(state, action), number=1) < 0.75 * 8 * 0.02


def test_workers_end_with_the_box() -> None:
    """Closed, or forgotten, its processes are gone; a closed box starts them again when it is used."""
    state, action, _ = inputs(2)
    box = BlackBox(None, SPACE, DT, factory=names_its_thread, workers=1, mode="processes")
    first = int(box.step(state, action)[0, 0])
    box.close()
    second = int(box.step(state, action)[0, 0])
    assert second != first
    del box
    for pid in (first, second):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import black_boxes
if __name__ == "__main__":
    import torch
    from residual_mbrl.physics.black_box import BlackBox
    from residual_mbrl.physics.pendulum import SPACE
    box = BlackBox(black_boxes.misbehaves, SPACE, 0.01, workers=2, mode="processes")
    box.step(torch.zeros(2, 2).double(), torch.zeros(2, 1).double())
    print([w.process.pid for w in box._runner._workers], flush=True)
    {then}
"""


def script(path: Path, then: str) -> subprocess.Popen[str]:
    """Start a script that has stepped in two worker processes and then does something."""
    path.write_text(SCRIPT.format(tests=str(TESTS), then=then), encoding="utf-8")
    return subprocess.Popen([sys.executable, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            start_new_session=True)


def alive(pids: list[int]) -> list[int]:
    """Those of these processes that are neither gone nor waiting to be reaped."""
    found = []
    for pid in pids:
        try:
            found += [pid] if Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" else []
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("ending", ["exit", "interrupt", "kill"])
def test_no_worker_is_left_behind(ending: str, tmp_path: Path) -> None:
    """After the script's end, Ctrl-C in the middle of a step, or its death, workers are gone; Ctrl-C gives one traceback, the script's."""
    hang = "box.step(torch.zeros(2, 2).double(), torch.full((2, 1), 6.0).double())" if ending == "interrupt" else "sys.stdin.read()"
    with script(tmp_path / "script.py", "pass" if ending == "exit" else hang) as process:
        assert process.stdout is not None
        pids = [int(x) for x in process.stdout.readline().strip(" []\n").split(",")]
        if ending == "interrupt":
            time.sleep(0.5)
            os.killpg(process.pid, signal.SIGINT)
        elif ending == "kill":
            process.kill()
        _, errors = process.communicate(timeout=30)
    until = time.monotonic() + 5
    while alive(pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(pids)
    assert errors.count("Traceback") == (ending == "interrupt"), errors


def test_copies_share_or_start_workers_of_their_own() -> None:
    """A deep copy of a model has the same simulator; one that is pickled steps in its own."""
    state, action, _ = inputs(2)
    with BlackBox(pendulum, SPACE, DT, workers=1, mode="processes", parameters=PARAMETERS) as box:
        assert copy.deepcopy(ResidualDynamics(box)).baseline is box
        with pickle.loads(pickle.dumps(box)) as other:
            torch.testing.assert_close(other.step(state, action), box.step(state, action))


def test_workers_import_no_torch() -> None:
    """A worker starts in a fraction of a second, and takes little memory, because numpy is all it needs."""
    with BlackBox(None, SPACE, DT, factory=has_torch, workers=1, mode="processes") as box:
        assert box.step(*inputs(1)[:2]).tolist() == [[0.0, 0.0]]


def test_one_world_costs_little() -> None:
    """In process and without gradients, a step costs some 15 µs of processor time above its own; a busy machine takes longer."""
    box, (state, action, _) = BlackBox(misbehaves, SPACE, DT), inputs(1)
    action = torch.zeros_like(action)
    with torch.no_grad():
        wrapped = min(timeit.repeat(lambda: box.step(state, action), number=300, repeat=7, timer=time.thread_time)) / 300
    bare = min(timeit.repeat(lambda: misbehaves(state.numpy()[0], action.numpy()[0]), number=300, repeat=7, timer=time.thread_time)) / 300
    assert wrapped - bare < 100e-6


@pytest.mark.parametrize(("options", "message"), [
    ({"step": None}, "either step or factory, received neither"),
    ({"factory": names_its_thread}, "either step or factory, received both"),
    ({"step": 3}, "expected a function, received 3"),
    ({"mode": "process"}, "mode must be threads or processes, received 'process'"),
    ({"workers": -1}, "received workers -1"),
    ({"dt": 0.0}, "'dt': 0.0"),
    ({"timeout": 1.0}, "expected mode \"processes\" with timeout 1.0 s"),
    ({"timeout": -1.0, "mode": "processes"}, "'timeout': -1.0"),
    ({"gradients": "exact"}, "gradients must be \"differences\" or None, received 'exact'"),
])
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    """A wrong argument is named with what was received and expected."""
    with pytest.raises(ValueError, match=message):
        BlackBox(**{"step": pendulum, "space": SPACE, "dt": DT, **options})


def test_wrong_inputs(unchecked: None) -> None:
    """A shape that does not fit, a force or a parameter that the step does not take."""
    box, (state, action, force) = BlackBox(pendulum, SPACE, DT), inputs(3)
    with pytest.raises(ValueError, match=r"state must have shape \[\*batch, 2\], received \(3, 1\)"):
        box.step(action, action)
    with pytest.raises(ValueError, match=r"action must have shape \[\*batch, 1\], received \(3, 2\)"):
        box.step(state, state)
    with pytest.raises(ModelError, match="takes no force"):
        box.step(state, action, force)
    with pytest.raises(ModelError, match=r"no parameters \['mass'\]"):
        box.step(state, action, None, {"mass": torch.ones(3)})
