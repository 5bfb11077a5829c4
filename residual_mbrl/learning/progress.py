"""What a run is doing, in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypedDict

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from residual_mbrl.learning.settings import LearnedRound


class Callbacks(TypedDict):
    """Keyword arguments of ``learn``."""

    progress: Callable[[LearnedRound], None]
    tell: Callable[[str, float], None]


@contextmanager
def shown(console: Console | None = None) -> Iterator[Callbacks]:
    """Show a bar of what is being done and a line for each round.

    ``with shown() as told: learn(..., **told)``

    Args:
        console: Where; standard error where missing.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console or Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=1.0)

        def progress(r: LearnedRound) -> None:
            bar.console.print(f"round {r.round}: {r.seconds:.3g} s of the plant, cost collected {r.collected:.4g}, "
                              f"predicted {r.predicted:.4g}, evaluated {r.evaluated:.4g}", highlight=False)

        yield {"progress": progress, "tell": lambda phrase, done: bar.update(task, description=phrase, completed=done)}
