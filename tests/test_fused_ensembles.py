"""Ensembles in one launch: every world moves by its own member's weights and normaliser."""

from __future__ import annotations

import pytest
import torch
from fused_problem import F32, F64, assert_agrees, gradients, model, relative, start
from problems import random_actions, random_states

from residual_mbrl.dynamics import ensemble
from residual_mbrl.rollouts import rollout

KINDS = ("actuator", "unstructured", "conservative")
MEMBERS = 3


def members(kinds=KINDS):
    """Models of one structure with different weights, and normalisers from different data."""
    found = []
    for seed in range(MEMBERS):
        one = model("pendulum", kinds)
        with torch.no_grad():
            for w in one.parameters():
                w.mul_(1.0 - 0.3 * seed)
        one.normalise((1 + seed) * random_states(one.baseline, 40, seed=seed), random_actions(one.baseline, 40, seed=seed))
        found.append(one)
    return found


@pytest.mark.parametrize(("batch", "dtype"), [((MEMBERS,), F64), ((MEMBERS, 2), F32), ((MEMBERS, 2, 9), F64)],
                         ids=["one world each", "a few", "many, in two dimensions"])
def test_ensemble_is_that_of_torch(batch, dtype):
    """Gradients of the weights carry the members; a remainder of a block never holds another member's worlds."""
    assert_agrees(ensemble(members()), *batch, horizon=20, dtype=dtype)


def test_each_member_moves_as_it_does_alone():
    """States, and gradients of its own weights, are those of the member's model in a launch of its own."""
    alone = members()
    joined = ensemble(alone)
    x, u = start(joined, MEMBERS, 5, horizon=20)
    states, by = gradients(joined, x, u, {}, F64, "fused")
    weighting = torch.randn(states.shape, generator=torch.Generator().manual_seed(3), dtype=F64)  # as ``gradients`` draws it
    for m, one in enumerate(alone):
        own = rollout(one, x[m], u[m], backend="fused")
        assert torch.allclose(own, states[m], rtol=1e-12, atol=1e-12)
        names = dict(one.named_parameters())
        found = torch.autograd.grad((own * weighting[m]).sum(), list(names.values()))
        for name, expected in zip(names, found, strict=True):
            assert relative(by[name][m], expected) < 1e-10, name


def test_a_member_that_diverges_leaves_the_others_alone():
    """Its states and gradients are not finite; the other members' weights get theirs."""
    joined = ensemble(members())
    x, u = start(joined, MEMBERS, 5, horizon=20)
    with torch.no_grad():
        joined.residuals[0].raw_gain[1] = 9.0
    u[1] = 1.7e308
    states, by = gradients(joined, x, u, {}, F64, "fused")
    others = [0, 2]
    assert not torch.isfinite(states[1]).all()
    assert torch.isfinite(states[others]).all()
    assert all(torch.isfinite(g[others]).all() for g in by.values())


def test_batch_of_other_members_is_refused():
    """Also where the number of state entries happens to be that of the members."""
    joined, pair = ensemble(members()), ensemble(members(("unstructured",))[:2])
    for dynamics, batch, message in ((joined, (2, 4), r"weights of 3 members need states \[3, ...\], received \(2, 4, "),
                                     (joined, (6,), r"weights of 3 members need states \[3, ...\], received \(6, "),
                                     (pair, (), r"weights of 2 members need states \[2, ...\], received \(2,\)")):
        x, u = start(dynamics, *batch, horizon=3)
        with pytest.raises(ValueError, match=message):
            rollout(dynamics, x, u, backend="fused")


def test_weights_of_members_and_of_none_do_not_mix():
    """A residual of one model under an ensemble's runs in torch."""
    joined = ensemble(members(("unstructured", "conservative")))
    mixed = joined.with_residuals([joined.residuals[0], model("pendulum", ("conservative",)).residuals[0]])
    x, u = start(mixed, MEMBERS, 2, horizon=3)
    with pytest.raises(ValueError, match="cannot be fused: weights of different members are mixed"):
        rollout(mixed, x, u, backend="fused")
    assert torch.equal(rollout(mixed, x, u, backend="auto"), rollout(mixed, x, u))
