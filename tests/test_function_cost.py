"""Costs written in torch, in the kernels."""

from __future__ import annotations

import pytest
import torch
from planner_problem import F64, cart

from residual_mbrl.function_cost import FunctionCost
from residual_mbrl.fused.torch_functions import UntraceableError, symbolic
from residual_mbrl.kernels.expressions import Graph, Vector
from residual_mbrl.rollouts import cost_gradient

A = torch.tensor([[1.0, 0.3, -0.2], [0.3, 2.0, 0.1], [0.0, -0.5, 0.7]], dtype=F64)
FUNCTIONS = {
    "elementwise": lambda x: x.sin() * x.cos() + x.tanh() - x.exp().log() + (x.abs() + 1).sqrt() + x.atan() + x.sign() + x.tan(),
    "powers": lambda x: x**2 + x**3 - (x.abs() + 1) ** 0.5 + x.square() + (x.abs() + 1) ** -1 + (x.abs() + 0.5) ** 2.5 + 2.0 / (x + 9),
    "choices": lambda x: torch.where(x > 0.2, x, 2 * x) + x.clamp(-0.5, 0.5) + x.relu() + torch.maximum(x, -x) + x.clamp(max=0.3),
    "sums": lambda x: x.sum(-1, keepdim=True) + x.mean(-1, keepdim=True) + torch.linalg.vector_norm(x, dim=-1, keepdim=True),
    "products": lambda x: torch.stack([(x @ A.to(x) * x).sum(-1), torch.linalg.vecdot(x, x), x @ A.to(x) @ x], -1),
    "einsum": lambda x: torch.einsum("...i,ij,...j->...", x, A.to(x), x).unsqueeze(-1),
    "slices": lambda x: torch.cat([x[..., 1:], x[..., :1] * x[..., [2]], x[..., -1:], x[..., None, :].mT.reshape(3)], -1),
    "smooth": lambda x: torch.sigmoid(x) + torch.nn.functional.softplus(x) + torch.log1p(x.abs()) + torch.expm1(x) + torch.atan2(x, x + 3),
    "parts": lambda x: torch.stack([a * x.split(1, -1)[0].squeeze(-1) for a in x.unbind(-1)], -1) + x.split([1, 2], -1)[0].expand(3),
    "constants": lambda x: x - torch.tensor([1.0, 2.0, 3.0], dtype=x.dtype) + torch.zeros_like(x) + torch.ones_like(x) + x.new_zeros(3),
}


def values_of(found, x):
    """Numbers of expressions of the input x."""
    known = []
    from residual_mbrl.kernels.expressions import BINARY, UNARY

    for node in found[0].graph.nodes:
        if node[0] == "constant":
            known.append(node[1])
        elif node[0] == "input":
            known.append(float(x[node[2]]))
        elif node[0] == "select":
            known.append(known[node[2]] if known[node[1]] else known[node[3]])
        else:
            args = [known[i] for i in node[1:]]
            known.append((UNARY if len(args) == 1 else BINARY)[node[0]](*args))
    return torch.tensor([known[s.place] for s in found], dtype=F64)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operations_on_symbols_are_those_of_torch(name):
    """At a few points of each sign."""
    replay, graph = symbolic(FUNCTIONS[name], 3), Graph()
    symbols = graph.inputs("x", 3)
    found = replay(symbols)
    for seed in range(3):
        x = 1.2 * torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=F64)
        exact = FUNCTIONS[name](x).reshape(-1)
        assert torch.allclose(values_of([s if hasattr(s, "graph") else graph.constant(s) for s in found], x), exact, atol=1e-12)


def test_cost_and_gradient_are_those_of_torch():
    """A cost of obstacles and energies in one launch, with a reference per world."""
    dynamics = cart()

    def running(x, u, r):
        away = (x[..., 0] - r[..., 0]).square() + 0.1
        return torch.log1p(1 / away) + 0.1 * u.square().sum(-1) + torch.where(x[..., 1] > 0, x[..., 1], 0.5 * x[..., 1]).square()

    cost = FunctionCost(space=dynamics.space, running=running, terminal=lambda x, r: (x - r).square().sum(-1).sqrt(),
                        reference=torch.tensor([[0.5, 0.0], [0.1, 0.3], [-1.0, 0.2]], dtype=F64))
    assert cost.refusal is None
    x = torch.tensor([[1.0, 0.3], [0.2, -0.4], [0.0, 1.0]], dtype=F64)
    u = torch.randn(3, 12, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    fused, exact = (cost_gradient(dynamics, x, u, cost, backend=b) for b in ("fused", "torch"))
    assert torch.allclose(fused.costs, exact.costs, rtol=1e-12)
    assert torch.allclose(fused.actions, exact.actions, atol=1e-11)


def test_new_references_share_the_code():
    """A moved target compiles nothing: the key is that of the first."""
    space = cart().space
    cost = FunctionCost(space=space, running=lambda x, u, r: (x - r).square().sum(-1), terminal=lambda x, r: (x - r).square().sum(-1),
                        reference=torch.zeros(2))
    moved = cost.with_reference(torch.ones(2))
    assert moved.warp_form().key == cost.warp_form().key
    assert float(moved.running(torch.zeros(2), torch.zeros(1), moved.references[0])) == 2.0


def test_what_cannot_be_recorded_runs_in_torch_and_says_why():
    """A sort has no form on symbols; the cost works all the same."""
    dynamics = cart()
    cost = FunctionCost(space=dynamics.space, running=lambda x, u, r: x.sort(-1).values[..., 0].square(),
                        terminal=lambda x, r: x[..., 0] ** 2)
    assert "sort" in cost.refusal
    assert cost.warp_form() is None
    found = cost_gradient(dynamics, torch.ones(2, dtype=F64), torch.zeros(5, 1, dtype=F64), cost)
    assert torch.isfinite(found.costs)
    with pytest.raises(ValueError, match="has no Warp form"):
        cost_gradient(dynamics, torch.ones(2, dtype=F64), torch.zeros(5, 1, dtype=F64), cost, backend="fused")


def test_a_branch_on_a_value_is_refused_not_frozen():
    """An if would record one side only."""
    with pytest.raises(UntraceableError):
        symbolic(lambda x: x if float(x[0]) > 0 else -x, 2)


def test_symbols_may_be_any_vector():
    """A slice of a longer vector, as a cost within a cost gets it."""
    graph = Graph()
    x = graph.inputs("x", 5)
    found = symbolic(lambda a: a.sum(-1, keepdim=True), 2)(Vector(x.entries[1:3]))
    assert values_of(found, torch.tensor([9.0, 1.0, 2.0, 9.0, 9.0]))[0] == 3.0


def test_reference_trajectories_change_from_step_to_step():
    """The cost of standing still is the sum of the squares of the path."""
    dynamics = cart()
    path = torch.stack([torch.arange(6.0, dtype=F64), torch.zeros(6, dtype=F64)], -1)
    cost = FunctionCost(space=dynamics.space, running=lambda x, u, r: (x - r).square().sum(-1),
                        terminal=lambda x, r: (x - r).square().sum(-1), reference=path, trajectory=True)
    found = cost_gradient(dynamics, torch.zeros(2, dtype=F64), torch.zeros(5, 1, dtype=F64), cost, backend="fused")
    assert float(found.costs) == 55.0
    with pytest.raises(ValueError, match="reference must have shape"):
        FunctionCost(space=dynamics.space, running=cost.running, terminal=cost.terminal, reference=torch.zeros(2), trajectory=True)
