"""One progress display for all long work: what, how far, time left, and the last figures.

On a terminal it is a bar; in a log it is a line after the first 2 seconds, then every 20.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Protocol, TypeAlias, cast, runtime_checkable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lorasynth.core.errors import escaped

#: Progress and messages go to standard error, so that standard output stays parseable.
console = Console(stderr=True)

_FIRST_SECONDS, _LOG_SECONDS, _BAR_SECONDS = 2.0, 20.0, 0.5


def note(line: str) -> None:
    """Say something on the way, as one line."""
    console.print(escaped(line), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def told_soon(tell: Callable[[], None], seconds: float = 1.2) -> Iterator[None]:
    """Call `tell` after so many seconds, from a thread, unless all that is inside has ended."""
    timer = threading.Timer(seconds, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


#: A short text; or what makes it, called only when it is shown, since to read a loss waits for a
#: GPU.
Note: TypeAlias = str | Callable[[], str]


@runtime_checkable
class Advance(Protocol):
    """Callback that reports `steps` done and, optionally, a short text such as the loss."""

    def __call__(self, steps: int = 1, note: Note = "") -> None: ...  # noqa: D102


@contextmanager
def progress(title: str, total: int, done: int = 0, *, shown: bool = True) -> Iterator[Advance]:
    """Show the progress of `total` steps of which `done` were finished by an earlier run.

    Of several processes that do one work, one has it `shown`.
    """
    if not shown:
        yield _silent
    elif console.is_terminal:
        with _bar(title, total, done) as advance:
            yield advance
    else:
        advance = _log(title, total, done)
        with told_soon(partial(advance, 0), _FIRST_SECONDS):  # even if no step ends by then
            yield advance


def _text(note: Note) -> str:
    return note if isinstance(note, str) else note()


def _silent(steps: int = 1, note: Note = "") -> None:
    """Show nothing."""


@contextmanager
def _bar(title: str, total: int, done: int) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        task, shown = bar.add_task(title, total=total, completed=done, note=""), 0.0

        def advance(steps: int = 1, note: Note = "") -> None:
            nonlocal shown
            bar.advance(task, steps)
            recent = time.monotonic() - shown < _BAR_SECONDS
            if callable(note) and recent and not bar.finished:
                return
            if note:
                shown = time.monotonic()
                bar.update(task, note=_text(note))

        yield advance


def _log(title: str, total: int, done: int) -> Advance:
    begun = time.monotonic()
    spoken = begun + _FIRST_SECONDS - _LOG_SECONDS
    first, last_note = done, cast("Note", "")

    def advance(steps: int = 1, note: Note = "") -> None:
        nonlocal done, spoken, last_note
        done, last_note = done + steps, note or last_note
        now = time.monotonic()
        if now - spoken < _LOG_SECONDS and (done < total or not steps):
            return
        spoken = now
        elapsed = now - begun
        line = f"{title}: {done}/{total}, {timedelta(seconds=round(elapsed))} passed"
        if done > first:
            left = timedelta(seconds=round(elapsed / (done - first) * (total - done)))
            line += f", {left} left {_text(last_note)}"
        console.print(line.rstrip(), highlight=False, markup=False, soft_wrap=True)

    return advance
