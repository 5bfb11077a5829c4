"""Delay, lag and gain of a drive against shifted commands and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import context, random_states, randomise, slopes, system

from residual_mbrl.baselines import Port
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.residuals import CommandActuator, Context, EffortActuator, Feature
from residual_mbrl.rollouts import rollout

DT, STEPS = 0.01, 30
COMMANDS = torch.randn(STEPS, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
DOUBLE = system("double_pendulum")


def _logit(x: float) -> float:
    return math.log(x) - math.log1p(-x) if 0 < x < 1 else (-80.0 if x <= 0 else 80.0)


def _actuator(*, delay: float = 0.0, lag: float = 0.0, gain: float = 1.0, channels: tuple[int, ...] = (0, 1),
              **options: float) -> CommandActuator:
    actuator = CommandActuator(nu=2, channels=channels, dt=DT, max_delay=0.05, max_lag=0.1, **options)
    with torch.no_grad():
        actuator.raw_delay.fill_(_logit(delay / 0.05))
        actuator.raw_lag.fill_(_logit(lag / 0.1))
        actuator.raw_gain.fill_(math.atanh(math.log(gain) / math.log1p(actuator.gain_bound)))
    return actuator


def _executed(actuator: CommandActuator, commands: torch.Tensor = COMMANDS) -> torch.Tensor:
    """What the drive executes in every step, shape as the commands."""
    state, out = torch.zeros(*commands.shape[:-2], 4, dtype=commands.dtype), []
    memory = actuator.initial_memory(Context(DOUBLE.space, state, commands[..., 0, :], dt=DT))
    for u in commands.unbind(-2):
        seen = Context(DOUBLE.space, state, u, {}, memory, DT)
        out.append(u + actuator(seen))
        memory = actuator.next_memory(seen)
    return torch.stack(out, -2)


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_delay_of_whole_steps_shifts(steps):
    """The command is executed exactly that many steps later; before the first, the first holds."""
    expected = torch.cat([COMMANDS[:1].expand(steps, -1), COMMANDS])[:STEPS]
    assert torch.allclose(_executed(_actuator(delay=steps * DT)), expected, atol=1e-12)


def test_fractional_delay_interpolates():
    """Between samples it is numpy's linear interpolation."""
    t = DT * np.arange(STEPS)
    expected = np.stack([np.interp(t - 0.0237, t, c) for c in COMMANDS.numpy().T], 1)
    assert np.allclose(_executed(_actuator(delay=0.0237)).detach().numpy(), expected, atol=1e-12)


def test_lag_is_the_step_response():
    """A step goes in as 1 - exp(-t/T)."""
    step = torch.cat([torch.zeros(1, 2), torch.ones(STEPS - 1, 2)]).double()
    t = DT * torch.arange(STEPS, dtype=torch.float64)
    assert torch.allclose(_executed(_actuator(lag=0.04), step)[:, 0], 1 - torch.exp(-t / 0.04), atol=1e-12)


def test_gain_scales_and_limit_clips():
    """The executed command is the gain times the command, up to the limit."""
    assert torch.allclose(_executed(_actuator(gain=1.2)), 1.2 * COMMANDS)
    assert torch.allclose(_executed(_actuator(gain=1.2, limit=0.5)), (1.2 * COMMANDS).clamp(-0.5, 0.5))


def test_other_channels_pass():
    """Only the channels named are changed."""
    executed = _executed(_actuator(delay=0.02, channels=(1,)))
    assert torch.equal(executed[:, 0], COMMANDS[:, 0])
    assert torch.allclose(executed[2:, 1], COMMANDS[:-2, 1])


@pytest.mark.parametrize("raw", [-1e3, 1e3])
def test_gain_and_command_stay_bounded(raw):
    """Whatever the weights, the gain is within its bound and nothing larger than recent commands comes out."""
    actuator = randomise(_actuator(), scale=3.0)
    with torch.no_grad():
        actuator.raw_gain.fill_(raw)
    assert bool(((actuator.gain >= 1 / 1.5 - 1e-12) & (actuator.gain <= 1.5 + 1e-12)).all())
    assert float(_executed(actuator).detach().abs().max()) <= 1.5 * float(COMMANDS.abs().max()) + 1e-12


def test_memory_is_in_the_state():
    """A rollout continued from its last state goes on as if it had not stopped."""
    baseline = system("double_pendulum")
    dynamics = ResidualDynamics(baseline, [_actuator(delay=0.033, lag=0.05)])
    assert dynamics.space.na == 12
    assert dynamics.space.activation[0] == "residual0.past_command1_0"
    x = random_states(baseline)
    with torch.no_grad():
        whole = rollout(dynamics, x, COMMANDS)
        second = rollout(dynamics, whole[10], COMMANDS[10:])
    assert torch.equal(whole[10:], second)
    assert torch.equal(whole[10, 4:6], COMMANDS[9])


def test_delayed_plant_is_the_plant_under_delayed_commands():
    """In a rollout the residual is the same as shifting the log's commands."""
    baseline = system("double_pendulum")
    x = random_states(baseline)
    delayed = rollout(ResidualDynamics(baseline, [_actuator(delay=0.03)]), x, COMMANDS)[..., :4]
    shifted = torch.cat([COMMANDS[:1].expand(3, -1), COMMANDS])[:STEPS]
    assert torch.allclose(delayed, rollout(ResidualDynamics(baseline), x, shifted), atol=1e-10)


def test_gradient_by_delay_lag_and_gain():
    """That of a whole rollout is that of finite differences."""
    actuator, baseline = _actuator(delay=0.0237, lag=0.03, gain=1.1), system("double_pendulum")
    dynamics = ResidualDynamics(baseline, [actuator])
    names = ("residuals.0.raw_delay", "residuals.0.raw_lag", "residuals.0.raw_gain")

    def last(z: torch.Tensor) -> torch.Tensor:
        states = torch.zeros(4, dtype=z.dtype)
        memory = dynamics.initial_state(states, COMMANDS[0])
        for u in COMMANDS[:8]:
            memory = torch.func.functional_call(dynamics, dict(zip(names, z.split(2), strict=True)), (memory, u))
        return memory

    z = torch.cat([w.detach() for w in (actuator.raw_delay, actuator.raw_lag, actuator.raw_gain)])
    exact = torch.func.jacrev(last)(z)
    assert float(exact[:4].abs().max()) > 1e-4
    assert torch.allclose(exact, slopes(last, z), rtol=1e-5, atol=1e-8)


def test_certificate_holds_with_memory():
    """It counts the largest command in the delay line."""
    actuator = randomise(_actuator(), scale=2.0)
    data = context(DOUBLE, 500)
    memory = 3 * torch.randn(500, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    found = actuator.certificate(Context(DOUBLE.space, data.state, data.action, {}, memory, DT), DOUBLE)
    assert (found.holds, found.samples) == (True, 1000)


@pytest.mark.parametrize("options", [{"channels": ()}, {"channels": (2,)}, {"channels": (0,), "max_delay": -1.0}])
def test_wrong_options_are_refused(options):
    """The message says what was expected."""
    with pytest.raises(ValueError, match="CommandActuator: expected channels below 2"):
        CommandActuator(nu=2, dt=DT, **options)


def _effort(**options: float) -> EffortActuator:
    return EffortActuator(signal="effort", nv=1, features=(Feature(source="effort"), Feature(source="rate")), **options)


def _efforts(effort: torch.Tensor) -> Context:
    state = random_states(system("pendulum"), len(effort))
    return Context(system("pendulum").space, state, effort, {"effort": effort}, None, DT)


def test_no_effort_no_correction():
    """A drive that is switched off stays so, for any weights."""
    residual = randomise(_effort(), scale=50.0)
    assert residual.port is Port.FORCE
    assert float(residual(_efforts(torch.zeros(200, 1, dtype=torch.float64))).detach().abs().max()) == 0.0


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_correction_is_a_share_of_the_effort(scale):
    """It stays within its share, the effort keeps its sign, and the certificate says so."""
    residual = randomise(_effort(gain_bound=0.3, bias_bound=0.1), scale=scale)
    seen = _efforts(5 * torch.randn(2000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(5)))
    effort, correction = seen.signals["effort"], residual(seen).detach()
    assert bool((correction.abs() <= effort.abs() * (math.expm1(0.3) + 0.1) + 1e-12).all())
    assert bool(((effort + correction) * effort > 0).all())
    assert residual.certificate(seen, system("pendulum")).holds


def test_untrained_effort_is_untouched():
    """It starts at zero."""
    assert float(_effort()(_efforts(torch.ones(9, 1, dtype=torch.float64))).detach().abs().max()) == 0.0
