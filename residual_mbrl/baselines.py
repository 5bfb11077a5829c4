"""What is known of a plant: one step of a model with named parameters, and the ports through which it can be corrected."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from residual_mbrl.contacts import Contacts
from residual_mbrl.errors import ModelError
from residual_mbrl.spaces import StateSpace

Values = Mapping[str, Tensor]


class Port(Enum):
    """Where a residual enters a baseline; see the table in docs/decisions.md for what each port guarantees."""

    ACTION = "action"
    """The command as the drive really executes it, in place of the one sent, shape [*batch, nu]."""
    FORCE = "force"
    """A generalised force added before the step is solved, shape [*batch, nv]."""
    PARAMETERS = "parameters"
    """An addition to a named live parameter; the baseline's own law then holds for any value."""
    STATE = "state"
    """A tangent-space correction of the next state per second, shape [*batch, ndx]; guarantees nothing by itself."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One named physical quantity of a model.

    Args:
        name: Name within its model, such as "damping".
        nominal: Value that the data sheet or the model file gives, in ``unit``.
        lower: Smallest value allowed.
        upper: Largest value allowed.
        unit: SI unit, such as "N·m·s/rad".
        prior_std: Standard deviation of a Gaussian prior about ``nominal`` in ``unit``; None for no prior.
        free: Whether identification may change it by default.
        description: One line for tables.
    """

    name: str
    nominal: float
    lower: float
    upper: float
    unit: str = "1"
    prior_std: float | None = None
    free: bool = True
    description: str = ""

    def __post_init__(self) -> None:
        """Check that the nominal value lies within finite bounds."""
        if not (self.lower < self.upper and self.lower <= self.nominal <= self.upper):
            raise ValueError(f"Parameter {self.name!r}: expected lower <= nominal <= upper and lower < upper, received "
                             f"{self.lower}, {self.nominal}, {self.upper} [{self.unit}]")
        if self.prior_std is not None and not self.prior_std > 0:
            raise ValueError(f"Parameter {self.name!r}: prior_std must be positive, received {self.prior_std}")

    @property
    def scale(self) -> float:
        """Typical size of a change, in ``unit``: the prior where there is one, else a quarter of the bounds' span or |nominal|."""
        if self.prior_std is not None:
            return self.prior_std
        span = 0.25 * (self.upper - self.lower)
        return min(span, abs(self.nominal)) if self.nominal else span


class Parameters(Sequence[Parameter]):
    """The named parameters of a model, in order."""

    def __init__(self, *parameters: Parameter) -> None:
        names = [p.name for p in parameters]
        if len(set(names)) != len(names):
            raise ValueError(f"Parameters: names must be unique, received {names}")
        self._by_name = {p.name: p for p in parameters}

    def __getitem__(self, key: str | int) -> Parameter:  # type: ignore[override]
        """Return a parameter by name or by place."""
        if isinstance(key, int):
            return list(self._by_name.values())[key]
        if key not in self._by_name:
            raise ValueError(f"no parameter named {key!r}; there are {self.names}")
        return self._by_name[key]

    def __iter__(self) -> Iterator[Parameter]:
        """Iterate over the parameters in order."""
        return iter(self._by_name.values())

    def __len__(self) -> int:
        """Return how many parameters there are."""
        return len(self._by_name)

    def __contains__(self, name: object) -> bool:
        """Tell whether a parameter of this name exists."""
        return name in self._by_name

    @property
    def names(self) -> list[str]:
        """Names in order."""
        return list(self._by_name)

    def replaced(self, **changes: Mapping[str, object]) -> Parameters:
        """Return a copy in which the fields given for some names are changed, ``replaced(mass=dict(free=False))``."""
        for name in changes:
            _ = self[name]
        return Parameters(*(replace(p, **changes.get(p.name, {})) for p in self))  # type: ignore[arg-type]

    def free(self, patterns: Sequence[str] | None = None) -> list[Parameter]:
        """Return the parameters to identify: those matching any glob pattern, or those marked free.

        Raises:
            ModelError: if a pattern matches nothing.
        """
        if patterns is None:
            chosen = [p for p in self if p.free]
        else:
            for pattern in patterns:
                if not any(fnmatchcase(n, pattern) for n in self.names):
                    raise ModelError(f"free: {pattern!r} matches no parameter; there are {self.names}")
            chosen = [p for p in self if any(fnmatchcase(p.name, pattern) for pattern in patterns)]
        return chosen

    def nominal(self) -> dict[str, float]:
        """Return the nominal value of every parameter."""
        return {p.name: p.nominal for p in self}

    def resolve(self, values: Values | None, like: Tensor) -> dict[str, Tensor]:
        """Return a value for every parameter: those given, nominal otherwise, in the dtype and on the device of ``like``."""
        resolved = {} if values is None else dict(values)
        for p in self:
            if p.name not in resolved:
                resolved[p.name] = torch.tensor(p.nominal, dtype=like.dtype, device=like.device)
        return resolved


class StepJacobian(NamedTuple):
    """Derivative of one step on the tangent space: ``δx' = state δx + action δu + force δf + Σ parameters[n] δp_n``."""

    state: Tensor
    """Shape [*batch, ndx, ndx]."""
    action: Tensor
    """Shape [*batch, ndx, nu]."""
    force: Tensor | None
    """Shape [*batch, ndx, nv]; None where the baseline has no force port."""
    parameters: Mapping[str, Tensor]
    """Of the values that were given and asked for, by name, shape [*batch, ndx, *value]."""


WarpFunction = Callable[..., Any]
"""A ``wp.func``, or a Python function around such, of one world's small vectors (see ``docs/fused.md``)."""


class WarpStep(NamedTuple):
    """The Warp form of a step, for fused rollouts."""

    substep: WarpFunction
    """``substep(x, u, force, p) -> x'`` of one world: state, action, generalised force (nv) and parameters in their order."""
    substeps: int = 1
    """Substeps of a step; ``force`` and action are held over all of them."""


class Baseline(ABC):
    """A known model ``x' = step(x, u, force, parameters)`` with a fixed step of ``dt`` seconds.

    Subclasses state their equations and source in their docstring. Everything in a step is differentiable in torch with
    respect to state, action, force and parameters, in float32 or float64 as the input is.

    Attributes:
        space: Names, units and sizes of state and action.
        parameters: Named physical parameters.
        ports: Ports through which residuals may enter.
        live: Names that a residual may add to through ``Port.PARAMETERS`` (values shaped [*batch, ...], state-dependent).
        has_contacts: Whether it can say what touches what, see ``contacts``.
        dt: Seconds per step.
    """

    space: StateSpace
    parameters: Parameters
    ports: frozenset[Port] = frozenset({Port.ACTION, Port.STATE})
    live: frozenset[str] = frozenset()
    has_contacts: bool = False
    dt: float

    @abstractmethod
    def step(self, state: Float[Tensor, "*#batch nx"], action: Float[Tensor, "*#batch nu"], force: Tensor | None = None,
             parameters: Values | None = None) -> Float[Tensor, "... nx"]:
        """Advance one step of ``dt`` seconds.

        Args:
            state: Shape [*batch, nx].
            action: Held over the step, shape [*batch, nu].
            force: Generalised force [N or N·m] added to the model's own, shape [*batch, nv].
            parameters: Values by name that replace the nominal ones, each broadcastable to [*batch]; live additions by
                name, shaped as the baseline documents.
        """

    def rollout(self, state: Float[Tensor, "*batch nx"], actions: Float[Tensor, "*batch horizon nu"],
                parameters: Values | None = None) -> Float[Tensor, "*batch horizon_1 nx"]:
        """Advance H steps; a simulator overrides this with a loop of its own.

        Args:
            state: First state, shape [*batch, nx].
            actions: Shape [*batch, H, nu].
            parameters: As in ``step``.

        Returns:
            States, shape [*batch, H + 1, nx], the first one included.
        """
        states = [state]
        for action in actions.unbind(-2):
            states.append(self.step(states[-1], action, None, parameters))
        return torch.stack(states, -2)

    def jacobian(self, state: Float[Tensor, "*batch nx"], action: Float[Tensor, "*batch nu"], force: Tensor | None = None,
                 parameters: Values | None = None, *, by: Collection[str] | None = None) -> StepJacobian | None:
        """Return the derivative of a step where torch cannot take it through ``step`` in forward mode; None where it can.

        Args:
            state: Shape [*batch, nx].
            action: Shape [*batch, nu].
            force: As in ``step``.
            parameters: As in ``step``.
            by: Names of the parameters by which it is wanted too; all that are given where None.
        """
        return None

    def warp_step(self) -> WarpStep | None:
        """Return the same equations as a Warp function, for fused rollouts; None where there is only the torch form.

        What the function takes from ``self`` must be an int, float, str or tuple: models that agree in those share compiled code.
        """
        return None

    def warp_signals(self) -> dict[str, tuple[int, WarpFunction]]:
        """Return the length and the Warp form ``(x, u, p) -> vector`` of each signal that has one."""
        return {}

    def signals(self, state: Float[Tensor, "*#batch nx"], action: Float[Tensor, "*#batch nu"],
                parameters: Values | None = None) -> dict[str, Tensor]:
        """Return internal quantities a residual may look at (torques, duty, current), each [*batch, k]; none by default."""
        return {}

    def contacts(self, state: Float[Tensor, "*#batch nx"], action: Float[Tensor, "*#batch nu"], parameters: Values | None = None, *,
                 most: int, reach: float = 0.0, force: Tensor | None = None) -> Contacts:
        """Return the contacts at the start of a step, without gradients; asked for only where a residual looks at them.

        Args:
            state: Shape [*batch, nx].
            action: Shape [*batch, nu].
            parameters: As in ``step``.
            most: Contacts kept in each world, those with the smallest gap; what is left out is counted.
            reach: Distance [m] up to which pairs are listed before they touch.
            force: As in ``step``: the contact forces are those under it.

        Raises:
            ModelError: where the baseline knows of no contacts.
        """
        raise ModelError(f"{type(self).__name__} does not know its contacts")

    def gradient_method(self, name: str) -> str:
        """Return in words how a step is differentiated by "state", "action", "force" or a parameter."""
        return "torch autograd"

    def smoothed(self, state: Float[Tensor, "*#batch nx"], action: Float[Tensor, "*#batch nu"],
                 parameters: Values | None = None) -> Bool[Tensor, "..."]:
        """Return where the gradient of a step is meant to be another than its derivative: smoothed across a switch, shape [*batch]."""
        return state.new_zeros(torch.broadcast_shapes(state.shape[:-1], action.shape[:-1]), dtype=torch.bool)

    def unsmoothed(self) -> Baseline:
        """Return this model with the derivative itself for a gradient everywhere; itself where that is so."""
        return self

    def solved_to_rounding(self) -> Baseline:
        """Return this model with whatever its step solves by iteration solved as far as rounding allows; itself where there is nothing."""
        return self

    def describe_contacts(self, state: Float[Tensor, " nx"]) -> tuple[str, ...]:
        """Return what touches what in one state, each in a few words; nothing where the baseline knows of no contacts."""
        return ()

    def energy(self, state: Float[Tensor, "*batch nx"], parameters: Values | None = None) -> Float[Tensor, "..."]:
        """Return the stored energy [J], shape [*batch].

        Raises:
            ModelError: where the baseline does not know its energy.
        """
        raise ModelError(f"{type(self).__name__} does not know its stored energy")

    def dissipation_power(self, state: Float[Tensor, "*#batch nx"], action: Float[Tensor, "*#batch nu"],
                          parameters: Values | None = None) -> Float[Tensor, "..."]:
        """Return the mean power [W] of all dissipative forces over one step, shape [*batch]; never positive if passive.

        Raises:
            ModelError: where the baseline does not separate dissipation from the rest.
        """
        raise ModelError(f"{type(self).__name__} does not know its dissipation")

    def describe(self) -> dict[str, object]:
        """Return the constructor arguments that an artefact must keep to build this baseline again."""
        return {"dt": self.dt}
