"""Every single step of a rollout: its Jacobian by reverse mode beside differences, entry by entry."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from residual_mbrl.audit_inputs import MovedStep, Trial, tangent_names
from residual_mbrl.audit_method import FLOOR, KINDS, Method, against_any
from residual_mbrl.audit_result import Finding
from residual_mbrl.difference_quotients import Comparison, Verdict, compare, quotients
from residual_mbrl.dynamics import ResidualDynamics

CANCELLED = 16
"""Rounding errors of the largest entry that an entry may hold."""


@dataclass(frozen=True, kw_only=True)
class StepAudit:
    """Jacobians of all steps.

    Args:
        comparison: Derivatives of each output by each input, inputs in units of ``sizes``, shape [*batch, H, n, ndx].
        sizes: Typical change of each input, shape [n].
        inputs: Name of each.
        outputs: Name of each output.
        finite: Where there is a step at all, shape [*batch, H].
    """

    comparison: Comparison
    sizes: Tensor
    inputs: list[str]
    outputs: list[str]
    finite: Tensor

    @property
    def near_switch(self) -> Bool[Tensor, "*batch horizon"]:
        """Where something was not judged."""
        return (self.comparison.verdict == Verdict.SWITCH).flatten(-2).any(-1)

    @property
    def trusted(self) -> Float[Tensor, "*batch horizon n ndx"]:
        """The derivative under audit, and the expected one where that has a defect."""
        verdict, _, received, expected = self.comparison
        return torch.where(verdict >= Verdict.WRONG, expected, received)

    def findings(self) -> list[Finding]:
        """Return a finding for each world, input and kind of verdict, defect or not; at its first step the gravest entry counts."""
        verdict = torch.where(self.finite[..., None, None], self.comparison.verdict, int(Verdict.AGREES))
        found = []
        for defects in (True, False):
            chosen = verdict >= Verdict.WRONG if defects else verdict == Verdict.SWITCH
            places = chosen.any(-1).movedim(-2, -1)  # [*batch, n, H]
            for *world, i in places.any(-1).nonzero().tolist():
                steps = places[(*world, i)].nonzero().flatten().tolist()
                found.append(self._finding(tuple(world), steps, i, chosen[(*world, steps[0], i)]))
        return found

    def _finding(self, world: tuple[int, ...], steps: list[int], i: int, chosen: Tensor) -> Finding:
        verdict, error, received, expected = (x[(*world, steps[0], i)] for x in self.comparison)
        graver = verdict + error.nan_to_num(0.0, 0.0).clamp_max(1e6) / 1e7
        j = int(torch.where(chosen, graver, -1.0).argmax())
        return Finding(kind=KINDS[Verdict(int(verdict[j]))], world=world, step=steps[0], steps=tuple(steps), input=self.inputs[i],
                       output=self.outputs[j], expected=float(expected[j] / self.sizes[i]),
                       received=float(received[j] / self.sizes[i]), error=float(error[j]))


def audit_steps(method: Method, trial: Trial) -> StepAudit:
    """Compare the Jacobian of each step with difference quotients."""
    space, batch = method.audited.space, trial.actions.shape[:-1]
    sizes = torch.cat([torch.ones(space.ndx, dtype=torch.float64), trial.action_sizes(), trial.parameter_sizes()])
    audited = MovedStep(method.audited, trial, backend=method.backend, dtype=method.dtype)
    received = reverse_jacobian(audited, batch, len(sizes), space.ndx) * sizes.unsqueeze(-1)
    after = trial.states[..., 1:, None, :].abs().nan_to_num(1.0, 1.0).amax(-1, keepdim=True).clamp_min(1.0)

    def against(dynamics: ResidualDynamics) -> dict[str, Comparison]:
        reference = MovedStep(dynamics, trial, backend="torch", dtype=torch.float64)
        found = quotients(reference, torch.diag(sizes).expand(*batch, -1, -1), method.step)
        row = found.magnitude.amax(-2, keepdim=True)
        # a joint that friction holds: what reverse mode leaves of its row has cancelled, to rounding of the largest entries
        rounding = method.rounding * after + CANCELLED * torch.finfo(method.dtype).eps * row.amax(-1, keepdim=True)
        return {"": excuse_near_switches(compare(received, found, tolerance=method.tolerance, size=FLOOR * row, rounding=rounding))}

    names = tangent_names(space)
    return StepAudit(comparison=against_any(method.references, against)[""], sizes=sizes, outputs=names, finite=trial.finite,
                     inputs=[*names, *space.action, *(p.name for p in trial.free)])


def excuse_near_switches(comparison: Comparison) -> Comparison:
    """Return a comparison that does not judge what only a switch makes wrong.

    Where differences by one input disagree among themselves in one output, a switch is near and falsifies the other outputs too,
    if less. And where the point is all but on a switch, differences by other inputs may lie to either side wholly beyond it: there
    an entry is only wrong if it is so in a step without a switch as well.
    """
    verdict = comparison.verdict
    wrong, switch = (verdict == Verdict.WRONG) | (verdict == Verdict.DEAD), verdict == Verdict.SWITCH
    by_input = switch.any(-1, keepdim=True)
    near = by_input.any(-2, keepdim=True)
    clean = (wrong & ~near).flatten(0, -3)
    only_near = ~clean.any(0) & bool((~near).any())
    return comparison._replace(verdict=verdict.masked_fill(wrong & (by_input | (near & only_near)), int(Verdict.SWITCH)))


def reverse_jacobian(function: MovedStep, batch: torch.Size, inputs: int, outputs: int) -> Float[Tensor, "*batch n outputs"]:
    """Return the derivative at no move, in float64, by one sweep of reverse mode an output; zero where nothing is differentiated."""
    moves = torch.zeros(*batch, 1, inputs, dtype=torch.float64, requires_grad=True)
    moved = function(moves)
    if not moved.requires_grad:
        return torch.zeros(*batch, inputs, outputs, dtype=torch.float64)
    rows = [torch.autograd.grad(moved[..., j].sum(), moves, retain_graph=True, allow_unused=True)[0] for j in range(outputs)]
    return torch.stack([moves.new_zeros(moves.shape) if row is None else row for row in rows], -1).squeeze(-3).detach()
