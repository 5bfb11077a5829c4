"""Audit of the gradients of a rollout: against differences, step by step and as a whole."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from residual_mbrl.audit_inputs import Trial, tangent_names
from residual_mbrl.audit_method import Method
from residual_mbrl.audit_result import Finding, FindingKind, GradientAudit
from residual_mbrl.difference_quotients import Comparison, Verdict
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.rollout_audit import audit_rollout
from residual_mbrl.rollouts import Backend, rollout
from residual_mbrl.sensitivity import Sensitivity, measure_sensitivity
from residual_mbrl.step_audit import audit_steps
from residual_mbrl.weight_audit import audit_weights

TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-2}
"""Relative error allowed by default: contacts of a simulator reach 1e-4 in float64, and in float32 1e-3 is lost where terms cancel."""
STEP = {torch.float64: 1e-5, torch.float32: 1e-2}
"""Step of the differences by default, by the precision that the simulator computes in."""


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """How to audit.

    Args:
        seed: Seed of the random directions.
        directions: Random directions of the whole rollout and of each tensor of weights.
        step: Coarser step of the differences, relative to the typical size of each input (1 SI unit for states, the root mean
            square for actions where that is more, ``Parameter.scale``); the finer one is a quarter of it. None takes 1e-5, and
            1e-2 for a simulator that computes in float32 whatever it is given.
        tolerance: Relative error allowed; None takes 1e-3, and 1e-2 where gradient or simulator are in float32.
        explosion: Growth of small changes, relative to that of a median step, from which on a gradient explodes.
        backend: What computes the gradient under audit, as in ``rollout``; differences are always taken in torch.
    """

    seed: int = 0
    directions: int = 4
    step: float | None = None
    tolerance: float | None = None
    explosion: float = 1e4
    backend: Backend = "torch"

    def __post_init__(self) -> None:
        """Check the numbers."""
        positive = {"directions": self.directions, "explosion": self.explosion,
                    **{n: x for n, x in (("step", self.step), ("tolerance", self.tolerance)) if x is not None}}
        if not all(x > 0 for x in positive.values()):
            raise ValueError(f"AuditOptions: expected positive numbers, received {positive}")


def gradient_audit(dynamics: ResidualDynamics, state: Float[Tensor, "*#batch nx"], actions: Float[Tensor, "*#batch horizon nu"],
                   options: AuditOptions | None = None) -> GradientAudit:
    """Compare the gradient of a rollout with differences, and say where it is zero, not finite, exploding or wrong.

    Three comparisons, all of reverse mode in the dtype of ``state`` with difference quotients in float64:

    - every entry of the Jacobian of every single step, by state (on the tangent space), action and free parameters;
    - single steps by each tensor of trainable weights, along random directions;
    - the whole rollout along random directions of first state, actions, parameters and weights.

    The quotients are taken at two step sizes and from both sides. A derivative is right if it is the centred one or one of the
    one-sided ones; where they disagree among themselves the function has a switch and nothing is judged. The relative error is
    ``|received - expected| / (|expected| + 1e-3 largest of the output's row)``.

    A baseline that smooths its gradients across switches (``MujocoSimulator(smoothing=...)``) is judged without that: by the derivative of
    the state itself. ``smoothed`` tells in which steps its own gradient is another.

    The model is never changed: copies are differentiated. With n = ndx + nu + parameters, T tensors of weights and D directions
    the cost is ``4 n + 4 D T`` steps and ``ndx + D`` reverse sweeps of one step for each step of each world, and ``20 D`` rollouts with
    ``2 D`` reverse sweeps, all batched: a cart-pole with a residual over 50 steps takes half a second, in 64 worlds as in one.

    Args:
        dynamics: The model; parameters have its own values.
        state: First state, shape [*batch, nx], float64 or float32.
        actions: Shape [*batch, H, nu].
        options: How to audit.

    Returns:
        Findings with world, step, input and output, growth of small changes, and a horizon up to which gradients do not explode.

    Raises:
        ValueError: if a shape, dtype or number does not fit, as ``rollout`` says; if the backend is "fused" and cannot be.
        ModelError: if the baseline was made without gradients.
    """
    options = options or AuditOptions()
    if state.dtype not in TOLERANCE:
        raise ValueError(f"gradient_audit: state must be float64 or float32, received {state.dtype}")
    audited, reference = copy.deepcopy(dynamics), copy.deepcopy(dynamics).double()
    audited.baseline = audited.baseline.unsmoothed()
    with torch.no_grad():
        rollout(audited, state, actions, backend=options.backend)  # refuses what does not fit
        states = rollout(reference, state.double(), actions.double())
    trial = Trial(states=states, actions=actions.double().expand(*states.shape[:-2], *actions.shape[-2:]),
                  free=tuple(dynamics.baseline.parameters.free()))
    method = _method(audited, reference, trial, options, state.dtype)
    generator = torch.Generator().manual_seed(options.seed)
    with torch.enable_grad():
        steps = audit_steps(method, trial)
        names = steps.outputs
        sensitivity = measure_sensitivity(steps.trusted[..., : len(names), :].mT, trial.finite, names, options.explosion)
        weights = audit_weights(method, trial, generator)
        whole = audit_rollout(method, trial, steps, sensitivity, generator)
    entries = [Comparison(*(x[trial.finite] for x in steps.comparison)), *weights.comparisons, *whole.comparisons]
    findings = [*_lost_states(trial, names), *steps.findings(), *sensitivity.findings, *weights.findings,
                *([] if weights.findings else whole.findings)]
    return replace(_result(findings, entries, sensitivity, method, trial), smoothed=_smoothed(dynamics, trial))


def _method(audited: ResidualDynamics, reference: ResidualDynamics, trial: Trial, options: AuditOptions, dtype: torch.dtype) -> Method:
    """Return how to take derivatives; a solver that stops early is judged by where it stops, and by where it would get."""
    exact = reference.baseline.solved_to_rounding()
    references: tuple[ResidualDynamics, ...] = (reference,)
    if exact is not reference.baseline:
        solved = copy.deepcopy(reference)
        solved.baseline = exact
        references = (solved, reference)
    precision = _precision(reference, trial)
    coarser = torch.float32 if torch.float32 in (dtype, precision) else torch.float64
    return Method(audited=audited, references=references, backend=options.backend, dtype=dtype, step=options.step or STEP[precision],
                  tolerance=options.tolerance or TOLERANCE[coarser], directions=options.directions, unit=torch.finfo(precision).eps)


def _precision(dynamics: ResidualDynamics, trial: Trial) -> torch.dtype:
    """Return in which precision a model computes float64 steps: in float32 if states about the first ones lead to float32 numbers."""
    generator = torch.Generator().manual_seed(0)
    first, action = trial.states[..., 0, :], trial.actions[..., 0, :]
    moves = 1e-3 * torch.randn(*first.shape[:-1], dynamics.space.ndx, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        after = dynamics.step(dynamics.space.integrate(first, moves), action)
    return torch.float32 if torch.equal(after, after.float().double()) else torch.float64


def _result(findings: Sequence[Finding], entries: Sequence[Comparison], sensitivity: Sensitivity, method: Method,
            trial: Trial) -> GradientAudit:
    verdict, error = (torch.cat([c[i].flatten() for c in entries]) for i in (0, 1))
    judged = error[verdict != Verdict.SWITCH].nan_to_num(torch.inf, torch.inf)
    known = [_explained(f, method, trial) for f in sorted(findings, key=lambda f: (f.world, f.step))]
    batch, horizon, baseline = trial.actions.shape[:-2], trial.actions.shape[-2], method.audited.baseline
    return GradientAudit(
        findings=tuple(f for f in known if f.kind is not FindingKind.SWITCH),
        switches=tuple(f for f in known if f.kind is FindingKind.SWITCH),
        checks=len(verdict), undecided=len(verdict) - len(judged), worst_error=float(judged.max()) if len(judged) else 0.0,
        growth=sensitivity.growth, horizon=sensitivity.horizon, rate=sensitivity.rate,
        subject=f"{' + '.join([type(baseline).__name__, *(r.name for r in method.audited.corrections)])}, {batch.numel()} world(s), "
                f"{horizon} steps, {method.backend} backend in {str(method.dtype).removeprefix('torch.')}",
        smoothed=torch.zeros(*batch, horizon, dtype=torch.bool))


def _smoothed(dynamics: ResidualDynamics, trial: Trial) -> Tensor:
    """Return where the model's own gradient is a mean across a switch, shape [*batch, H]; residuals' forces count as none."""
    own = trial.states[..., :-1, : dynamics.baseline.space.nx]
    values = {n: own.new_tensor(x) for n, x in dynamics.values.items()}
    return dynamics.baseline.smoothed(own, trial.actions, values) & trial.finite


def _lost_states(trial: Trial, names: Sequence[str]) -> list[Finding]:
    """Return, for each world whose state turns not finite, the step after which it does and the first entry."""
    lost = ~trial.states.isfinite().all(-1)
    found = []
    for world in lost.any(-1).nonzero().tolist():
        time = int(lost[tuple(world)].int().argmax())
        entry = int((~trial.states[(*world, time)].isfinite()).int().argmax())
        found.append(Finding(kind=FindingKind.NOT_FINITE, world=tuple(world), step=time - 1, steps=(time - 1,), input="",
                             output=names[min(entry, len(names) - 1)], expected=0.0, received=float(trial.states[(*world, time, entry)]),
                             error=float("inf"), note="the state itself"))
    return found


def _explained(finding: Finding, method: Method, trial: Trial) -> Finding:
    """Return a finding with what the baseline knows: how it takes this derivative, and what is in contact."""
    baseline, space = method.audited.baseline, method.audited.space
    contacts: tuple[str, ...] = ()
    if len(finding.world) == trial.actions.ndim - 2:
        state = trial.states[(*finding.world, finding.step)][: baseline.space.nx]
        contacts = baseline.describe_contacts(state) if state.isfinite().all() else ()
    if finding.kind is FindingKind.EXPLODING:  # whatever takes the derivative
        return replace(finding, contacts=contacts)
    kind = "state" if finding.input in tangent_names(space) else "action" if finding.input in space.action else finding.input
    named = kind in ("state", "action") or kind in baseline.parameters.names
    own = f"{method.backend} backend" if method.backend != "torch" else baseline.gradient_method(kind) if named else ""
    return replace(finding, contacts=contacts, method=own)
