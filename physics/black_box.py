"""Any step function in numpy as a baseline, isolated from what it may do: raise, return nonsense, crash, hang."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from torch import Tensor

from residual_mbrl.baselines import Baseline, Parameters, Port, StepJacobian, Values
from residual_mbrl.errors import ModelError
from residual_mbrl.physics.numeric_step import (
    STEP,
    Gradients,
    Inputs,
    difference_jacobian,
    pull_back_by_differences,
    torch_jacobian,
    torch_step,
)
from residual_mbrl.physics.worker_processes import Processes
from residual_mbrl.physics.workers import DEAD, Array, Factory, Fault, Runner, StepFunction, Threads, Worlds, hand_out
from residual_mbrl.spaces import StateSpace
from residual_mbrl.status import StepStatus

log = logging.getLogger(__name__)

TIMEOUT = 60.0
"""Most seconds for a step in a worker process, where none is given."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A world whose step has no result, with what is needed to see it again.

    Args:
        world: Row of the batch, counted over all its dimensions; perturbed copies of differences count too.
        status: Kind of failure.
        message: What happened, in a line.
        traceback: Where, as Python or the signal handler of a crashed process tells it; empty where neither could.
        state: From which state, shape [nx].
        action: With which action, shape [nu].
    """

    world: int
    status: StepStatus
    message: str
    traceback: str
    state: Array
    action: Array


class BlackBox(Baseline):
    """A simulator ``x' = step(x, u)`` in numpy of which nothing else is known.

    ``step`` must depend on its arguments alone: it sets the simulator to the state, advances it by ``dt`` and reads the state.
    A world whose step fails becomes NaN, and the batch goes on: ``status`` and ``failures`` tell what happened in the last
    step (taking gradients counts, and its perturbed worlds with it), the log warns once of each kind. A world that starts from NaN
    is not stepped.

    To save a calibration of one, make it a subclass whose constructor takes ``parameters`` and what ``describe`` returns.

    Gradients are centred differences: all perturbed worlds are stepped as one batch. Second derivatives do not exist.

    Ports: action and state; force where ``force``, parameters (all of them live) where there are any.

    Args:
        step: ``step(state [nx], action [nu]) -> next state [nx]``, float64. With ``force`` it takes ``force=[nv]`` too, and with
            ``parameters`` also ``parameters={name: float}``. Called from several threads at once where there are any.
        space: Names, units and sizes of state and action.
        dt: Seconds per step.
        factory: Makes the step, in place of ``step``: once in each thread or process, so none is shared and none pickled.
        parameters: Named parameters that the step takes.
        force: Whether the step takes a generalised force.
        batched: Whether the step takes all worlds at once, [N, nx], [N, nu], ([N, nv], {name: [N]}), and returns [N, nx].
        workers: Threads or processes; 0 steps in the caller's thread.
        mode: "threads" for steps that release the interpreter's lock, "processes" for all others and for those that may crash or
            hang: at least one is then spawned, at the first step, and a script must be guarded by ``if __name__ == "__main__"``.
        timeout: Most seconds for one call of the step, processes only; None for 60 s.
        gradients: "differences", or None for a step that must not be differentiated.
        perturbation: Of the differences, relative to the scale of each parameter, in SI units for all others. Larger for a
            simulator that computes in float32 (about 1e-3) or that is not smooth.

    Raises:
        ModelError: at a step, if a worker cannot make its simulator.
    """

    def __init__(self, step: StepFunction | None, space: StateSpace, dt: float, *, factory: Factory | None = None,
                 parameters: Parameters | None = None, force: bool = False, batched: bool = False, workers: int = 0,
                 mode: Literal["threads", "processes"] = "threads", timeout: float | None = None,
                 gradients: Literal["differences"] | None = "differences", perturbation: float = STEP) -> None:
        name = type(self).__name__
        make = factory if step is None else partial(hand_out, step)
        if make is None or (step is not None and factory is not None):
            raise ValueError(f"{name}: expected either step or factory, received {'neither' if step is None else 'both'}")
        if not callable(step if factory is None else factory):
            raise ValueError(f"{name}: expected a function, received {step if factory is None else factory!r}")
        if mode not in ("threads", "processes"):
            raise ValueError(f"{name}: mode must be threads or processes, received {mode!r}")
        positive = {"dt": dt, "perturbation": perturbation, **({} if timeout is None else {"timeout": timeout})}
        if workers < 0 or not all(x > 0 for x in positive.values()):
            raise ValueError(f"{name}: expected workers >= 0 and the others positive, received workers {workers}, {positive}")
        if timeout is not None and mode != "processes":
            raise ValueError(f"{name}: only a process can be ended when it hangs; expected mode \"processes\" with timeout {timeout} s")
        if gradients not in ("differences", None):
            raise ValueError(f"{name}: gradients must be \"differences\" or None, received {gradients!r}")
        self.space, self.dt, self.parameters = space, dt, parameters or Parameters()
        self.live = frozenset(self.parameters.names)
        self.ports = frozenset({Port.ACTION, Port.STATE, *([Port.FORCE] if force else []), *([Port.PARAMETERS] if self.live else [])})
        self.gradients, self.perturbation = gradients, perturbation
        self._force, self._nominal = force, self.parameters.nominal()
        self._scales = {p.name: p.scale for p in self.parameters}
        self._start: Callable[[], Runner] = partial(Threads, make, batched=batched, workers=workers)
        if mode == "processes":
            self._start = partial(Processes, make, batched=batched, workers=max(workers, 1), timeout=timeout or TIMEOUT)
        self._runner: Runner = self._start()
        self._warned: set[StepStatus] = set()
        self._worlds = 0
        self._failures: dict[int, Failure] = {}

    @property
    def status(self) -> list[StepStatus]:
        """What became of each world of the last step, by row of the batch."""
        return [self._failures[i].status if i in self._failures else StepStatus.OK for i in range(self._worlds)]

    @property
    def failures(self) -> list[Failure]:
        """The worlds of the last step that failed in it, or in an earlier one of the same rollout."""
        return list(self._failures.values())

    def step(self, state: Tensor, action: Tensor, force: Tensor | None = None, parameters: Values | None = None) -> Tensor:
        """Advance one step; NaN in the rows of worlds that fail.

        Raises:
            ModelError: if a force or a parameter is given that the step does not take, or a worker cannot make its simulator.
            ValueError: if a shape does not fit.
        """
        self._check(state, action, force, parameters)
        return torch_step(self, self.space, state, action, force, parameters)

    def jacobian(self, state: Tensor, action: Tensor, force: Tensor | None = None, parameters: Values | None = None, *,
                 by: Collection[str] | None = None) -> StepJacobian:
        """Return the derivative of a step by centred differences.

        Raises:
            ModelError: if this baseline was made without gradients.
        """
        self._check(state, action, force, parameters)
        self._check_differentiable()
        return torch_jacobian(self._differentiate, state, action, force, parameters, by=by)

    def advance(self, inputs: Inputs) -> Array:
        """Step N worlds in numpy; see ``NumericStep``."""
        force, parameters, n = inputs.force, None, len(inputs.state)
        if self._force and force is None:
            force = np.zeros((n, self.space.nv))
        if self._nominal:
            parameters = {name: inputs.values[name] if name in inputs.values else np.full(n, x) for name, x in self._nominal.items()}
        worlds = Worlds(state=inputs.state, action=inputs.action, force=force, parameters=parameters)
        after, faults = self._runner.run(worlds)
        if faults or self._failures:
            self._note(worlds, faults)
        self._worlds = n
        return after

    def pull_back(self, inputs: Inputs, cotangent: Array, wanted: frozenset[str]) -> Gradients:
        """Return gradients by centred differences; see ``NumericStep``."""
        self._check_differentiable()
        return pull_back_by_differences(self.advance, self.space, inputs, cotangent, sorted(wanted), step=self.perturbation,
                                        scales=self._scales)

    def gradient_method(self, name: str) -> str:
        """Return in words how a step is differentiated."""
        return f"centred differences of {self.perturbation:g}"

    def close(self) -> None:
        """End all worker threads and processes; a later step starts them again."""
        self._runner.close()

    def __enter__(self) -> Self:
        """Return self; the workers end with the ``with`` block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the workers."""
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return self: a simulator holds nothing that a copy of a model may want to change, and its workers are shared."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the workers: a copy in another process starts its own."""
        return {n: x for n, x in vars(self).items() if n != "_runner"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make workers anew."""
        vars(self).update(state)
        self._runner = self._start()

    def _check(self, state: Tensor, action: Tensor, force: Tensor | None, parameters: Values | None) -> None:
        space = self.space
        for name, x, size in (("state", state, space.nx), ("action", action, space.nu), ("force", force, space.nv)):
            if x is not None and (not x.ndim or x.shape[-1] != size):
                raise ValueError(f"{type(self).__name__}: {name} must have shape [*batch, {size}], received {tuple(x.shape)}")
        if force is not None and not self._force:
            raise ModelError(f"{type(self).__name__}: its step takes no force; expected force=True and a step that does")
        unknown = [n for n in parameters or () if n not in self._nominal]
        if unknown:
            raise ModelError(f"{type(self).__name__}: no parameters {unknown}; there are {self.parameters.names}")

    def _check_differentiable(self) -> None:
        if self.gradients is None:
            raise ModelError(f"{type(self).__name__} has no gradients; expected gradients=\"differences\" to take them, at the cost of two "
                             f"steps for each entry of what is differentiated")

    def _differentiate(self, inputs: Inputs, names: Sequence[str]) -> dict[str, Array]:
        return difference_jacobian(self.advance, self.space, inputs, names, step=self.perturbation, scales=self._scales)

    def _note(self, worlds: Worlds, faults: Mapping[int, Fault]) -> None:
        """Keep what failed; a world that was dead before the step keeps the reason that it died of."""
        before = self._failures if self._worlds == len(worlds) else {}
        self._failures = {i: before[i] if fault is DEAD and i in before else
                          Failure(world=i, **fault._asdict(), state=worlds.state[i].copy(), action=worlds.action[i].copy())
                          for i, fault in sorted(faults.items())}
        for failure in self._failures.values():
            if failure.status not in self._warned:
                self._warned.add(failure.status)
                log.warning("%s: world %d %s: %s\n%sFurther worlds of this kind are told by `failures` alone.", type(self).__name__,
                            failure.world, failure.status.value, failure.message, failure.traceback)
