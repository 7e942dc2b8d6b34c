"""The command `lorasynth`, run in this process as the shell would run it."""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str

    def is_one_error(self, *words: str, status: int = 2) -> None:
        """Assert that the command failed as it should: one line, which says what is wrong.

        What was found in a folder, what is learned from, and progress may stand before it.
        """
        assert self.status == status, (self.out, self.err)
        notes = r": \d+ images? of \d+ subject|no column 'split'|knows [a-z ]+\.$"
        notes += r"|: \d+/\d+, |: loading$"
        [line] = [one for one in self.err.strip().splitlines() if not re.search(notes, one)]
        for word in words:
            assert word in line, (word, line)
        assert "Traceback" not in self.out + self.err


Run = Callable[..., Result]


def call(arguments: Sequence[object]) -> int:
    """The exit status of `lorasynth` with these arguments."""
    from lorasynth.commands.main import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lorasynth", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            main()
    return int(exited.value.code or 0)


def interrupt(monkeypatch: pytest.MonkeyPatch, room: Any, name: str, calls: int = 1) -> None:
    """Let Ctrl-C come in call number `calls` of a function."""
    function, done = getattr(room, name), 0

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal done
        done += 1
        if done == calls:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    monkeypatch.setattr(room, name, interrupted)
