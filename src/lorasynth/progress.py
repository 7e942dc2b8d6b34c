"""One progress bar for all long work: what, how far, time left, and the last figures."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

#: Progress and messages go to standard error, so that standard output stays parseable.
console = Console(stderr=True)


class Advance(Protocol):
    """Callback that reports `steps` done and, optionally, a short text such as the loss."""

    def __call__(self, steps: int = 1, note: str = "") -> None: ...  # noqa: D102


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Show a bar for `total` steps of which `done` were finished by an earlier run."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")

        def advance(steps: int = 1, note: str = "") -> None:
            bar.advance(task, steps)
            if note:
                bar.update(task, note=note)

        yield advance
