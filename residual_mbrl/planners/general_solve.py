"""A solve by iLQR with model and cost in torch and the backward pass in a kernel: for whatever has no form in the kernels, and ensembles.

Under an objective the members' states are one long state that the same actions move; see ``ilqr``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from residual_mbrl.baselines import Values
from residual_mbrl.costs import Cost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.fused.solve import Box, Solution
from residual_mbrl.planners.expansion import expand_cost
from residual_mbrl.planners.objectives import Objective
from residual_mbrl.rollouts import linearise, rollout

STEP_SIZES = 12
INFINITY = float("inf")
NOISE = {torch.float32: 2e-6, torch.float64: 1e-13}
"""Relative rounding of a cost: a decrease below it is not seen."""
CONVERGED, LIMIT, STUCK, LATE, NOT_FINITE = range(5)
"""As ``kernels.ilqr_text``."""


class Feedback(NamedTuple):
    """``u = u_ref + size k + K (x ⊖ x_ref)``."""

    k: Tensor
    """Shape [n, H, nu]."""
    K: Tensor
    """Shape [n, H, nu, M ndx, and with limited rates nu more]."""
    expected: Tensor
    """Expected change of the cost for a whole step, linear and quadratic part, shape [n, 2]."""
    largest: Tensor
    """Greatest curvature by actions, shape [n]."""
    minimum: Tensor
    """Whether every step had one, shape [n]."""


class GeneralSolve:
    """One solve; see ``fused_solve`` for the arguments.

    Args:
        dynamics: The model.
        objective: Over members, whose dimension is the first of the model's states; None for a single model.
        cost: Running and terminal cost.
        parameters: Values by name, each broadcastable to [(members,) *batch].
        box: Limits.
        state: Shape [n, nx].
        settings: As ``kernels.ilqr_text.SETTINGS``.
    """

    def __init__(self, dynamics: ResidualDynamics, objective: Objective | None, cost: Cost, parameters: Values | None, box: Box,
                 state: Tensor, settings: tuple[float, float, float, float]) -> None:
        self.dynamics, self.objective, self.cost, self.box, self.settings = dynamics, objective, cost, box, settings
        self.state, self.n, self.space = state, state.shape[0], dynamics.space
        self.members = 1 if objective is None else objective.members
        self.parameters = parameters or {}
        references = cost.references.to(state)
        self.references = references if references.ndim > 2 else references.unsqueeze(0)
        fall = torch.linspace(0, 1, STEP_SIZES, dtype=torch.float64).square()
        self.sizes = (settings[3] ** fall).to(state)

    def run(self, actions: Tensor, iterations: int, until: float) -> Solution:  # noqa: PLR0915  # one loop, as in the kernel
        """Return the best found from actions [n, H, nu] on."""
        tolerance, least, most, _ = self.settings
        n = self.n
        states, u, members = (x[:, 0] if i != 1 else x[0] for i, x in enumerate(self._trial(actions.unsqueeze(0), None, None, None)))
        w = members.new_full(members.shape, 1 / self.members)  # of the members; the minimum is a saddle point between them and the actions
        spread = (members.amax(0) - members.amin(0)).clamp_min(1e-3 * members.abs().amax(0))
        best = [self._objective(members), u, states]
        first, outcome = best[0].clone(), torch.full((n,), LIMIT)
        outcome[~torch.isfinite(first)] = NOT_FINITE
        mu, k = torch.zeros(n, dtype=torch.float64), torch.zeros(*u.shape, dtype=torch.float64)
        gains, expected = u.new_zeros(*u.shape, self.space.ndx), first.double().clone()
        made, longest, expansion = 0, 0.0, None
        while made < iterations and bool((outcome == LIMIT).any()):
            begin = perf_counter()
            if begin + longest >= until:
                outcome[outcome == LIMIT] = LATE
                break
            costs = (w * members).sum(0)
            expansion = self._expand(states, u, w) if expansion is None else expansion
            found = self._backward(expansion, u, k, mu)
            while bool((~found.minimum & (mu < most)).any()):
                mu = torch.where(found.minimum, mu, torch.maximum(10 * mu, least * found.largest.clamp_min(1e-300)))
                found = self._backward(expansion, u, k, mu)
            outcome[~found.minimum & (outcome == LIMIT)] = STUCK
            k, made = found.k, made + 1
            size, small = costs.double().abs(), mu <= 1e3 * least * found.largest
            expected = -found.expected.sum(-1)
            balanced = (self._objective(members) - costs).double() <= tolerance * size
            outcome[(expected <= tolerance * size) & small & balanced & (outcome == LIMIT)] = CONVERGED
            going = outcome == LIMIT
            gains = torch.where((going | (outcome == CONVERGED))[:, None, None, None], self._common(found.K).to(u), gains)
            if not bool(going.any()):
                break
            trial_states, trial_u, trial_members = self._trial(u.unsqueeze(0), states, found, self.sizes)
            trial_costs = torch.nan_to_num((w.unsqueeze(1) * trial_members).sum(0), nan=INFINITY, posinf=INFINITY, neginf=INFINITY)
            least_cost, which = trial_costs.min(0)
            better = (least_cost < costs) & going
            fallen, taken = (costs - least_cost).double(), self.sizes[which].double()
            rows = torch.arange(n)
            states = torch.where(better[:, None, None], trial_states[:, which, rows], states)
            u = torch.where(better[:, None, None], trial_u[which, rows], u)
            members = torch.where(better, trial_members[:, which, rows], members)
            now = self._objective(members)
            ahead = now < best[0]
            best = [torch.where(ahead.reshape(-1, *(1,) * (x.ndim - 1)) if i < 2 else ahead[:, None, None], y, x)
                    for i, (x, y) in enumerate(zip(best, (now, u, states), strict=True))]
            floor, balanced = least * found.largest, (now - (w * members).sum(0)).double() <= tolerance * size
            rise = torch.maximum(10 * mu, floor)
            noise = NOISE[u.dtype] * size
            outcome[going & better & (fallen <= tolerance * size) & (taken > 0.3) & small & balanced] = CONVERGED
            outcome[going & ~better & (expected <= noise) & balanced] = CONVERGED
            settled = ~better & (expected <= torch.maximum(noise, tolerance * size))
            outcome[going & ~better & (mu >= most) & (outcome == LIMIT)] = STUCK
            fall = torch.where(0.1 * mu > floor, 0.1 * mu, torch.zeros_like(mu))
            mu = torch.where((better & (taken > 0.3)) | settled, fall, torch.where(better & (taken >= 0.03), mu, rise))
            expansion = None if bool(better.any()) else expansion
            if self.objective is not None and self.objective.cap * self.members > 1:
                spread = torch.maximum(spread, members.amax(0) - members.amin(0))
                w, expansion = self.objective.shifted(w, members, spread), None
            longest = max(longest, perf_counter() - begin)
        count, most_seconds = (torch.full((n,), float(v), dtype=torch.float64) for v in (made, longest))
        info = torch.stack([outcome.double(), count, first.double(), best[0].double(), expected, mu, most_seconds], -1)
        return Solution(best[1], best[2][0], gains, best[0], info)

    def _objective(self, members: Tensor) -> Tensor:
        total = members[0] if self.objective is None else self.objective.reduce(members)
        return torch.nan_to_num(total, nan=INFINITY, posinf=INFINITY, neginf=INFINITY)

    def _trial(self, u_ref: Tensor, states: Tensor | None, feedback: Feedback | None,
               sizes: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Roll out at every step size: states [M, S, n, H + 1, nx], actions [S, n, H, nu], costs [M, S, n]."""
        s, m, space, box = 1 if sizes is None else len(sizes), self.members, self.space, self.box
        x = self.state.expand(m, s, self.n, -1)
        xs, us = [x], []
        last = None if box.previous is None else box.previous.expand(s, self.n, -1)
        for t in range(u_ref.shape[-2]):
            u = u_ref[..., t, :].expand(s, self.n, -1)
            if feedback is not None and states is not None and sizes is not None:
                dx = space.difference(x, states[:, None, :, t])
                dx = dx.permute(1, 2, 0, 3).reshape(s, self.n, -1)
                if box.rate is not None:
                    moved = torch.zeros_like(u) if last is None or t == 0 else last - u_ref[..., t - 1, :]
                    dx = torch.cat([dx, moved], -1)
                by = feedback.K[:, t].to(u)
                u = u + sizes[:, None, None] * feedback.k[:, t].to(u) + (by @ dx.unsqueeze(-1)).squeeze(-1)
            lower, upper = box.lower, box.upper
            if box.rate is not None and last is not None:
                lower, upper = torch.maximum(lower, last - box.rate), torch.minimum(upper, last + box.rate)
            u = torch.minimum(torch.maximum(torch.nan_to_num(u), lower), upper)
            us.append(u)
            last = u
            x = self._step(x, u)
            xs.append(x)
        found, actions = torch.stack(xs, -2), torch.stack(us, -2)
        return found, actions, self.cost.total(found, actions.expand(m, *actions.shape))

    def _step(self, x: Tensor, u: Tensor) -> Tensor:
        finite = torch.isfinite(x).all(-1, keepdim=True)
        safe = torch.where(finite, x, self.state.expand_as(x))
        members = None if self.objective is None else self.members
        each = u.expand(self.members, *u.shape)
        x1, u1 = (safe, each) if members else (safe[0], each[0])
        p = {name: self._placed(v, 1) for name, v in self.parameters.items()}
        after = rollout(self.dynamics, x1, u1.unsqueeze(-2), p)[..., 1, :]
        after = after if members else after.unsqueeze(0)
        return torch.where(finite, after, torch.full_like(after, float("nan")))

    def _placed(self, v: Tensor, extra: int) -> Tensor:
        """Return a parameter with dimensions for step sizes behind that of the members."""
        if v.ndim == 0 or self.objective is None:
            return v
        return v.reshape(v.shape[0], *(1,) * (extra + 2 - v.ndim), *v.shape[1:])

    def _expand(self, states: Tensor, u: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return AB, G and C as the backward pass wants them."""
        m, ndx, nu, (n, horizon) = self.members, self.space.ndx, u.shape[-1], u.shape[:2]
        each = u.expand(m, *u.shape)
        xs, us = (states, each) if self.objective is not None else (states[0], each[0])
        p = {name: self._placed(v, 0) for name, v in self.parameters.items()}
        linear = linearise(self.dynamics, xs, us, p)
        A, B = (x if self.objective is not None else x.unsqueeze(0) for x in linear)
        g, c = expand_cost(self.cost, self.space, states, each, self.references)
        g, c = weights[..., None, None] * g, weights[..., None, None, None] * c
        rows = m * ndx
        padded = -(-(rows + nu) // 8) * 8
        ab = torch.zeros(n, horizon, rows, padded, dtype=torch.float64)
        G = torch.zeros(n, horizon + 1, padded, dtype=torch.float64)
        C = torch.zeros(n, horizon + 1, rows + nu, padded, dtype=torch.float64)
        for i in range(m):
            own = slice(i * ndx, (i + 1) * ndx)
            ab[:, :, own, own], ab[:, :, own, rows : rows + nu] = A[i].double(), B[i].double()
            G[..., own] = g[i, ..., :ndx].double()
            C[..., own, own] = c[i, ..., :ndx, :ndx].double()
            C[..., own, rows : rows + nu] = c[i, ..., :ndx, ndx:].double()
            C[..., rows:, own] = c[i, ..., ndx:, :ndx].double()
        G[..., rows : rows + nu] = g[..., ndx:].sum(0).double()
        C[..., rows:, rows : rows + nu] = c[..., ndx:, ndx:].sum(0).double()
        return ab, G, C

    def _backward(self, expansion: tuple[Tensor, Tensor, Tensor], u: Tensor, k: Tensor, mu: Tensor) -> Feedback:
        ab, G, C = expansion
        box, (n, horizon, nu), rows = self.box, u.shape, ab.shape[-2]
        rate = box.rate is not None
        held = [torch.as_tensor(x, dtype=torch.float64).contiguous() for x in (u, box.lower, box.upper)]
        change = None if box.rate is None else box.rate.double().contiguous()
        previous = None if box.previous is None else box.previous.double().reshape(n, nu).contiguous()
        k, out = k.clone(), torch.zeros(n, 4, dtype=torch.float64)
        K = torch.zeros(n, horizon, nu, rows + (nu if rate else 0), dtype=torch.float64)
        _backward(rows, nu, rate)([n, horizon, ab.data_ptr(), G.data_ptr(), C.data_ptr(), k.data_ptr(), K.data_ptr(), held[0].data_ptr(),
                                   held[1].data_ptr(), held[2].data_ptr(), 0 if change is None else change.data_ptr(),
                                   0 if previous is None else previous.data_ptr(), mu.data_ptr(), out.data_ptr()])
        return Feedback(k, K, out[:, 1:3], out[:, 3], out[:, 0] > 0)

    def _common(self, K: Tensor) -> Tensor:
        """Return the gains of a deviation that all members share."""
        m, ndx = self.members, self.space.ndx
        total: Tensor = K[..., : m * ndx].unflatten(-1, (m, ndx)).sum(-2)
        return total


@cache
def _backward(ndx: int, nu: int, rate: bool) -> Callable[[list[int]], Any]:
    from residual_mbrl.kernels.ilqr import backward_kernel  # noqa: PLC0415  # Warp takes half a second to load

    return backward_kernel(ndx, nu, rate).table()
