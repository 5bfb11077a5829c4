"""The controller answers in time and inside its limits whatever happens, and its log says what happened."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
from loop_problem import LIMITS, PERIOD, UP, WIDTHS, Loop, Regulated, baseline, corrected, cost, level

from residual_mbrl.controller import LQR, Background, Controller, Hold, Interval, Law, Level, WatchOptions
from residual_mbrl.controller.rehearsal import SimulatedTime
from residual_mbrl.dynamics import ensemble
from residual_mbrl.errors import ModelError
from residual_mbrl.planners.limits import Limits


def kept(loop: Loop) -> None:
    """No tick was missed, no command left the limits or moved faster than its rate."""
    commands = np.concatenate([[np.zeros(1)], *[np.array(loop.commands)]])
    assert max(loop.late) <= 0.008 + 1e-12
    assert np.abs(commands).max() <= 10.0
    assert np.abs(np.diff(commands[:, 0])).max() <= 4.0 + 1e-9


def chain(force: float = 2.0) -> Loop:
    """A plant with a force that the best of two models knows."""
    return Loop([level(corrected(force), "calibrated"), level(baseline(), "identified")], corrected(force))


def test_sound_loop_follows_the_best_model_and_logs_nothing() -> None:
    """Without faults the pole comes up, on the first law alone."""
    loop = chain()
    assert loop.run(300) == []
    assert set(loop.laws) == {"calibrated"}
    assert np.abs(loop.states[-1] - UP).max() < 0.02
    kept(loop)


def test_wrong_sign_is_found_and_the_model_used_again_after_the_dwell_time() -> None:
    """A residual that acts the other way round predicts worse than none, and is not used until it has been right for a while."""
    loop = chain(4.0)
    loop.run(100)
    loop.state = loop.state + torch.tensor([0.5, 0.0, 0.0, 0.0])
    loop.run(10)
    weights = loop.controller.levels[0].dynamics.corrections[0].network.weights[-1]
    with torch.no_grad():
        weights.neg_()
    lost = loop.run(100)
    assert lost[0].reason in ("predicts worse than the next model", "one-step errors beyond the interval")
    assert (lost[0].source, lost[0].target) == ("calibrated", "identified")
    with torch.no_grad():
        weights.neg_()
    loop.state = torch.from_numpy(UP + [0.3, 0.0, 0.0, 0.0])
    back = [e for e in loop.run(300) if e.subject == "law"]
    assert back[-1].target == "calibrated"
    assert back[-1].reason == "trusted again"
    kept(loop)


def test_weights_that_are_not_numbers_are_noticed_at_once() -> None:
    """The next tick runs under the next model."""
    loop = chain()
    loop.run(50)
    with torch.no_grad():
        loop.controller.levels[0].dynamics.corrections[0].network.weights[0].fill_(float("nan"))
    entries = loop.run(50)
    assert [(e.reason, e.target) for e in entries] == [("prediction not finite", "identified")]
    assert entries[0].time == pytest.approx(50 * PERIOD)
    kept(loop)


@pytest.mark.parametrize(("see", "reason"), [
    (lambda x, k: np.full(4, np.nan), "observation not finite"),
    (lambda x, k: None, "observation missing"),
    (lambda x, k: x[:3], "observation of the wrong size"),
    (lambda x, k: "nothing", "observation of the wrong size"),
    (lambda x, k: UP + [0.11, 0.06, 0.5, 0.5], "observation implausible"),
    (lambda x, k: x + [9.0, 0.0, 0.0, 0.0], "observation out of range"),
])
def test_observation_that_is_none_is_replaced_by_prediction(see, reason) -> None:
    """For a while the loop goes on by prediction, says so, and comes back."""
    loop = Loop([level(baseline(), "model")], baseline(), watch=WatchOptions(upper=np.array([5.0, 9.0, 9.0, 9.0])))
    loop.run(20)
    lost = loop.run(2, see)
    assert [(e.subject, e.target, e.reason) for e in lost] == [("state", "predicted", reason)]
    assert [(e.target, e.reason) for e in loop.run(20)] == [("measured", "observation again")]
    assert set(loop.laws) == {"model"}
    kept(loop)


def test_frozen_observation_is_told_from_a_plant_at_rest() -> None:
    """To the bit the same observation is frozen where the model says that the plant moves, and only there."""
    loop = Loop([level(baseline(), "model")], baseline())
    loop.run(10)
    loop.state = loop.state + torch.tensor([0.0, 0.0, 0.2, 0.0])
    last = []
    assert [e.reason for e in loop.run(6, lambda x, k: last.append(x) or last[min(k, 2)])] == ["observation frozen"]
    still = Loop([level(baseline(), "model")], baseline())
    still.state = torch.from_numpy(UP)
    assert still.run(50, lambda x, k: UP) == []


def test_long_loss_of_sight_ends_in_the_safe_command() -> None:
    """After the time that prediction is good for, the last law takes over."""
    loop = Loop([level(baseline(), "model")], baseline())
    loop.run(20)
    entries = loop.run(60, lambda x, k: None)
    assert [e.reason for e in entries] == ["observation missing", "observation lost"]
    assert loop.laws[-1] == "Hold"
    assert loop.commands[-1] == 0.0
    kept(loop)


def test_push_is_believed_after_a_few_observations_that_agree() -> None:
    """A plant that really has moved is not held for a broken sensor for long."""
    loop = Loop([level(baseline(), "model")], baseline())
    loop.run(50)
    loop.state = loop.state + torch.tensor([0.0, 0.0, 0.6, -0.4])
    entries = loop.run(300)
    assert [e.reason for e in entries] == ["observation implausible", "observation again"]
    assert entries[1].time - entries[0].time < 0.05
    assert np.abs(loop.states[-1] - UP).max() < 0.05


def test_slow_plans_are_followed_with_their_delay_accounted_for() -> None:
    """Plans that take four ticks still balance the pole: they begin at the state that the plant has when they come."""
    loop = Loop([level(baseline(), "model")], baseline())
    loop.run(50)
    loop.worker.seconds = 0.038
    entries = loop.run(200)
    assert {e.reason for e in entries} == {"no plan in time"}
    assert {e.subject for e in entries} == {"plan"}
    assert np.abs(loop.states[-1] - UP).max() < 0.05
    kept(loop)


def test_stalled_planner_gives_way_to_the_regulator_and_comes_back() -> None:
    """Without a plan that is young enough the next law that needs none takes over."""
    loop = Loop([level(baseline(), "model")], baseline())
    loop.run(50)
    loop.worker.seconds = 5.0
    entries = [e for e in loop.run(100) if e.subject == "law"]
    assert [(e.target, e.reason) for e in entries] == [("LQR", "no plan in time")]
    loop.worker.seconds = 0.002
    back = [e for e in loop.run(500) if e.subject == "law"]
    assert [(e.target, e.reason) for e in back] == [("model", "trusted again")]
    assert np.abs(loop.states[-1] - UP).max() < 0.05
    kept(loop)


def test_ensemble_that_disagrees_on_the_plan_takes_trust_away() -> None:
    """Members that lead to different states speak of places where nothing was learned."""
    members = [corrected(2.0), corrected(2.1)]
    joined = ensemble(members)
    loop = Loop([level(corrected(2.0), "calibrated", ensemble=joined), level(baseline(), "identified")], corrected(2.0))
    assert loop.run(50) == []
    with torch.no_grad():
        next(w for n, w in joined.named_parameters() if "weights.1" in n)[1] += 40.0
    entries = loop.run(20)
    assert entries[0].reason == "ensemble disagrees"
    assert entries[0].target == "identified"


class Broken(Regulated):
    """Raises when told to."""

    broken = False

    def plan(self, *args, **options):
        if self.broken:
            raise RuntimeError("out of order")
        return super().plan(*args, **options)


class BrokenLaw(Law):
    """Raises when it has been told to."""

    broken = False

    def command(self, state, cost=None):
        if self.broken:
            raise RuntimeError("out of order")
        return torch.zeros(1, dtype=torch.float64)


def test_exceptions_stay_inside() -> None:
    """A planner, a law or a cost that raises is a reason for a switch."""
    planner, law = Broken(baseline(), cost(baseline()), steps=10, limits=LIMITS), BrokenLaw()
    loop = Loop([Level(planner=planner, name="model", interval=Interval(WIDTHS))], baseline(), [law, Hold([0.0])])
    loop.run(10)
    planner.broken = True
    assert [e.reason for e in loop.run(30)] == ["planner raised an exception"]
    law.broken = True
    entries = loop.run(30)
    assert entries[0].reason == "exception in the loop"
    assert "out of order" in entries[0].evidence["exception"]
    assert loop.laws[-1] == "Hold"


def test_any_sequence_of_rubbish_keeps_ticks_and_limits() -> None:
    """Whatever comes in, in whatever order and at whatever pace of plans, a command inside the limits comes out in time."""
    loop, rng = chain(), np.random.default_rng(5)
    rubbish = [lambda x: x, lambda x: np.full(4, np.nan), lambda x: None, lambda x: x[:2], lambda x: "x", lambda x: x * 1e300, lambda x: -x,
               lambda x: np.zeros((2, 2)), lambda x: [], lambda x: x + rng.standard_normal(4), lambda x: np.full(4, -np.inf), lambda x: {}]

    def see(x, k):
        loop.worker.seconds = float(rng.choice([0.001, 0.006, 0.03, 1.0]))
        time = loop.time + float(rng.choice([0.0, 0.0, -0.5, 0.02, 3.0]))
        return rubbish[rng.integers(len(rubbish))](x), time, time - float(rng.choice([0.0, 0.003, 0.2, -0.1]))

    loop.run(200, see)
    assert not {e.reason for e in loop.controller.log} & {"exception in the loop"}
    kept(loop)


def test_latency_of_the_plant_is_planned_for() -> None:
    """Commands that take a tenth of a second to arrive: the loop that knows balances better than the one that does not."""
    def cost_of(latency: float) -> float:
        loop = Loop([level(baseline(), "model")], baseline(), latency=latency)
        late = [np.zeros(1)] * 10
        step = loop.plant.step

        def delayed(x, u):
            late.append(u.numpy())
            return step(x, torch.from_numpy(late.pop(0)))

        loop.plant = type("Late", (), {"step": staticmethod(delayed)})()
        loop.run(200)
        return float(np.square(np.array(loop.states) - UP).sum())

    assert cost_of(0.1) < 0.5 * cost_of(0.0)


def test_sensor_at_half_the_rate_is_not_frozen_where_it_stamps_its_data() -> None:
    """The same observation with the same stamp is no news, and no reason for a switch; the pole comes up all the same."""
    loop, held = Loop([level(baseline(), "model")], baseline()), []

    def see(x, k):
        if k % 2 == 0:
            held[:] = [x, loop.time]
        return held[0], loop.time, held[1]

    assert loop.run(300, see) == []
    assert np.abs(loop.states[-1] - UP).max() < 0.05
    kept(loop)


def test_planner_with_longer_steps_needs_a_model_at_the_rate_of_the_loop() -> None:
    """Plans of 20 ms steps serve a loop of 10 ms, each action for two ticks, while a model of 10 ms predicts."""
    slow = baseline(dt=2 * PERIOD)
    coarse = Level(planner=Regulated(slow, cost(slow), steps=10, limits=LIMITS), model=baseline(), name="coarse", interval=Interval(WIDTHS))
    loop = Loop([coarse], baseline())
    assert loop.run(300) == []
    assert np.abs(loop.states[-1] - UP).max() < 0.05
    kept(loop)


def test_estimator_makes_states_of_observations() -> None:
    """What it returns is where plans begin; it is given the observation and what the model expected."""
    class Halfway:
        seen = 0

        def update(self, observation, predicted, time):
            self.seen += 1
            return 0.5 * (observation + predicted[:4])

    estimator = Halfway()
    loop = Loop([level(baseline(), "model")], baseline(), estimator=estimator)
    assert loop.run(200) == []
    assert estimator.seen == 200
    assert np.abs(loop.states[-1] - UP).max() < 0.05


def test_log_is_json_lines(tmp_path) -> None:
    """Each switch is one line with time, from, to, reason and evidence."""
    loop = Loop([level(baseline(), "model")], baseline())
    loop.run(10)
    loop.run(2, lambda x, k: np.full(4, np.inf))
    loop.controller.log.write(tmp_path / "log.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [{"time": 0.1, "subject": "state", "from": "measured", "to": "predicted", "reason": "observation not finite",
                      "evidence": {"entries": "[0, 1, 2, 3]"}}]


def test_thread_of_its_own_gives_the_same_loop() -> None:
    """With a real worker and a real clock commands come too; how fast is not asserted."""
    model = baseline()
    controller = Controller(level(model, "model"), fallback=[LQR(model, cost(model)), Hold([0.0])], period=PERIOD, worker=Background())
    x, laws = torch.from_numpy(UP + [0.05, 0.02, 0.0, 0.0]), []
    for k in range(100):
        x = model.step(x, torch.from_numpy(controller.act(x.numpy(), k * PERIOD)))
        laws.append(controller.last.law)
        time.sleep(0.001)
    controller.close()
    assert np.abs(x.numpy() - UP).max() < 0.1
    assert "model" in laws


@pytest.mark.parametrize(("change", "message"), [
    ({"period": 0.02}, "steps 0.01 s, the controller 0.02 s"),
    ({"fallback": []}, "at least one law"),
    ({"fallback": [Hold([0.0]), level(baseline(), "second")]}, "at least one law"),
    ({"limits": Limits(action_lower=2.0, action_upper=1.0)}, "action_lower must be at most action_upper"),
    ({"limits": Limits(action_lower=1.0, action_upper=2.0)}, "first command must be .* within the limits"),
    ({"limits": Limits(action_rate=-1.0)}, "action_rate must be above zero"),
    ({"observed": 3}, "observed must be 4"),
    ({"deadline": 0.02}, "deadline <= period"),
    ({"unseen": np.zeros(2)}, "unseen must have shape"),
    ({"fallback": [level(baseline(), "model"), Hold([0.0])]}, "names must be unique"),
    ({"fallback": [Hold([0.0, 0.0])]}, "first command must be"),
])
def test_wrong_arguments_are_named(change, message) -> None:
    """What does not fit together is said when it is put together."""
    options = {"fallback": [Hold([0.0])], "period": PERIOD, **change}
    with pytest.raises(ValueError, match=message):
        Controller(level(baseline(), "model"), clock=SimulatedTime(lambda: 0.0), **options)


def test_model_of_another_plant_is_named() -> None:
    """Two planners must agree on what is observed and commanded."""
    from residual_mbrl.costs import QuadraticCost
    from residual_mbrl.dynamics import ResidualDynamics
    from residual_mbrl.physics.pendulum import Pendulum

    other = ResidualDynamics(Pendulum(dt=PERIOD))
    weights = torch.ones(2, dtype=torch.float64)
    second = Level(planner=Regulated(other, QuadraticCost(space=other.space, state=weights, action=weights[:1]), steps=5), name="other")
    with pytest.raises(ModelError, match="'other' has the states"):
        Controller(level(baseline(), "model"), fallback=[second, Hold([0.0])], period=PERIOD)
