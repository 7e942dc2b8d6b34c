import io
import time

import pytest
from rich.console import Console

from lorasynth.core import progress


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=stream, force_terminal=False))
    return stream


def test_a_log_has_a_line_at_the_end_and_every_so_often(
    log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 7))  # seconds at each look
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.progress("[work]", 6, done=1) as advance:
        for _ in range(4):
            advance(note="loss 0.5")
        advance()
    lines = log.getvalue().splitlines()
    assert lines == [
        "[work]: 2/6, 0:00:07 passed, 0:00:28 left loss 0.5",
        "[work]: 5/6, 0:00:28 passed, 0:00:07 left loss 0.5",
        "[work]: 6/6, 0:00:35 passed, 0:00:00 left loss 0.5",
    ]


def test_a_log_begins_before_the_first_step_has_ended(
    log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_FIRST_SECONDS", 0.05)
    with progress.progress("work", 3):
        time.sleep(0.4)
    assert log.getvalue() == "work: 0/3, 0:00:00 passed\n"


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=stream, force_terminal=True, width=100))
    with progress.progress("work", 3, done=1) as advance:
        advance(2, note="almost")
    assert "work" in stream.getvalue()
    assert "3/3" in stream.getvalue()
    assert "almost" in stream.getvalue()


def test_messages_leave_standard_output_alone(capfd: pytest.CaptureFixture[str]) -> None:
    with progress.progress("work", 1) as advance:
        advance()
    assert capfd.readouterr().out == ""
