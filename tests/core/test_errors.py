import time

import pytest

from lorasynth.core.errors import FileFormatError, LorasynthError, escaped, quoted, reason_of


def test_a_message_is_one_line_that_does_nothing_to_a_terminal() -> None:
    error = FileFormatError("a key is\nodd: \x1b[2J, ΔW ist größer")
    assert isinstance(error, LorasynthError)
    assert str(error) == "a key is\\nodd: \\x1b[2J, ΔW ist größer"


def test_what_a_message_quotes_is_short_and_made_in_no_time() -> None:
    shared: object = [1]
    for _ in range(60):  # written out, it would never end
        shared = [shared, shared]
    start = time.monotonic()
    for value in (shared, "x" * 10**7, 10**40_000, {"a": shared}, list(range(10**6))):
        assert len(quoted(value)) <= 300
    assert len(str(LorasynthError("x" * 10**7))) < 2100
    assert time.monotonic() - start < 5


def test_names_are_escaped_wherever_they_are_printed() -> None:
    assert escaped("Zo\u00eb \x1b[2J\x07\udcff\n") == "Zo\u00eb \\x1b[2J\\x07\\udcff\\n"
    assert escaped("a\tb\n", kept="\n\t") == "a\tb\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("bad header\nat line 2"), "bad header"),
        (OSError("\n  no such model \n"), "no such model"),
        (MemoryError(), "MemoryError"),  # says nothing
    ],
)
def test_the_reason_of_any_error_is_a_line(error: Exception, said: str) -> None:
    assert reason_of(error) == said
