"""A numpy step in torch: its gradients are those that autograd takes of the same equations; without them it costs next to nothing."""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from residual_mbrl.baselines import Baseline
from residual_mbrl.errors import ModelError
from residual_mbrl.physics.numeric_step import (
    Array,
    Gradients,
    Inputs,
    difference_jacobian,
    pull_back_by_differences,
    torch_jacobian,
    torch_step,
)
from residual_mbrl.physics.pendulum import Pendulum
from residual_mbrl.spaces import StateSpace

BODY = StateSpace(position=("x", "qw", "qx", "qy", "qz", "slide"), velocity=("vx", "wx", "wy", "wz", "vs"), activation=("a",),
                  action=("tx", "ty", "tz"), quaternions=((1, 1),))
INERTIA = torch.tensor([0.1, 0.2, 0.35], dtype=torch.float64)


def pendulum(state: Tensor, action: Tensor, force: Tensor | None, values: dict[str, Tensor]) -> Tensor:
    return Pendulum().step(state, action, force, values)


def body(state: Tensor, action: Tensor, force: Tensor | None, values: dict[str, Tensor]) -> Tensor:
    """A free rigid body beside a slide that an activation drives: Euler's equations, semi-implicit, body rates."""
    q, v, a = BODY.split(state)
    w, h = v[..., 1:4], 0.05
    inertia = INERTIA + values["inertia"]
    push = torch.zeros_like(v) if force is None else force
    new_w = w + h * (action + push[..., 1:4] - torch.linalg.cross(w, inertia * w)) / inertia
    new_v = torch.cat([v[..., :1] + h * push[..., :1] / values["mass"][..., None], new_w, v[..., 4:] + h * (a + push[..., 4:])], -1)
    return torch.cat([BODY.integrate_position(q, h * new_v), new_v, 0.9 * a], -1)


class Numpy:
    """Equations in torch behind a numpy face; counts how often it is called."""

    def __init__(self, equations: Callable[..., Tensor], space: StateSpace, worlds: int = 1 << 15) -> None:
        self.equations, self.space, self.worlds, self.calls = equations, space, worlds, 0

    def advance(self, inputs: Inputs) -> Array:
        self.calls += 1
        force = None if inputs.force is None else torch.from_numpy(inputs.force)
        return self.equations(torch.from_numpy(inputs.state), torch.from_numpy(inputs.action), force,
                              {n: torch.from_numpy(x) for n, x in inputs.values.items()}).numpy()

    def pull_back(self, inputs: Inputs, cotangent: Array, wanted: frozenset[str]) -> Gradients:
        return pull_back_by_differences(self.advance, self.space, inputs, cotangent, wanted, worlds=self.worlds)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def body_inputs(*batch: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    state = random(*batch, BODY.nx)
    state[..., 1:5] /= state[..., 1:5].norm(dim=-1, keepdim=True)
    values = {"inertia": 0.1 + random(*batch, 3, seed=3).abs(), "mass": 0.5 + random(*batch, seed=4).abs()}
    return state, random(*batch, 3, seed=1), random(*batch, BODY.nv, seed=2), values


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_gradients_of_a_pendulum(batch: tuple[int, ...]) -> None:
    """State, action, force and a parameter: the gradients of the equations themselves."""
    inputs = [x.requires_grad_() for x in (random(*batch, 2), random(*batch, 1, seed=1), random(*batch, 1, seed=2),
                                           0.5 + random(*batch, seed=3).abs())]
    weight = random(*batch, 2, seed=4)

    def gradients(step: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        after = step(*inputs[:3], {"inertia": inputs[3]})
        return torch.autograd.grad((weight * after).sum(), inputs)

    numeric = Numpy(pendulum, Pendulum().space)
    for found, exact in zip(gradients(lambda *x: torch_step(numeric, numeric.space, *x)), gradients(pendulum), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("worlds", [1, 100, 1 << 15])
@pytest.mark.parametrize("batch", [(), (4,)])
def test_gradients_of_rotations(batch: tuple[int, ...], worlds: int) -> None:
    """On the manifold: what autograd takes through ⊞, the equations and ⊖, whatever the memory allowed."""
    state, action, force, values = body_inputs(*batch)
    weight = random(*batch, BODY.ndx, seed=5)

    def gradients(step: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        moved = [x.clone().requires_grad_() for x in (torch.zeros(*batch, BODY.ndx, dtype=torch.float64), action, force, *values.values())]
        after = step(BODY.integrate(state, moved[0]), *moved[1:3], dict(zip(values, moved[3:], strict=True)))
        reference = BODY.integrate(body(state, action, force, values), 0.1 * weight)
        return torch.autograd.grad((weight * BODY.difference(after, reference)).sum(), moved)

    numeric = Numpy(body, BODY, worlds)
    ours = gradients(lambda *x: torch_step(numeric, BODY, *x, vectors=("inertia",)))
    for found, exact in zip(ours, gradients(body), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-8)


def test_gradients_through_a_rollout() -> None:
    """Chained steps: the ambient gradient that one step hands back is what the step before needs."""
    state, action, _, values = body_inputs(3)
    numeric = Numpy(body, BODY)

    def gradients(step: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        u, mass = action.clone().requires_grad_(), values["inertia"].clone().requires_grad_()
        x = state
        for _ in range(5):
            x = step(x, u, None, {"inertia": mass, "mass": values["mass"]})
        return torch.autograd.grad((x[..., 1:5] * random(3, 4, seed=6)).sum(), (u, mass))

    for found, exact in zip(gradients(lambda *x: torch_step(numeric, BODY, *x, vectors=("inertia",))), gradients(body), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-8)


def test_the_jacobian_is_one_call() -> None:
    """All perturbed copies of all worlds go into one call of the step, and its blocks are those of autograd."""
    state, action, force, values = body_inputs(4)
    numeric = Numpy(body, BODY)

    def differentiate(inputs: Inputs, names: list[str]) -> dict[str, Array]:
        return difference_jacobian(numeric.advance, BODY, inputs, names)

    found = torch_jacobian(differentiate, state, action, force, values, vectors=("inertia",))
    assert numeric.calls == 1
    after = body(state, action, force, values)

    def moved(dx: Tensor, u: Tensor, f: Tensor, inertia: Tensor, mass: Tensor) -> Tensor:
        """One world at a time shares no input with another, so the sum over worlds loses nothing."""
        return BODY.difference(body(BODY.integrate(state, dx), u, f, {"inertia": inertia, "mass": mass}), after).sum(0)

    arguments = (torch.zeros(4, BODY.ndx, dtype=torch.float64), action, force, values["inertia"], values["mass"])
    exact = torch.autograd.functional.jacobian(moved, arguments)
    blocks = (found.state, found.action, found.force, found.parameters["inertia"], found.parameters["mass"])
    for block, reference in zip(blocks, exact, strict=True):
        assert block is not None
        torch.testing.assert_close(block, reference.movedim(0, 1), rtol=1e-6, atol=1e-8)


def test_the_jacobian_of_one_world_has_no_batch() -> None:
    """Shapes follow the batch of the inputs, which may be none."""
    state, action, _, values = body_inputs()
    found = torch_jacobian(lambda i, names: difference_jacobian(Numpy(body, BODY).advance, BODY, i, names), state, action, None, values,
                           vectors=("inertia",))
    shapes = {n: tuple(x.shape) for n, x in found.parameters.items()}
    assert (tuple(found.state.shape), tuple(found.action.shape), found.force, shapes) == (
        (11, 11), (11, 3), None, {"inertia": (11, 3), "mass": (11,)})


def test_broadcast_inputs_get_summed_gradients() -> None:
    """One state, many actions, one parameter for all: as autograd has it."""
    state, action, inertia = random(2).requires_grad_(), random(4, 3, 1).requires_grad_(), torch.tensor(0.7).double().requires_grad_()
    numeric = Numpy(pendulum, Pendulum().space)
    after = torch_step(numeric, numeric.space, state, action, None, {"inertia": inertia})
    exact = pendulum(state, action, None, {"inertia": inertia})
    torch.testing.assert_close(after, exact)
    weight = random(4, 3, 2, seed=5)
    for found, expected in zip(torch.autograd.grad((weight * after).sum(), (state, action, inertia)),
                               torch.autograd.grad((weight * exact).sum(), (state, action, inertia)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("grad", [False, True])
def test_float32_in_float32_out(grad: bool) -> None:
    """Computed in float64, the results come back in the dtype that went in."""
    state, action = random(4, 2).float().requires_grad_(grad), random(4, 1, seed=1).float()
    numeric = Numpy(pendulum, Pendulum().space)
    after = torch_step(numeric, numeric.space, state, action)
    assert after.dtype is torch.float32
    torch.testing.assert_close(after, pendulum(state.double(), action.double(), None, {}).float())
    if grad:
        assert torch.autograd.grad(after.sum(), state)[0].dtype is torch.float32


def test_no_worlds() -> None:
    """An empty batch is stepped and differentiated like any other."""
    state, action = random(0, BODY.nx).requires_grad_(), random(0, 3)
    values = {"inertia": torch.ones(3).double(), "mass": torch.ones(()).double()}
    after = torch_step(Numpy(body, BODY), BODY, state, action, None, values, vectors=("inertia",))
    assert torch.autograd.grad(after.sum(), state)[0].shape == after.shape == (0, BODY.nx)


def test_results_are_not_views_of_the_inputs_of_another_step() -> None:
    """A tensor that changes in place after the step is noticed, not differentiated at its new value."""
    state = random(3, 2)
    action = random(3, 1, seed=1).requires_grad_()
    numeric = Numpy(pendulum, Pendulum().space)
    after = torch_step(numeric, numeric.space, state, action)
    state += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        after.sum().backward()


def test_a_gradient_that_is_missing_is_an_error() -> None:
    """Never zeros in place of a gradient that a solver does not give."""

    class Nothing(Numpy):
        def pull_back(self, inputs: Inputs, cotangent: Array, wanted: frozenset[str]) -> Gradients:
            return Gradients()

    after = torch_step(Nothing(pendulum, Pendulum().space), Pendulum().space, random(2).requires_grad_(), random(1))
    with pytest.raises(ModelError, match=r"Nothing gives no gradient with respect to \['state'\]"):
        after.sum().backward()


def test_shapes_that_do_not_broadcast() -> None:
    """The message names the batch shapes."""
    numeric = Numpy(pendulum, Pendulum().space)
    with pytest.raises(ValueError, match=r"must broadcast, received batch shapes \[\(3,\), \(4,\)\]"):
        torch_step(numeric, numeric.space, random(3, 2), random(4, 1))


@pytest.mark.parametrize("functional", [False, True])
def test_forward_mode_is_refused(functional: bool) -> None:
    """Dual numbers would lose their tangents in numpy; the message says what to use."""
    numeric, action = Numpy(pendulum, Pendulum().space), random(3, 1)

    def step(x: Tensor) -> Tensor:
        return torch_step(numeric, numeric.space, x, action)

    state = random(3, 2)
    with pytest.raises(ModelError, match="no forward mode"):
        if functional:
            torch.func.jvp(step, (state,), (state,))
        else:
            with torch.autograd.forward_ad.dual_level():
                step(torch.autograd.forward_ad.make_dual(state, state))


def test_reverse_mode_of_torch_func() -> None:
    """torch.func.vjp goes through."""
    numeric, state, action, weight = Numpy(pendulum, Pendulum().space), random(3, 2), random(3, 1), random(3, 2, seed=2)
    found = torch.func.vjp(lambda x: torch_step(numeric, numeric.space, x, action), state)[1](weight)
    exact = torch.func.vjp(lambda x: pendulum(x, action, None, {}), state)[1](weight)
    torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(("wanted", "message"), [("force", "no force was given"), ("masss", "no input 'masss'")])
def test_unknown_inputs_are_named(wanted: str, message: str) -> None:
    """Differentiating with respect to what is not there says what is."""
    inputs = Inputs(state=np.zeros((1, 2)), action=np.zeros((1, 1)))
    with pytest.raises(ModelError, match=message):
        difference_jacobian(Numpy(pendulum, Pendulum().space).advance, Pendulum().space, inputs, [wanted])


def test_a_scale_sets_the_perturbation() -> None:
    """A quantity of the order of 1e-6 is perturbed by as much less."""
    seen: list[Array] = []

    def advance(inputs: Inputs) -> Array:
        seen.append(inputs.values["tiny"])
        return inputs.state * inputs.values["tiny"][:, None]

    inputs = Inputs(state=np.ones((1, 2)), action=np.zeros((1, 1)), values={"tiny": np.array([1e-6])})
    found = difference_jacobian(advance, Pendulum().space, inputs, ["tiny"], scales={"tiny": 1e-6})
    assert np.abs(seen[0] - 1e-6).max() < 1.1e-12
    np.testing.assert_allclose(found["tiny"], np.ones((1, 2, 1)), rtol=1e-3)


def test_without_gradients_it_costs_next_to_nothing() -> None:
    """One world in float64: some 6 µs of processor time above the numpy step; a busy machine takes longer."""
    space = Pendulum().space

    class Still(Numpy):
        def advance(self, inputs: Inputs) -> Array:
            return inputs.state.copy()

    still, state, action = Still(pendulum, space), random(1, 2), random(1, 1)
    inputs = Inputs(state=state.numpy(), action=action.numpy())
    with torch.no_grad():
        wrapped = min(timeit.repeat(lambda: torch_step(still, space, state, action), number=500, repeat=7, timer=time.thread_time)) / 500
    bare = min(timeit.repeat(lambda: still.advance(inputs), number=500, repeat=7, timer=time.thread_time)) / 500
    assert wrapped - bare < 60e-6


def test_the_protocol_is_all_a_baseline_needs() -> None:
    """A baseline's step of one line; its rollout is the torch loop's."""

    class Wrapped(Baseline):
        space, parameters, dt = Pendulum().space, Pendulum().parameters, 0.01

        def step(self, state: Tensor, action: Tensor, force: Tensor | None = None, parameters: object = None) -> Tensor:
            return torch_step(Numpy(pendulum, self.space), self.space, state, action, force, parameters)  # type: ignore[arg-type]

    state, actions = random(3, 2), random(3, 6, 1, seed=1)
    torch.testing.assert_close(Wrapped().rollout(state, actions), Pendulum().rollout(state, actions))
