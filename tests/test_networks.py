"""Small networks and their members."""

from __future__ import annotations

import pytest
import torch
from problems import randomise

from residual_mbrl.residuals.networks import Perceptron, per_member


def test_untrained_network_outputs_zero():
    """The last layer starts at zero."""
    net = Perceptron(3, (8, 8), 2, torch.Generator().manual_seed(0))
    assert torch.equal(net(torch.randn(5, 3, dtype=torch.float64)), torch.zeros(5, 2, dtype=torch.float64))


def test_network_is_the_formula():
    """One hidden layer is tanh(x W1 + b1) W2 + b2."""
    net = randomise(Perceptron(3, (8,), 2))
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    (w1, w2), (b1, b2) = net.weights, net.biases
    assert torch.allclose(net(x), torch.tanh(x @ w1 + b1) @ w2 + b2)


@pytest.mark.parametrize("hidden", [(), (6,), (6, 5)])
@pytest.mark.parametrize("batch", [(), (7,), (2, 3)])
def test_members_are_a_loop(hidden, batch):
    """Weights with a leading dimension give what each member gives alone."""
    net = randomise(Perceptron(3, hidden, 2), members=4)
    x = torch.randn(4, *batch, 3, dtype=torch.float64)
    for m in range(4):
        single = Perceptron(3, hidden, 2)
        single.load_state_dict({n: w[m] for n, w in net.state_dict().items()})
        assert torch.allclose(net(x)[m], single(x[m]), rtol=1e-12, atol=1e-12)


def test_input_without_members_is_shared():
    """A leading dimension of one is expanded to all members."""
    net = randomise(Perceptron(3, (6,), 2), members=4)
    x = torch.randn(1, 5, 3, dtype=torch.float64)
    assert torch.allclose(net(x), net(x.expand(4, 5, 3)))


def test_dtype_follows_the_input():
    """Weights are double; a float32 input is computed in float32."""
    net = randomise(Perceptron(3, (6,), 2))
    x = torch.randn(5, 3, dtype=torch.float64)
    assert net(x.float()).dtype == torch.float32
    assert torch.allclose(net(x.float()).double(), net(x), rtol=1e-4, atol=1e-5)


def test_seed_gives_the_weights():
    """The same generator state gives the same network."""
    one, two = (Perceptron(3, (6,), 2, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_per_member_inserts_batch_axes():
    """Members stay in front and trailing axes behind."""
    assert per_member(torch.zeros(4, 3), torch.zeros(4, 5, 6, 3)).shape == (4, 1, 1, 3)
    assert per_member(torch.zeros(4, 3, 2), torch.zeros(4, 5, 1, 3), 2).shape == (4, 1, 3, 2)
    assert per_member(torch.zeros(3), torch.zeros(4, 5, 3)).shape == (3,)
