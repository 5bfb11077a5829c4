"""Named parameters, and what every mechanical baseline shares."""

from __future__ import annotations

import pytest
import torch
from problems import INTEGRATORS, SYSTEMS, random_actions, random_states, slopes, system

from residual_mbrl.baselines import Baseline, Parameter, Parameters
from residual_mbrl.errors import ModelError


def _parameters() -> Parameters:
    return Parameters(Parameter(name="mass", nominal=1.0, lower=0.1, upper=9.0),
                      Parameter(name="length", nominal=0.5, lower=0.1, upper=2.0, free=False))


@pytest.mark.parametrize(("lower", "nominal", "upper"), [(1.0, 0.0, 2.0), (0.0, 3.0, 2.0), (1.0, 1.0, 1.0), (0.0, float("nan"), 1.0)])
def test_parameter_outside_bounds_is_refused(lower, nominal, upper):
    """The message names the parameter."""
    with pytest.raises(ValueError, match="'mass'.*lower <= nominal <= upper"):
        Parameter(name="mass", nominal=nominal, lower=lower, upper=upper)


def test_parameters_are_found_by_name_place_and_pattern():
    """Names, indices and globs reach the same parameters."""
    p = _parameters()
    assert (p["mass"], len(p), "mass" in p, p.names) == (p[0], 2, True, ["mass", "length"])
    assert [x.name for x in p.free()] == ["mass"]
    assert [x.name for x in p.free(["len*"])] == ["length"]
    assert p.replaced(mass={"nominal": 2.0}).nominal() == {"mass": 2.0, "length": 0.5}


def test_unknown_parameter_names_those_there_are():
    """A typing error is answered by the list."""
    with pytest.raises(ValueError, match=r"'mas'.*\['mass', 'length'\]"):
        _parameters()["mas"]
    with pytest.raises(ModelError, match=r"'\*friction'.*\['mass', 'length'\]"):
        _parameters().free(["*friction"])
    with pytest.raises(ValueError, match="unique"):
        Parameters(_parameters()[0], _parameters()[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resolve_follows_the_state(dtype):
    """Missing values take the nominal in the state's dtype."""
    p = _parameters().resolve({"mass": torch.tensor(2.0, dtype=dtype)}, torch.zeros(1, dtype=dtype))
    assert {n: (float(x), x.dtype) for n, x in p.items()} == {"mass": (2.0, dtype), "length": (0.5, dtype)}


def test_black_box_knows_no_energy():
    """A baseline that does not know its energy says so."""
    class Box(Baseline):
        def step(self, state, action, force=None, parameters=None):
            return state

    x = torch.zeros(2)
    with pytest.raises(ModelError, match="Box does not know its stored energy"):
        Box().energy(x)
    with pytest.raises(ModelError, match="Box does not know its dissipation"):
        Box().dissipation_power(x, x)


@pytest.mark.parametrize("name", SYSTEMS)
def test_mass_matrix_is_positive_definite(name):
    """Kinetic energy is positive at any position."""
    baseline = system(name)
    x = random_states(baseline, 1000)
    mass = baseline.mass_matrix(baseline.space.split(x)[0], baseline.parameters.resolve(None, x))
    assert torch.equal(mass, mass.mT)
    assert float(torch.linalg.eigvalsh(mass).min()) > 0


@pytest.mark.parametrize("name", SYSTEMS)
def test_damping_takes_energy(name):
    """The system's own friction never drives, at any state."""
    baseline = system(name, friction=True)
    assert float(baseline.dissipation_power(random_states(baseline, 10_000), random_actions(baseline, 10_000)).max()) <= 0


@pytest.mark.parametrize("name", SYSTEMS)
def test_energy_error_of_rk4_is_of_fourth_order(name):
    """Half the step leaves a sixteenth of the drift or less, where nothing dissipates or drives."""
    drift = []
    for substeps in (8, 16):
        baseline = system(name, dt=0.2, substeps=substeps)
        x = random_states(baseline, 20, seed=4) / 3
        start = baseline.energy(x)
        u = torch.zeros(20, baseline.space.nu, dtype=x.dtype)
        for _ in range(10):
            x = baseline.step(x, u)
        drift.append(float((baseline.energy(x) - start).abs().mean()))
    assert drift[1] < drift[0] / 12


@pytest.mark.parametrize("name", SYSTEMS)
def test_work_of_a_force_is_the_gain_of_energy(name):
    """The energy rises by the integral of force times velocity."""
    baseline = system(name, dt=0.001)
    x, u = random_states(baseline, 5), torch.zeros(5, baseline.space.nu, dtype=torch.float64)
    force = torch.randn(5, baseline.space.nv, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    start, position = baseline.energy(x), baseline.space.split(x)[0]
    for _ in range(200):
        x = baseline.step(x, u, force)
    work = (force * (baseline.space.split(x)[0] - position)).sum(-1)
    assert torch.allclose(baseline.energy(x) - start, work, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("name", SYSTEMS)
def test_gradients_are_those_of_finite_differences(name, integrator):
    """Of a step, by state, action, force and every parameter, with friction that slips."""
    baseline = system(name, friction=True, integrator=integrator, substeps=2)
    nx, nu, nv = baseline.space.nx, baseline.space.nu, baseline.space.nv
    values = torch.tensor(list(baseline.parameters.nominal().values()), dtype=torch.float64) + 0.05
    z = torch.cat([random_states(baseline, seed=5), random_actions(baseline), torch.full((nv,), 0.3, dtype=torch.float64), values])

    def step(z: torch.Tensor) -> torch.Tensor:
        p = dict(zip(baseline.parameters.names, z[nx + nu + nv :].unbind(), strict=True))
        return baseline.step(z[:nx], z[nx : nx + nu], z[nx + nu : nx + nu + nv], p)

    exact = torch.func.jacrev(step)(z)
    assert torch.allclose(exact, slopes(step, z), rtol=1e-5, atol=1e-7)
    assert torch.allclose(torch.func.jacfwd(step)(z), exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("name", SYSTEMS)
def test_float32_stays_float32(name, integrator, device):
    """A step in float32 is that in float64 to rounding, on every device."""
    baseline = system(name, friction=True, integrator=integrator)
    x, u = random_states(baseline, 100), random_actions(baseline, 100)
    single = baseline.step(x.float().to(device), u.float().to(device))
    assert (single.dtype, single.device.type) == (torch.float32, device.type)
    assert torch.allclose(single.double().cpu(), baseline.step(x, u), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", SYSTEMS)
def test_batch_is_many_single_steps(name):
    """Every element of a batch moves as it would alone, and with its own parameters."""
    baseline = system(name, friction=True)
    x, u = random_states(baseline, 2, 3), random_actions(baseline, 2, 3)
    first = baseline.parameters.names[0]
    value = torch.linspace(0.8, 1.2, 6, dtype=x.dtype).reshape(2, 3)
    together = baseline.step(x, u, parameters={first: value})
    alone = [[baseline.step(x[i, j], u[i, j], parameters={first: value[i, j]}) for j in range(3)] for i in range(2)]
    assert torch.allclose(together, torch.stack([torch.stack(row) for row in alone]), rtol=1e-13, atol=1e-13)
