from lorasynth.errors import FileFormatError, LorasynthError


def test_a_message_is_one_line_that_does_nothing_to_a_terminal() -> None:
    error = FileFormatError("a key is\nodd: \x1b[2J, ΔW ist größer")
    assert isinstance(error, LorasynthError)
    assert str(error) == "a key is\\nodd: \\x1b[2J, ΔW ist größer"
