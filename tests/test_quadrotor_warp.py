"""The Warp form of the quadrotor's step against the torch form in float64: values and every gradient."""

import pytest
import torch
import warp as wp
from problems import INTEGRATORS
from quadrotor_problem import NAMES, quadrotor, random_flight, step_by_vectors

from residual_mbrl.baselines import Parameters
from residual_mbrl.kernels.lanes import vector
from residual_mbrl.kernels.rollout import OPTIONS
from residual_mbrl.physics.quadrotor import ROTORS, Quadrotor
from residual_mbrl.physics.quadrotor_parameters import PARAMETERS

SPUN = tuple((x, y, -spin) for x, y, spin in ROTORS)


def kernel(step):
    """A step and the gradient of its product with a given vector, for one world a thread."""
    x_, u_, f_, p_ = (vector(n) for n in (17, 4, 6, len(NAMES)))

    @wp.func
    def weighted(x: x_, u: u_, f: f_, p: p_, by: x_) -> x_:
        return wp.cw_mul(by, step(x, u, f, p))

    @wp.kernel(**OPTIONS)
    def step_and_back(
        # In:
        x_in: wp.array(dtype=x_), u_in: wp.array(dtype=u_), f_in: wp.array(dtype=f_), p_in: wp.array(dtype=p_), by_in: wp.array(dtype=x_),
        # Out:
        x_out: wp.array(dtype=x_), by_x: wp.array(dtype=x_), by_u: wp.array(dtype=u_), by_f: wp.array(dtype=f_), by_p: wp.array(dtype=p_),
    ):
        b = wp.tid()
        gx, gu, gf, gp, _ = wp.grad(weighted)(x_in[b], u_in[b], f_in[b], p_in[b], by_in[b])
        by_x[b] = gx
        by_u[b] = gu
        by_f[b] = gf
        by_p[b] = gp
        x_out[b] = step(x_in[b], u_in[b], f_in[b], p_in[b])

    return step_and_back


def compare(drone, x, u, f, p):
    """Values and gradients by state, command, force and parameters of both forms."""
    by = torch.randn(x.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    inputs = [t.clone().requires_grad_() for t in (x, u, f, p)]
    expected = step_by_vectors(drone, *inputs)
    gradients = torch.autograd.grad((by * expected).sum(), inputs)
    types = [vector(n) for n in (17, 4, 6, len(NAMES))]
    arrays = [wp.array(t.float().numpy(), dtype=kind, device="cpu") for t, kind in zip((x, u, f, p, by), (*types, types[0]), strict=True)]
    found = [wp.zeros(len(x), dtype=kind, device="cpu") for kind in (types[0], *types)]
    step = drone.warp_step()
    assert step is not None
    wp.launch(kernel(step.function), dim=len(x), inputs=arrays, outputs=found, device="cpu")
    return zip(("step", "state", "command", "force", "parameters"), (torch.tensor(a.numpy()).double() for a in found),
               (expected.detach(), *gradients), strict=True)


@pytest.mark.parametrize("substeps", [1, 3, 16])
@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_it_is_that_of_torch(integrator, substeps):
    """At random attitudes and fast turning, with every term of the equations at work."""
    drone = quadrotor(integrator=integrator, substeps=substeps)
    for name, found, expected in compare(drone, *random_flight(64)):
        tolerance = 1e-5 if name == "step" else 1e-4
        scale = expected.abs().amax(0) if name == "parameters" else expected.norm() / expected.numel() ** 0.5
        assert bool(((found - expected).norm(dim=0) <= tolerance * (expected.norm(dim=0) + 1e-3 * scale)).all()), name


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_rest_has_the_slopes_of_torch(integrator):
    """Standing still, turning not at all, rotors off: no slope is a NaN; what the offset adds and takes away is rounding."""
    drone = quadrotor(integrator=integrator, trim_x=0.0, trim_y=0.0, trim_z=0.0, gravity=0.0)
    x, u, f, p = random_flight(4)
    x[:, 7:] = u[:] = f[:] = 0.0
    p[:, [NAMES.index(n) for n in ("trim_x", "trim_y", "trim_z", "gravity")]] = 0.0
    for name, found, expected in compare(drone, x, u, f, p):
        assert bool(torch.isfinite(found).all()), name
        assert bool(((found - expected).norm(dim=0) <= 1e-4 * expected.norm(dim=0) + 1e-6).all()), name


def test_what_differs_in_the_step_alone_shares_no_code():
    """Each drone has its own rotors and rate, on disk too."""
    flight = random_flight(4)
    for drone in (quadrotor(), quadrotor(dt=0.02), Quadrotor(quadrotor().parameters, substeps=1, rotors=SPUN)):
        _, found, expected = next(iter(compare(drone, *flight)))
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_keys_tell_steps_apart():
    """The same drone has the same key, another order of the parameters another."""
    keys = [drone.warp_step().key for drone in (quadrotor(), quadrotor(), quadrotor(dt=0.02), quadrotor(substeps=2),
                                                Quadrotor(quadrotor().parameters, substeps=1, rotors=SPUN))]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4
    assert Quadrotor(Parameters(*reversed(PARAMETERS)), substeps=1).warp_step().key not in keys


class Stronger(Quadrotor):
    """A user's change of the torch form alone."""

    def steady_speed(self, action, p):
        return 2 * super().steady_speed(action, p)


@pytest.mark.parametrize("drone", [Stronger(), quadrotor(substeps=17)])
def test_there_is_none_where_it_would_be_wrong(drone):
    """A changed equation has no Warp form, nor has a loop that Warp would not unroll."""
    assert drone.warp_step() is None
