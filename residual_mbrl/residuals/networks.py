"""Small networks whose weights may carry a leading member dimension, so that an ensemble is one network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def per_member(weight: Tensor, like: Tensor, trailing: int = 1) -> Tensor:
    """Shape a weight [*members, ...trailing] so that it broadcasts against ``like`` [*members, *batch, ...trailing]."""
    missing = like.ndim - weight.ndim
    members = weight.ndim - trailing
    if members == 0 or missing <= 0:
        return weight
    return weight.reshape(*weight.shape[:members], *(1,) * missing, *weight.shape[members:])


class Perceptron(nn.Module):
    """A multilayer perceptron with tanh units; the last layer starts at zero, so an untrained network outputs zero.

    Args:
        inputs: Number of inputs.
        hidden: Units of each hidden layer; none makes it linear in its inputs.
        outputs: Number of outputs.
        generator: Source of the initial weights.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        sizes = [inputs, *hidden, outputs]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for i, (n, m) in enumerate(pairwise(sizes)):
            last = i == len(sizes) - 2
            w = torch.zeros(n, m) if last else torch.randn(n, m, generator=generator) / math.sqrt(n)
            b = torch.zeros(m) if last else 0.5 * torch.randn(m, generator=generator)
            self.weights.append(nn.Parameter(w.double()))
            self.biases.append(nn.Parameter(b.double()))

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs [*members, *batch, inputs] to outputs [*members, *batch, outputs]."""
        members = self.weights[0].ndim - 2
        shape = x.shape[:-1]
        if members:
            x = x.expand(*torch.broadcast_shapes(shape[:members], self.weights[0].shape[:members]), *x.shape[members:])
            shape = x.shape[:-1]
            x = x.reshape(*shape[:members], -1, x.shape[-1])
        last = len(self.weights) - 1
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x @ w.to(x.dtype) + per_member(b.to(x.dtype), x)
            if i < last:
                x = torch.tanh(x)
        return x.reshape(*shape, x.shape[-1])
