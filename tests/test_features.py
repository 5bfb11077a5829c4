"""What a network sees."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import context, system

from residual_mbrl.errors import ModelError
from residual_mbrl.residuals import Context, Feature
from residual_mbrl.residuals.features import FeatureMap, feature_sizes

PENDULUM = system("pendulum")


def _see(feature: Feature, angle: torch.Tensor, fitted: torch.Tensor | None = None) -> torch.Tensor:
    features = FeatureMap([feature], [1])
    to_context = lambda q: Context(PENDULUM.space, torch.stack([q, 0 * q], -1), 0 * q.unsqueeze(-1))  # noqa: E731
    if fitted is not None:
        features.fit(to_context(fitted))
    return features(to_context(angle))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.integers(2, 9))
def test_hats_are_a_partition_of_unity(values, knots):
    """At any input, even outside the data, they are in [0, 1] and sum to one, and at most two are not zero."""
    feature = Feature(source="angle", transform="hats", knots=knots)
    hats = _see(feature, torch.tensor(values, dtype=torch.float64), torch.tensor([-2.0, 3.0], dtype=torch.float64))
    assert hats.shape == (len(values), knots)
    assert torch.allclose(hats.sum(-1), torch.ones(len(values), dtype=hats.dtype))
    assert bool(((hats >= 0) & (hats <= 1)).all())
    assert int((hats > 0).sum(-1).max()) <= 2


def test_hats_interpolate_a_table():
    """Weighted by a table they are numpy-like linear interpolation, constant beyond the ends."""
    angles = torch.tensor([-9.0, -2.0, -1.0, 0.5, 9.0]).double()
    hats = _see(Feature(source="angle", transform="hats", knots=3), angles, torch.tensor([-2.0, 3.0]).double())
    table = torch.tensor([10.0, 20.0, 0.0], dtype=torch.float64)
    assert (hats @ table).tolist() == pytest.approx([10.0, 10.0, 14.0, 20.0, 0.0])


@pytest.mark.parametrize(("transform", "expected"), [
    ("identity", lambda x, s: x / s), ("abs", lambda x, s: x.abs() / s), ("sign", lambda x, s: torch.tanh(20 * x / s)),
    ("sin", lambda x, s: torch.sin(x)), ("cos", lambda x, s: torch.cos(x)), ("slow", lambda x, s: torch.exp(-x.abs() / 0.25))])
def test_transforms(transform, expected):
    """Each is its formula, with the root mean square of the data as spread."""
    x, data = torch.tensor([-1.5, 0.0, 0.2]).double(), torch.tensor([3.0, -4.0]).double()
    found = _see(Feature(source="angle", transform=transform, width=0.25), x, data)
    assert torch.allclose(found[:, 0], expected(x, data.square().mean().sqrt()))


def test_constant_data_divide_by_no_zero():
    """A source that never changes gives finite inputs."""
    for transform in ("identity", "hats", "sign"):
        seen = _see(Feature(source="angle", transform=transform), torch.zeros(3).double(), torch.zeros(5).double())
        assert bool(torch.isfinite(seen).all())


def test_normaliser_is_in_the_state_dict():
    """Range and spread are saved and loaded with the weights."""
    first, second = (FeatureMap([Feature(source="position"), Feature(source="rate", transform="hats")], [1, 1]) for _ in range(2))
    data = context(PENDULUM, 100)
    first.fit(data)
    assert {"lower", "upper", "spread"} <= first.state_dict().keys()
    assert not torch.equal(first(data), second(data))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(data), second(data))


def test_vector_sources_and_sizes():
    """Whole vectors count their components, single names one."""
    double = system("double_pendulum")
    features = [Feature(source="velocity"), Feature(source="torque2"), Feature(source="angle1", transform="hats", knots=4)]
    sizes = feature_sizes(features, {"position": 2, "velocity": 2, "action": 2})
    built = FeatureMap(features, sizes)
    assert (sizes, built.outputs, built(context(double, 3, 5)).shape) == ([2, 1, 1], 7, (3, 5, 7))


def test_unknown_source_names_those_there_are():
    """A typing error is answered by the list."""
    with pytest.raises(ModelError, match=r"'speed'.*\['angle', 'rate', 'torque', 'position', 'velocity', 'action'\]"):
        FeatureMap([Feature(source="speed")], [1])(context(PENDULUM, 2))


def test_direction_multiplies_by_the_sign_of_another_source():
    """A table with and without a direction is a table for each direction of travel."""
    features = FeatureMap([Feature(source="angle", transform="hats"), Feature(source="angle", transform="hats", direction="rate")], [1, 1])
    data = context(PENDULUM, 200)
    features.fit(data)
    plain, signed = features(data).chunk(2, -1)
    steep = torch.tanh(20 * data.v / data.v.square().mean().sqrt())
    assert torch.allclose(signed, plain * steep)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("options", [{"transform": "log"}, {"width": 0.0}, {"knots": 1}])
def test_wrong_options_are_refused(options):
    """The message says what was expected."""
    with pytest.raises(ValueError, match="Feature: "):
        Feature(source="angle", **options)
    with pytest.raises(ValueError, match="as many sizes as features"):
        FeatureMap([Feature(source="angle")], [])
