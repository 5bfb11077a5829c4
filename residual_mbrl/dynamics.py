"""A baseline and its residuals joined into one model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from residual_mbrl.baselines import Baseline, Port, Values
from residual_mbrl.contacts import Contacts
from residual_mbrl.residuals.base import Certificate, Context, Residual, add_live


class Correction(NamedTuple):
    """What the residuals together hand to the baseline in one step."""

    contexts: list[Context]
    """What each residual saw."""
    action: Tensor
    """Command as executed, shape [*batch, nu]."""
    force: Tensor | None
    """Generalised force [N or N·m], shape [*batch, nv]; None where nothing is added."""
    values: dict[str, Tensor]
    """Physical parameter values with all live additions."""
    delta: Tensor | None
    """Tangent of the next state per second, shape [*batch, ndx]; None where nothing is added."""


class ResidualDynamics(nn.Module):
    """``x' = baseline.step(x, u + Δu, force, parameters + Δp) ⊞ dt r``: residuals on one port add up.

    Residuals are evaluated at the start of each step, those on the action port first: all others see the command as it is
    executed, and baseline signals that follow from it. Those with memory (lag, delay) extend the state by it.

    Args:
        baseline: What is known.
        residuals: What is learned; none leaves the baseline as it is.
        values: Physical parameter values that replace the nominal ones.

    Attributes:
        memory: Where the state holds the memory of each residual.

    Raises:
        ModelError: if a residual needs a port or a live parameter that the baseline lacks.
    """

    def __init__(self, baseline: Baseline, residuals: Sequence[Residual] = (), values: Mapping[str, float] | None = None) -> None:
        super().__init__()
        for residual in residuals:
            residual.check(baseline)
        self.baseline = baseline
        self.residuals = nn.ModuleList(residuals)
        self.values: dict[str, float] = {**baseline.parameters.nominal(), **(values or {})}
        unknown = [n for n in self.values if n not in baseline.parameters.names]
        if unknown:
            raise ValueError(f"ResidualDynamics: {type(baseline).__name__} has no parameters {unknown}")
        memory: list[str] = []
        self.memory: list[slice] = []
        for i, residual in enumerate(residuals):
            start = len(memory)
            memory += [f"residual{i}.{n}" for n in residual.memory_names]
            self.memory.append(slice(baseline.space.nx + start, baseline.space.nx + len(memory)))
        self.space = baseline.space.with_memory(tuple(memory)) if memory else baseline.space

    @property
    def corrections(self) -> list[Residual]:
        """The residuals in order."""
        return list(self.residuals)  # type: ignore[arg-type]  # nn.ModuleList forgets what it holds

    @property
    def dt(self) -> float:
        """Seconds per step."""
        return self.baseline.dt

    @property
    def members(self) -> int:
        """Members of an ensemble; 0 of a single model."""
        return next((w.shape[0] for w in self.parameters() if w.ndim > 2), 0)  # a layer's own dimensions are two

    def resolve(self, parameters: Values | None, like: Tensor) -> dict[str, Tensor]:
        """Return a value for every physical parameter: those given, this model's own otherwise."""
        given = parameters or {}
        own = {n: torch.tensor(x, dtype=like.dtype, device=like.device) for n, x in self.values.items() if n not in given}
        return {**own, **given}

    def with_values(self, values: Mapping[str, float]) -> ResidualDynamics:
        """Return a model with other physical parameter values and the same residuals (shared, not copied)."""
        return ResidualDynamics(self.baseline, self.corrections, {**self.values, **values})

    def with_residuals(self, residuals: Sequence[Residual]) -> ResidualDynamics:
        """Return a model with the same parameter values and other residuals."""
        return ResidualDynamics(self.baseline, residuals, self.values)

    def initial_state(self, state: Float[Tensor, "*#batch nx"], action: Float[Tensor, "*#batch nu"],
                      lead: Float[Tensor, "*#batch lead nu"] | None = None) -> Tensor:
        """Return a baseline state with each residual's memory at its start appended, shape [*batch, space.nx].

        The memory runs through the commands of ``lead`` with the baseline's state held: what a drive remembers are commands.

        Args:
            state: Baseline state, shape [*batch, nx].
            action: First command, shape [*batch, nu]; without a lead it has long been there.
            lead: Commands of the steps before, the latest last, shape [*batch, L, nu]; the earliest has long been there.
        """
        if self.space is self.baseline.space:
            return state
        earlier = () if lead is None else lead.unbind(-2)
        p = self.resolve(None, state)
        context = Context(self.baseline.space, state, earlier[0] if earlier else action, dt=self.dt, values=p)
        remembering = torch.cat([state, *(r.initial_memory(context) for r in self.corrections)], -1)
        for command in earlier:
            remembering = self.remember(state, self._seen(remembering, command, p)[0])
        return remembering

    def remember(self, known: Tensor, contexts: list[Context]) -> Tensor:
        """Append to a baseline state what the residuals remember of a step in which they saw ``contexts``."""
        return torch.cat([known, *(r.next_memory(c) for r, c in zip(self.corrections, contexts, strict=True))], -1)

    def contexts(self, state: Tensor, action: Tensor, parameters: Values | None = None) -> list[Context]:
        """Return what each residual sees in a step: the command as sent on the action port, as executed on all others.

        A baseline state without memory stands for a plant that has long been as it is.
        """
        if state.shape[-1] < self.space.nx:
            state = self.initial_state(state, action)
        return self._seen(state, action, self.resolve(parameters, state))[0]

    def _seen(self, state: Tensor, action: Tensor, p: Values) -> tuple[list[Context], Tensor]:
        """Return what each residual sees, and the command as executed."""
        known, residuals = state[..., : self.baseline.space.nx], self.corrections

        def context(memory: slice, u: Tensor, signals: Values, contacts: Contacts | None = None) -> Context:
            own = state[..., memory] if memory.stop > memory.start else None
            return Context(self.baseline.space, known, u, signals, own, self.dt, p, contacts, contacts_under if contacts else None)

        def contacts_under(force: Tensor | None) -> Contacts:
            return self.baseline.contacts(known, executed, p, most=most, reach=reach, force=force)

        most, reach = (max((getattr(r, n) for r in residuals), default=0) for n in ("most_contacts", "contact_reach"))
        drives = {i: context(self.memory[i], action, {}) for i, r in enumerate(residuals) if r.port is Port.ACTION}
        executed = action
        for i, seen in drives.items():
            executed = executed + residuals[i](seen)
        signals = self.baseline.signals(known, executed, p) if len(drives) < len(residuals) else {}
        contacts = contacts_under(None) if most else None
        return [drives[i] if i in drives else context(m, executed, signals, contacts) for i, m in enumerate(self.memory)], executed

    def correction(self, state: Tensor, action: Tensor, parameters: Values | None = None) -> Correction:
        """Return what the residuals together add to a baseline step; arguments as in ``step``."""
        p = self.resolve(parameters, state)
        contexts, executed = self._seen(state, action, p)
        force, delta = None, None
        for residual, context in zip(self.corrections, contexts, strict=True):
            if residual.port is Port.ACTION:
                continue
            out: Tensor = residual(context)
            if residual.port is Port.FORCE:
                force = out if force is None else force + out
            elif residual.port is Port.STATE:
                delta = out if delta is None else delta + out
            elif residual.live is not None:
                p = add_live(p, residual.live, out)
        return Correction(contexts, executed, force, p, delta)

    def step(self, state: Float[Tensor, "*#batch nx"], action: Float[Tensor, "*#batch nu"],
             parameters: Values | None = None) -> Float[Tensor, "... nx"]:
        """Advance one step of ``dt`` seconds.

        Args:
            state: Baseline state with residual memory, shape [*batch, nx].
            action: Shape [*batch, nu].
            parameters: Physical values by name that replace this model's own, each broadcastable to [*batch].
        """
        if not self.residuals:
            return self.baseline.step(state, action, None, self.resolve(parameters, state))
        added = self.correction(state, action, parameters)
        known = self.baseline.step(added.contexts[0].state, added.action, added.force, added.values)
        if added.delta is not None:
            known = self.baseline.space.integrate(known, self.dt * added.delta)
        if self.space is self.baseline.space:
            return known
        return self.remember(known, added.contexts)

    def forward(self, state: Tensor, action: Tensor, parameters: Values | None = None) -> Tensor:
        """Call ``step``."""
        return self.step(state, action, parameters)

    def residual_force(self, state: Tensor, action: Tensor) -> Tensor:
        """Return what all residuals together do to the next velocity, as a generalised force [N or N·m], shape [*batch, nv].

        It is ``M Δv / dt`` with Δv the difference that the residuals make to the step, for baselines with a mass matrix,
        and ``Δv / dt`` [acceleration] for others.
        """
        known = state[..., : self.baseline.space.nx]
        p = self.resolve(None, state)
        change = self.step(state, action)[..., : known.shape[-1]] - self.baseline.step(known, action, None, dict(p))
        q, _, _ = self.baseline.space.split(known)
        dv = self.baseline.space.split(change)[1] / self.dt
        mass = getattr(self.baseline, "mass_matrix", None)
        return dv if mass is None else (mass(q, p) @ dv.unsqueeze(-1)).squeeze(-1)

    def normalise(self, state: Tensor, action: Tensor) -> None:
        """Set every residual's normaliser from states and actions of the data, shapes [*batch, nx], [*batch, nu]."""
        with torch.no_grad():  # what an actuator makes of the commands depends on its weights, the normaliser must not
            for residual, context in zip(self.corrections, self.contexts(state, action), strict=True):
                residual.normalise(context)

    def certificates(self, state: Tensor, action: Tensor) -> list[Certificate]:
        """Return what each residual was found to do at worst over these states and actions."""
        with torch.no_grad():
            seen = zip(self.corrections, self.contexts(state, action), strict=True)
            return [found for r, c in seen for found in r.certificates(c, self.baseline)]


def ensemble(members: Sequence[ResidualDynamics]) -> ResidualDynamics:
    """Join models of one structure into one whose weights carry a leading member dimension.

    A rollout of the result takes states [members, *batch, nx]; each member moves its own row. Physical parameter values
    are those of the first member; pass others, shaped [members, 1, ...], as ``parameters``.

    Args:
        members: At least one model; all with the same baseline and residual types and sizes.
    """
    if not members:
        raise ValueError("ensemble: expected at least one model")
    states = [dict(m.state_dict()) for m in members]
    if any(s.keys() != states[0].keys() for s in states):
        raise ValueError("ensemble: expected members of one structure, received different weights")
    return _holding(members[0], {n: torch.stack([s[n] for s in states]) for n in states[0]})


def member(dynamics: ResidualDynamics, k: int) -> ResidualDynamics:
    """Return one model of an ensemble, as ``ensemble`` was given it."""
    return _holding(dynamics, {n: t[k].clone() for n, t in dynamics.state_dict().items()})


def _holding(dynamics: ResidualDynamics, stored: Mapping[str, Tensor]) -> ResidualDynamics:
    """Return a copy with other weights and normalisers, of any shapes; fixed index tables are not among what is stored."""
    made = copy.deepcopy(dynamics)
    for name, parameter in list(made.named_parameters()):
        _assign(made, name, nn.Parameter(stored[name], requires_grad=parameter.requires_grad))
    for name, buffer in list(made.named_buffers()):
        if name in stored:
            *path, last = name.split(".")
            made.get_submodule(".".join(path)).register_buffer(last, stored[name].to(buffer))
    return made


def _assign(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    *path, last = name.split(".")
    owner = module.get_submodule(".".join(path))
    if isinstance(owner, nn.ParameterList):
        owner[int(last)] = parameter
    else:
        setattr(owner, last, parameter)
