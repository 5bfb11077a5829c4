"""The learning loop: it finds a plant's parameters and a policy, and a run that is killed goes on to the same result."""

from __future__ import annotations

import json
import logging
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import policy_problem as problem
import pytest
import torch

from residual_mbrl.errors import ModelError
from residual_mbrl.files import load_json
from residual_mbrl.identification import IdentifyOptions
from residual_mbrl.learning import Budget, GymnasiumPlant, LearnOptions, LoggedPlant, ModelPlant, learn
from residual_mbrl.learning.episodes import load
from residual_mbrl.policy_optimization import TrainingOptions

TRUE = {"inertia": 1.4, "viscous": 0.3, "gravity_moment": 8.0}
OPTIONS = LearnOptions(window=10, stride=5, noise=1e-3, training=TrainingOptions(worlds=16, horizon=24, iterations=60, evaluate_every=20),
                       identify=IdentifyOptions(free=list(TRUE), candidates=4, starts=1, iterations=10))
BUDGET = Budget(rounds=2, episodes=1, evaluations=2)


def plant(kind=ModelPlant):
    return kind(problem.dynamics(**TRUE), 1e-3)


def run(out, **given):
    given = {"plant": plant(), "dynamics": problem.dynamics(), "task": problem.task(), "policy": problem.policy(), "budget": BUDGET,
             "options": OPTIONS, **given}
    return learn(given["plant"], given["dynamics"], given["task"], given["policy"], given["budget"], out, given["options"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return run(out), out


def results(out):
    """All that a run came to."""
    return {p.relative_to(out): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file() and ".steps" not in p.name
            and p.suffix != ".npz" and p.name != "training.safetensors"}


def test_parameters_are_found_and_the_policy_works_on_the_plant(whole):
    """Within seconds of the plant's time; what the model promises is what the plant gives."""
    learned, _ = whole
    for name, true in TRUE.items():
        assert learned.dynamics.values[name] == pytest.approx(true, rel=0.05), name
    last = learned.rounds[-1]
    assert last.seconds == pytest.approx(2 * 40 * 0.05)
    assert last.evaluated < 0.1 * learned.rounds[0].collected
    assert math.isfinite(last.predicted)


class Killed(BaseException):
    """Ends a run as a signal does: nothing handles it."""


class Dying(ModelPlant):
    """A plant at whose n-th step the run is killed."""

    left = 0

    def step(self, action):
        type(self).left -= 1
        if type(self).left == 0:
            raise Killed
        return super().step(action)


@pytest.mark.parametrize("step", [1, 25, 65, 135])
def test_a_run_killed_while_collecting_goes_on_to_the_same_result(whole, tmp_path, step):
    """In any round or evaluation; no step that was made is lost."""
    Dying.left = step
    with pytest.raises(Killed):
        run(tmp_path / "run", plant=plant(Dying))
    made = sum(len(p.read_text(encoding="utf-8").splitlines()) - 1 for p in (tmp_path / "run").rglob("*.jsonl"))
    assert made == step - 1
    run(tmp_path / "run", plant=plant(Dying))
    assert results(tmp_path / "run") == results(whole[1])
    for path in whole[1].rglob("episode*.npz"):
        again = load(tmp_path / "run" / path.relative_to(whole[1]), "")
        assert np.array_equal(again.states, load(path, "").states)


@pytest.mark.parametrize("count", [1, 4])
def test_a_run_killed_while_training_goes_on_to_the_same_result(whole, tmp_path, monkeypatch, count):
    """After any of its checkpoints."""
    from residual_mbrl.policy_optimization import short_horizon

    kept, saved = short_horizon.save_tensors, []

    def save(*arguments):
        kept(*arguments)
        saved.append(0)
        if len(saved) == count:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(short_horizon, "save_tensors", save)
        with pytest.raises(Killed):
            run(tmp_path / "run")
    run(tmp_path / "run")
    assert results(tmp_path / "run") == results(whole[1])


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_result(whole, tmp_path):
    """By the signal that nothing can handle, at times that nobody chose."""
    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nimport torch; torch.set_num_threads(1)\n" \
             f"import test_learning as t; t.run(t.Path({str(tmp_path / 'run')!r})); print('done')"
    rng = np.random.default_rng(0)
    for seconds in [*rng.uniform(2.0, 8.0, 3), None]:
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        if seconds is None:
            assert process.communicate()[0].strip().endswith("done")
        else:
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
            process.communicate()
    assert results(tmp_path / "run") == results(whole[1])


def test_logs_take_the_place_of_a_plant(whole, tmp_path):
    """Nothing is acted on; the parameters are those of the same data."""
    space = problem.dynamics().baseline.space
    logs = [load(whole[1] / f"round_{k:03d}" / "episode_000.npz", f"log {k}").trajectory(space, 0.05) for k in range(2)]
    learned = run(tmp_path / "run", plant=LoggedPlant([[log] for log in logs]))
    assert learned.dynamics.values == pytest.approx(whole[0].dynamics.values, rel=1e-6)
    assert math.isnan(learned.rounds[-1].evaluated)


class Stubborn(ModelPlant):
    """A plant that stops at once, or shows what is not a number, in its first episode."""

    def __init__(self, how):
        super().__init__(problem.dynamics(**TRUE), 1e-3)
        self.how, self.episodes = how, 0

    def reset(self, seed, first):
        self.episodes += 1
        return super().reset(seed, first)

    def step(self, action):
        state, over = super().step(action)
        if self.episodes == 1:
            return (state, True) if self.how == "stops" else (np.full(2, np.nan), False)
        return state, over


@pytest.mark.parametrize("how", ["stops", "nan"])
def test_an_empty_round_is_skipped_and_logged(tmp_path, caplog, how):
    """Its data stay on disk; the next round excites again."""
    with caplog.at_level(logging.WARNING):
        learned = run(tmp_path / "run", plant=Stubborn(how), budget=Budget(rounds=2))
    assert [r.round for r in learned.rounds] == [1]
    assert "too few to learn from" in caplog.text
    assert "round 0: nothing to learn from; skipped" in caplog.text
    assert (tmp_path / "run" / "round_000" / "episode_000.npz").exists()
    with pytest.raises(ModelError, match="no round had data"):
        run(tmp_path / "other", plant=Stubborn(how), budget=Budget(rounds=1))


def test_budget_of_seconds_is_kept(tmp_path):
    """The last episode is cut to what is left."""
    learned = run(tmp_path / "run", budget=Budget(rounds=9, seconds=3.0))
    assert learned.rounds[-1].seconds == pytest.approx(3.0)
    assert len(learned.rounds) == 2


def test_a_folder_belongs_to_its_run(whole):
    """Another model is refused."""
    with pytest.raises(ModelError, match="another model, policy or options"):
        run(whole[1], dynamics=problem.dynamics(inertia=1.1))


def test_a_cost_that_is_no_number_is_named(tmp_path):
    """At once where the task begins; elsewhere after the episode, which stays on disk."""
    from dataclasses import replace

    from residual_mbrl.function_cost import FunctionCost

    def task(cost):
        space = problem.dynamics().baseline.space
        return replace(problem.task(), cost=FunctionCost(space=space, running=lambda x, u, r: cost(x), terminal=lambda x, r: 0 * x[..., 0]))

    with pytest.raises(ValueError, match=r"learn: the task's cost of step 0 is nan, of state \["):
        run(tmp_path / "run", task=task(lambda x: float("nan") * x[..., 0]))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="round 0, episode 0: the task's cost of step 5 is nan"):
        run(tmp_path / "run", task=task(_after(5)))
    assert len(load(tmp_path / "run" / "round_000" / "episode_000.npz", "").actions) == 40


def _after(step):
    """A cost that is no number at a step of an episode."""
    def cost(x):
        found = x[..., 0] ** 2
        return torch.where(torch.arange(len(found)) == step, float("nan"), found) if len(found) > 1 else found

    return cost


def test_a_folder_has_one_run_at_a_time(whole):
    """The other is refused before it touches anything; the folder is free again when the first has ended."""
    from residual_mbrl.files import held

    with held(whole[1]), pytest.raises(ModelError, match="another run goes on in this folder"):
        run(whole[1])
    assert torch.equal(next(run(whole[1]).policy.parameters()), next(whole[0].policy.parameters()))


def test_environment_must_fit_the_model():
    """Actions at once, states when they are first seen."""
    gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed")
    space = problem.dynamics().baseline.space
    env = gymnasium.make("Pendulum-v1")
    fits = GymnasiumPlant(env, space=space, dt=0.05, read=lambda e: e.unwrapped.state)
    state, over = (fits.reset(0, np.zeros(2)), fits.step(np.zeros(1)))[1]
    assert state.shape == (2,)
    assert not over
    with pytest.raises(ValueError, match=r"shows a state of \(3,\), the model has 2"):
        GymnasiumPlant(env, space=space, dt=0.05, read=lambda e: np.zeros(3)).reset(0, np.zeros(2))
    with pytest.raises(ValueError, match="the environment takes actions"):
        GymnasiumPlant(gymnasium.make("CartPole-v1"), space=space, dt=0.05, read=lambda e: e.unwrapped.state)


def test_plant_and_model_must_fit(tmp_path):
    """Names and step."""
    from problems import system

    from residual_mbrl.dynamics import ResidualDynamics

    with pytest.raises(ValueError, match="the plant has states"):
        run(tmp_path / "run", plant=ModelPlant(ResidualDynamics(system("cartpole"))))
    with pytest.raises(ValueError, match=r"the plant steps 0\.01 s, the model 0\.05 s"):
        run(tmp_path / "run", plant=ModelPlant(ResidualDynamics(system("pendulum", dt=0.01))))


def test_round_is_written_as_json(whole):
    """As it was returned."""
    found = load_json((whole[1] / "round_001" / "round.json").read_bytes())
    assert found["evaluated"] == whole[0].rounds[1].evaluated
    assert json.loads((whole[1] / "run.json").read_text(encoding="utf-8"))["episodes"] == 1
    assert torch.is_tensor(next(whole[0].policy.parameters()))
