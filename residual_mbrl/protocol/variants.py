"""How each cell's model is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from residual_mbrl.baselines import Port
from residual_mbrl.fold_fits import Fold, Recipe, without_baseline
from residual_mbrl.model import Model
from residual_mbrl.protocol.cells import BOTH, IDENTIFIED, NO_BASELINE, NO_CONSTRAINTS, NONE, ONE_STEP, RESIDUAL, Cell
from residual_mbrl.residuals import Feature, Residual, StateDelta, Unstructured
from residual_mbrl.windows import Windows, joined

ONE_STEP_WINDOWS = 4000
"""Most windows of one step that the ablation is trained on."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a worker needs for its cells.

    Args:
        recipes: Makes what is fitted, for each seed.
        folds: By name.
        work: Folder of checkpoints, so that cells share an identification.
    """

    recipes: Callable[[int], Recipe]
    folds: dict[str, Fold]
    work: Path

    def train(self, cell: Cell) -> tuple[Model, Model]:
        """Return the model of a cell and the identified one that it started from (nominal where it did not).

        Raises:
            ValueError: if the variant is unknown.
        """
        recipe, fold = self.recipes(cell.seed), self.folds[cell.fold]
        recipe = replace(recipe, fit=replace(recipe.fit, **cell.changes))  # type: ignore[arg-type]  # names were checked, values are JSON's
        train = part_of(fold.train, cell.fraction)
        nominal = Model(dynamics=recipe.dynamics, sensor=recipe.sensor)
        if cell.variant == NONE:
            return nominal, nominal
        if cell.variant.startswith(RESIDUAL):
            alone = replace(recipe, fit=replace(recipe.fit, parameters=False))
            return alone.corrected(nominal, self._residual(recipe, cell.variant, RESIDUAL), train), nominal
        self.work.mkdir(parents=True, exist_ok=True)
        kept = self.work / f"{replace(cell, variant=IDENTIFIED, changes={}).name}.npz"
        found = recipe.model(recipe.identified(train, kept))
        return self._upon(found, recipe, train, cell), found

    def _upon(self, found: Model, recipe: Recipe, train: Windows, cell: Cell) -> Model:
        """Return what a variant makes of an identified model."""
        if cell.variant == IDENTIFIED:
            return found
        if cell.variant == NO_BASELINE:
            return without_baseline(recipe, found, train)
        if cell.variant == NO_CONSTRAINTS:
            return recipe.corrected(found, [free_force(found, train, cell.seed)], train)
        if cell.variant.startswith(ONE_STEP):
            return recipe.corrected(found, self._residual(recipe, cell.variant, ONE_STEP), one_step(train))
        return recipe.corrected(found, self._residual(recipe, cell.variant, BOTH), train)

    @staticmethod
    def _residual(recipe: Recipe, variant: str, prefix: str) -> Sequence[Residual]:
        name = variant.removeprefix(prefix)
        if not variant.startswith(prefix) or name not in recipe.candidates:
            raise ValueError(f"protocol: unknown variant {variant!r}; the residuals are {list(recipe.candidates)}")
        return recipe.candidates[name]


def part_of(windows: Windows, fraction: float) -> Windows:
    """Return a fraction of the windows, spread over all of them."""
    count = max(1, round(fraction * len(windows)))
    return windows if count == len(windows) else windows.take(torch.linspace(0, len(windows) - 1, count).round().long())


def one_step(windows: Windows) -> Windows:
    """Return windows of one step that start where something was recorded, at most ``ONE_STEP_WINDOWS``, spread over all of them."""
    every = max(1, len(windows) * windows.horizon // ONE_STEP_WINDOWS)
    short = joined([windows.cut(s, 1) for s in range(0, windows.horizon, every)])
    return short.take(short.recorded.any(-1).all(-1))


def free_force(found: Model, windows: Windows, seed: int) -> Residual:
    """Return a force (a state correction where there is no force port) without any law, bounded by what moves the plant."""
    baseline = found.dynamics.baseline
    space, dt = baseline.space, baseline.dt
    features = [Feature(source="position", transform="sin"), Feature(source="position", transform="cos"), Feature(source="position"),
                Feature(source="velocity"), Feature(source="action")]
    sizes = [space.nq, space.nq, space.nq, space.nv, space.nu]
    if not space.nu:
        features, sizes = features[:-1], sizes[:-1]
    states = found.predict(windows).states[..., : space.nx]
    q, v, _ = space.split(states)
    push = (v[:, 1:] - v[:, :-1]) / dt
    kind = Unstructured if Port.FORCE in baseline.ports else StateDelta
    mass = getattr(baseline, "mass_matrix", None)
    if kind is Unstructured and mass is not None:
        p = found.dynamics.resolve(None, states)
        push = (mass(q[:, :-1], p) @ push.unsqueeze(-1)).squeeze(-1)
    size = float(torch.nan_to_num(push, 0.0, 0.0, 0.0).abs().max())
    return kind(nv=space.nv, features=features, sizes=sizes, bound=max(size, 1e-6), hidden=(16,), seed=seed)
