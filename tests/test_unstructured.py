"""Free corrections promise only their bound."""

from __future__ import annotations

import pytest
import torch
from problems import MOVING, context, random_actions, random_states, randomise, system

from residual_mbrl.baselines import Port
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.residuals import StateDelta, Unstructured

DOUBLE = system("double_pendulum")


@pytest.mark.parametrize(("kind", "size", "port"), [(Unstructured, 2, Port.FORCE), (StateDelta, 4, Port.STATE)])
def test_bound(kind, size, port):
    """Huge weights do not leave it, and the certificate says so."""
    residual = randomise(kind(nv=2, features=MOVING, sizes=[2, 2], bound=0.7), scale=100.0)
    seen = context(DOUBLE, 1000)
    out = residual(seen).detach()
    assert (out.shape, residual.port) == ((1000, size), port)
    assert 0.69 < float(out.abs().max()) <= 0.7
    assert residual.certificate(seen, DOUBLE).holds


@pytest.mark.parametrize("kind", [Unstructured, StateDelta])
def test_untrained_correction_is_none(kind):
    """It starts at zero."""
    assert float(kind(nv=2, features=MOVING, sizes=[2, 2], bound=0.7)(context(DOUBLE, 9)).detach().abs().max()) == 0.0


def test_certificate_notices_an_excess():
    """The check is real: an output beyond the bound fails it."""
    class Loose(Unstructured):
        def forward(self, context):
            return 2 * super().forward(context)

    residual = randomise(Loose(nv=2, features=MOVING, sizes=[2, 2], bound=0.7), scale=100.0)
    assert not residual.certificate(context(DOUBLE, 100), DOUBLE).holds


def test_force_goes_in_as_a_force():
    """The step with the residual is the baseline's step under its force."""
    residual = randomise(Unstructured(nv=2, features=MOVING, sizes=[2, 2], bound=0.7))
    x, u = random_states(DOUBLE, 20), random_actions(DOUBLE, 20)
    assert torch.allclose(ResidualDynamics(DOUBLE, [residual]).step(x, u), DOUBLE.step(x, u, residual(context(DOUBLE, 20))))


def test_state_correction_goes_in_per_second():
    """The next state is the baseline's plus dt times the correction."""
    residual = randomise(StateDelta(nv=2, features=MOVING, sizes=[2, 2], bound=0.7))
    x, u = random_states(DOUBLE, 20), random_actions(DOUBLE, 20)
    expected = DOUBLE.step(x, u) + DOUBLE.dt * residual(context(DOUBLE, 20))
    assert torch.allclose(ResidualDynamics(DOUBLE, [residual]).step(x, u), expected)


@pytest.mark.parametrize("kind", [Unstructured, StateDelta])
def test_wrong_bound_is_refused(kind):
    """The message names the residual."""
    with pytest.raises(ValueError, match=f"{kind.__name__}: bound must be positive"):
        kind(nv=1, features=MOVING, bound=-1.0)
