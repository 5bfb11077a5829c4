"""Dropout as a cheap ensemble: one network, whose members each lack other hidden units (Gal and Ghahramani, ICML 2016)."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from residual_mbrl.errors import ModelError
from residual_mbrl.fitting import FitOptions, descend, normalise
from residual_mbrl.model import Model
from residual_mbrl.residuals.networks import Perceptron
from residual_mbrl.simulation_error import SimulationError
from residual_mbrl.uncertainty.ensembles import Ensemble
from residual_mbrl.windows import Windows


def dropped(model: Model, *, members: int, rate: float = 0.1, seed: int = 0) -> Ensemble:
    """Return M copies of a model in which each hidden unit is missing with probability ``rate``; the others count ``1 / (1 - rate)``.

    A mask stands for a whole rollout: it is a draw from the weights' distribution, as a member is.

    Args:
        model: A model with networks.
        members: Copies M.
        rate: Probability within [0, 1).
        seed: Of the masks.
    """
    masks = _masks(model, members, rate, torch.Generator().manual_seed(seed))
    copies = []
    for m in range(members):
        one = replace(model, dynamics=model.dynamics.with_residuals([copy.deepcopy(r) for r in model.dynamics.corrections]))
        with torch.no_grad():
            for name, mask in masks.items():
                one.dynamics.get_parameter(name).mul_(mask[m])
        copies.append(one)
    return Ensemble.of(copies)


def fit_with_dropout(model: Model, train: Windows, *, rate: float = 0.1, samples: int = 4, options: FitOptions | None = None,
                     seed: int = 0) -> Model:
    """Train a model's weights by Adam with other masks at every step, ``samples`` of them in one batch.

    Args:
        model: Identified dynamics with residuals, and its sensor.
        train: The windows.
        rate: Probability that a unit is missing.
        samples: Masks of each step.
        options: How to train; its horizons are not used, parameters stay.
        seed: Of the masks.
    """
    options = options or FitOptions(method="adam", rounds=1, iterations=200)
    dynamics = model.dynamics.with_residuals([copy.deepcopy(r) for r in model.dynamics.corrections])
    normalise(model, [dynamics], train)
    sensor = model.sensor.with_nominal(model.sensor_values)
    problem = SimulationError(dynamics=dynamics, sensor=sensor, windows=train, free=(), weights=True, every=options.every)
    generator = torch.Generator().manual_seed(seed)
    start = torch.tensor(problem.initial(model.sensor_values))
    names = [n for n, _ in dynamics.named_parameters()]

    def masked(z: Tensor) -> Tensor:
        masks = _masks(replace(model, dynamics=dynamics), samples, rate, generator)
        full = [masks[n].expand(samples, *dynamics.get_parameter(n).shape).flatten(1) if n in masks
                else z.new_ones(samples, dynamics.get_parameter(n).numel()) for n in names]
        return z * torch.cat(full, 1)

    z = descend(problem, start.unsqueeze(0), start.unsqueeze(0), replace(options, iterations=options.iterations * options.rounds),
                change=masked)
    return replace(model, dynamics=problem.model(np.asarray(z[0]))[0])


def _masks(model: Model, members: int, rate: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Return by the name of every weight matrix behind a hidden layer what multiplies its rows, shape [members, inputs, 1]."""
    if not 0 <= rate < 1 or members < 1:
        raise ValueError(f"dropout: expected members >= 1 and a rate in [0, 1), received {members}, {rate}")
    found = {}
    for path, module in model.dynamics.named_modules():
        if isinstance(module, Perceptron):
            for i, w in list(enumerate(module.weights))[1:]:
                kept = torch.rand(members, w.shape[0], 1, generator=generator) >= rate
                found[f"{path}.weights.{i}"] = kept.to(w) / (1 - rate)
    if not found:
        raise ModelError("dropout: the residuals have no network with a hidden layer")
    return found
