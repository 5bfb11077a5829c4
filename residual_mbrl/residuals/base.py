"""What every residual is: a learned correction on one port of a baseline, with a certificate of what it cannot do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from residual_mbrl.baselines import Baseline, Port, Values
from residual_mbrl.contacts import Contacts
from residual_mbrl.errors import ModelError
from residual_mbrl.spaces import StateSpace

if TYPE_CHECKING:
    from residual_mbrl.residuals.features import FeatureMap
    from residual_mbrl.residuals.warp_form import WarpForm


@dataclass(frozen=True)
class Context:
    """All that a residual may look at in one step; shapes [*batch, ...].

    Args:
        space: Layout of the baseline's state.
        state: Baseline state, shape [*batch, nx].
        action: Command, shape [*batch, nu]: as it was sent for a residual on the action port, as executed for all others.
        signals: Internal quantities of the baseline under the executed command by name, each [*batch, k]; none for a residual on
            the action port, which decides what is executed.
        memory: This residual's own memory, shape [*batch, memory].
        dt: Seconds per step.
        values: Physical parameter values of the model by name, each broadcastable to [*batch]; nominal where missing.
        contacts: What touches what at the start of the step, where a residual of the model looks at it.
        contacts_under: The same with the forces under a generalised force beside the baseline's own, shape [*batch, nv].
    """

    space: StateSpace
    state: Tensor
    action: Tensor
    signals: Mapping[str, Tensor] = field(default_factory=dict)
    memory: Tensor | None = None
    dt: float = 0.0
    values: Values = field(default_factory=dict)
    contacts: Contacts | None = None
    contacts_under: Callable[[Tensor], Contacts] | None = None

    @property
    def q(self) -> Tensor:
        """Positions, shape [*batch, nq]."""
        return self.state[..., : self.space.nq]

    @property
    def v(self) -> Tensor:
        """Velocities, shape [*batch, nv]."""
        return self.state[..., self.space.nq : self.space.nq + self.space.nv]

    def source(self, name: str) -> Tensor:
        """Return a state entry, an action entry, a signal, or "position" / "velocity" / "action" whole, shape [*batch, k].

        Raises:
            ModelError: if nothing has this name.
        """
        if name in self.signals:
            return self.signals[name]
        if name in self.space.state_names:
            i = self.space.index(name)
            return self.state[..., i : i + 1]
        if name in self.space.action:
            i = self.space.action.index(name)
            return self.action[..., i : i + 1]
        whole = {"position": self.q, "velocity": self.v, "action": self.action}
        if name in whole:
            return whole[name]
        raise ModelError(f"residual feature {name!r}: the baseline has no such state, action or signal; there are "
                         f"{[*self.space.state_names, *self.space.action, *self.signals, *whole]}")


def add_live(values: Values, name: str, addition: Tensor) -> dict[str, Tensor]:
    """Return parameter values with an addition to a live one, which may be a named parameter or not be there yet."""
    return {**values, name: values[name] + addition if name in values else addition}


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What a residual was found to do at worst over the states it was asked about.

    Args:
        residual: Name of the residual.
        quantity: What was measured, such as "power" or "excess over bound".
        worst: Largest value found.
        limit: Value that the residual promises not to exceed.
        unit: Unit of both.
        samples: Number of states examined.
    """

    residual: str
    quantity: str
    worst: float
    limit: float
    unit: str
    samples: int

    @property
    def holds(self) -> bool:
        """Whether the promise was kept, to rounding."""
        return self.worst <= self.limit + 1e-9 * max(1.0, abs(self.limit))


class Residual(nn.Module, ABC):
    """A learned correction that enters a baseline through one port.

    Weights may carry a leading member dimension (see ``networks``); a residual written with ``networks.per_member``
    then evaluates all members of an ensemble at once on states of shape [members, *batch, nx].

    Attributes:
        port: Where the correction enters.
        live: For ``Port.PARAMETERS``, the live parameter that the output is added to.
        memory_names: Names of the memory entries that the residual keeps in the state.
        most_contacts: How many contacts of a world it looks at; the baseline is asked for none where no residual looks. One that does
            sees nothing else and takes them as given, so that its derivative by state and action is zero.
        contact_reach: Distance [m] up to which it looks at pairs that do not touch yet.
        features: Map of the inputs that its network sees; holds the normaliser.
    """

    port: Port
    live: str | None = None
    memory_names: tuple[str, ...] = ()
    most_contacts: int = 0
    contact_reach: float = 0.0
    features: FeatureMap

    @abstractmethod
    def forward(self, context: Context) -> Tensor:
        """Return the correction on the port: action, force, addition to the live parameter, or tangent per second."""

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """Return the constructor arguments, as JSON holds them, that rebuild this residual."""

    @abstractmethod
    def certificate(self, context: Context, baseline: Baseline) -> Certificate:
        """Measure, over the states of a context, what the residual promises; shapes as in ``forward``."""

    def certificates(self, context: Context, baseline: Baseline) -> list[Certificate]:
        """Return every promise as measured, for a residual that makes several; shapes as in ``forward``."""
        return [self.certificate(context, baseline)]

    def warp_form(self, space: StateSpace, signals: Mapping[str, tuple[int, Callable[..., Any]]]) -> WarpForm | None:
        """Return what a fused rollout needs of this residual; None where it has only the torch form.

        Args:
            space: Of the baseline.
            signals: Length of each signal of the baseline that has a Warp form, and that form, ``(x, u, p) -> vector``.
        """
        return None

    def initial_memory(self, context: Context) -> Tensor:
        """Return the memory of a plant that has long been as it is now, shape [*batch, memory]."""
        return context.state.new_zeros(*context.state.shape[:-1], 0)

    def next_memory(self, context: Context) -> Tensor:
        """Return the memory after this step, shape [*batch, memory]."""
        return context.state.new_zeros(*context.state.shape[:-1], 0)

    @property
    def name(self) -> str:
        """Name in reports."""
        return type(self).__name__

    def check(self, baseline: Baseline) -> None:
        """Check that a baseline has the port (and live parameter) that this residual needs.

        Raises:
            ModelError: naming both sides where they do not fit.
        """
        if self.port not in baseline.ports:
            raise ModelError(f"{self.name} enters through the {self.port.value} port, but {type(baseline).__name__} has only "
                             f"{sorted(p.value for p in baseline.ports)}")
        if self.port is Port.PARAMETERS and self.live not in baseline.live:
            raise ModelError(f"{self.name} adds to the parameter {self.live!r}, but {type(baseline).__name__} has live only "
                             f"{sorted(baseline.live)}")
        if self.most_contacts and not baseline.has_contacts:
            raise ModelError(f"{self.name} looks at contacts, but {type(baseline).__name__} knows of none")

    def normalise(self, context: Context) -> None:
        """Set the normaliser of the features from states and actions of the data, shapes [*batch, ...]."""
        if "features" in self._modules:
            self.features.fit(context)


def power_certificate(name: str, power: Tensor, quantity: str = "power") -> Certificate:
    """Certificate that a dissipative correction gives no positive power [W]."""
    worst = float(power.detach().max()) if power.numel() else 0.0
    return Certificate(residual=name, quantity=quantity, worst=worst, limit=0.0, unit="W", samples=power.numel())


def bound_certificate(name: str, excess: Tensor, quantity: str, unit: str) -> Certificate:
    """Certificate that a correction never leaves its bound; ``excess`` is how far it goes beyond."""
    worst = float(torch.clamp(excess.detach(), min=0.0).max()) if excess.numel() else 0.0
    return Certificate(residual=name, quantity=quantity, worst=worst, limit=0.0, unit=unit, samples=excess.numel())
