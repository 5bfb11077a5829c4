"""Policies: bounds, noise, normalisers, the numpy form and files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import random_states, randomise, system

from residual_mbrl.errors import ModelError
from residual_mbrl.policies import (
    GaussianPolicy,
    LinearPolicy,
    MLPPolicy,
    NumpyPolicy,
    PlannedPolicy,
    Value,
    angles_turned,
    export_policy,
    load_policy,
    save_policy,
)
from residual_mbrl.residuals import Feature

BASELINE = system("cartpole")
SPACE = BASELINE.space
EVERY = [Feature(source="angle", transform="sin"), Feature(source="position"), Feature(source="rate", transform="sign"),
         Feature(source="velocity", transform="abs"), Feature(source="speed", transform="slow", width=0.4), Feature(source="goal")]


def made(kind, **options):
    policy = kind(space=SPACE, low=-2.0, high=5.0, hidden=(16, 8), **options)
    policy.normalise(random_states(BASELINE, 40), torch.randn(40, 3, dtype=torch.float64) if policy.goal_size else None)
    return randomise(policy, scale=0.7)


@pytest.mark.parametrize("kind", [MLPPolicy, GaussianPolicy, LinearPolicy])
def test_numpy_form_is_the_policy(kind):
    """With every transform, goals and noise."""
    policy = made(kind, features=EVERY, goal_size=3)
    form, x = NumpyPolicy(policy), random_states(BASELINE, 20)
    goal = torch.randn(20, 3, dtype=torch.float64)
    noise = torch.randn(20, 1, dtype=torch.float64) if policy.noise_size else None
    for e in (None, noise):
        exact = policy(x, e, goal).detach().numpy()
        found = [form(x[k].numpy(), goal[k].numpy(), None if e is None else e[k].numpy()) for k in range(20)]
        np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="state must have shape"):
        form(np.zeros(3), np.zeros(3))


@pytest.mark.parametrize("kind", [MLPPolicy, GaussianPolicy, LinearPolicy])
def test_actions_keep_their_bounds(kind):
    """Whatever the state and the noise."""
    policy = made(kind)
    noise = 10 * torch.randn(500, 1, dtype=torch.float64) if policy.noise_size else None
    actions = policy(100 * random_states(BASELINE, 500), noise)
    assert actions.min() >= -2
    assert actions.max() <= 5


def test_spread_at_the_start_is_the_one_given():
    """Of the action before it is squashed, which near its middle is the action itself over half the range."""
    policy = GaussianPolicy(space=SPACE, low=-1.0, high=1.0, std=0.02)
    noise = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    actions = policy(random_states(BASELINE, 20_000), noise)
    assert float(actions.detach().std()) == pytest.approx(0.02, rel=0.03)


def test_feedback_is_linear_about_its_target():
    """Inside of the bounds."""
    gain, target = torch.randn(1, 4, dtype=torch.float64), torch.tensor([0.1, 3.0, 0.0, -0.2], dtype=torch.float64)
    held = torch.tensor([0.3], dtype=torch.float64)
    policy = LinearPolicy.feedback(space=SPACE, gain=gain, target=target, action=held, low=-9.0, high=9.0)
    x = target + 0.1 * torch.randn(7, 4, dtype=torch.float64)
    torch.testing.assert_close(policy(x), 0.3 - (x - target) @ gain.T)


def test_a_feature_at_rest_is_left_as_it_is():
    """A spread of zero says nothing of how far it will move."""
    policy = MLPPolicy(space=SPACE, low=-1.0, high=1.0)
    policy.normalise(torch.zeros(10, 4, dtype=torch.float64))
    assert (policy.features.spread == 1).all()


@pytest.mark.parametrize("kind", [MLPPolicy, GaussianPolicy, LinearPolicy, Value])
def test_saved_is_loaded(kind, tmp_path):
    """Weights, normaliser and bounds, in its precision; for another step it is refused."""
    policy = (randomise(Value(space=SPACE, goal_size=3)) if kind is Value else made(kind, features=EVERY, goal_size=3)).float()
    save_policy(tmp_path / "p", policy, dt=0.02)
    found, x, goal = load_policy(tmp_path / "p", dt=0.02), random_states(BASELINE, 5).float(), torch.randn(5, 3)
    assert torch.equal(found(x, goal=goal), policy(x, goal=goal))
    save_policy(tmp_path / "p", policy, dt=0.01)
    with pytest.raises(ModelError, match=r"0\.01 s, expected 0\.02 s"):
        load_policy(tmp_path / "p", dt=0.02)


@pytest.mark.parametrize("harm", [lambda d: (d / "policy.json").unlink(), lambda d: (d / "weights.safetensors").write_bytes(b"no"),
                                  lambda d: (d / "policy.json").write_text(json.dumps({"schema": 9}))])
def test_damaged_files_are_refused(harm, tmp_path):
    """With their name."""
    save_policy(tmp_path / "p", made(MLPPolicy), dt=0.02)
    harm(tmp_path / "p")
    with pytest.raises(ModelError, match="p: "):
        load_policy(tmp_path / "p")


def test_planner_as_policy_plans_for_a_batch():
    """The first action of each plan."""
    class Planner:
        def plan(self, state, warm=None):
            return type("Plan", (), {"actions": state[..., None, :1] * torch.ones(3, 1, dtype=state.dtype)})

    x, policy = random_states(BASELINE, 2, 3), PlannedPolicy(Planner(), SPACE)
    assert torch.equal(policy(x), x[..., :1])
    with pytest.raises(ValueError, match="expected a network policy, received PlannedPolicy; distil makes one"):
        export_policy(Path("policy.onnx"), policy)


@pytest.mark.parametrize(("options", "message"), [
    ({"low": 1.0, "high": -1.0}, "finite low < high"),
    ({"low": [0.0, 0.0], "high": 1.0}, "low must be a number or 1 numbers"),
    ({"low": -1.0, "high": 1.0, "features": [Feature(source="force")]}, "no state or goal named 'force'"),
    ({"low": -1.0, "high": 1.0, "features": [Feature(source="speed", transform="hats")]}, "transforms"),
])
def test_wrong_options_are_named(options, message):
    """With what was expected and received."""
    with pytest.raises(ValueError, match=message):
        MLPPolicy(space=SPACE, **options)


def test_missing_goals_are_named():
    """At the call."""
    with pytest.raises(ValueError, match="goal must have 3 entries, received none"):
        made(MLPPolicy, goal_size=3)(torch.zeros(4, dtype=torch.float64))
    with pytest.raises(ValueError, match="no positions"):
        angles_turned(SPACE, ["elbow"])


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("kind", [MLPPolicy, GaussianPolicy, LinearPolicy])
def test_exported_file_is_the_policy(kind, suffix, tmp_path):
    """With every transform, goals and noise, of more states than it was written with."""
    policy, path = made(kind, features=EVERY, goal_size=3), tmp_path / f"policy{suffix}"
    inputs = {"state": random_states(BASELINE, 7), "goal": torch.randn(7, 3, dtype=torch.float64)}
    if policy.noise_size:
        inputs["noise"] = torch.randn(7, policy.noise_size, dtype=torch.float64)
    if suffix == ".onnx":
        runtime = pytest.importorskip("onnxruntime", reason="ONNX is checked by onnxruntime")
        export_policy(path, policy)
        found = torch.tensor(runtime.InferenceSession(path).run(["action"], {n: x.numpy() for n, x in inputs.items()})[0])
    else:
        export_policy(path, policy)
        found = torch.export.load(path).module()(**inputs)
    torch.testing.assert_close(found, policy(**inputs), rtol=1e-8, atol=1e-8)  # ONNX keeps some constants in float32
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_exported_file_needs_a_known_suffix(tmp_path):
    with pytest.raises(ValueError, match=r"policy\.pb: expected a name that ends in one of"):
        export_policy(tmp_path / "policy.pb", made(MLPPolicy))
