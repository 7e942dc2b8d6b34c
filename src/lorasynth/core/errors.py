"""Errors that a user can act on.

Every error that bad input can cause is a `LorasynthError`.  Its message is one line with three
parts: the rule, the value received, and what to do.  The command line prints that line, without a
traceback, and exits with status 2.
"""

import reprlib

#: Characters of a message; what it quotes may be a whole file.
_LONGEST = 2000

_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother = 3, 200, 200


def escaped(text: str, kept: str = "") -> str:
    """A text without characters that act on a terminal, or that no encoding has; some are kept."""
    return "".join(
        c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text
    )


def installing(extra: str) -> str:
    """What to type for an extra; lorasynth is on no index, where the name could be another's."""
    return f"pip install '.[{extra}]' in the clone of lorasynth"


def quoted(value: object) -> str:
    """A value out of a file, for a message: at most a few hundred characters, made in no time."""
    try:
        return _short.repr(value)[:300]
    except ValueError:  # Python writes no number of thousands of digits
        return f"a {type(value).__name__}"


def reason_of(error: BaseException) -> str:
    """The first line of another library's error that says something, else the kind of error."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


class LorasynthError(Exception):
    """Base of all errors caused by input rather than by a defect.

    What messages quote may come from anywhere, so characters that would break the line or act on a
    terminal are escaped.
    """

    def __init__(self, message: str) -> None:
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}"
        super().__init__(escaped(message))


class ImageError(LorasynthError):
    """An image cannot be used: unreadable, too large, or without a face."""


class FileFormatError(LorasynthError):
    """A file is not what its name or header says, or its content contradicts itself."""


class LayoutError(LorasynthError):
    """An adapter, vector or file does not fit the layout it is used with."""


class LibraryError(LorasynthError):
    """A library on disk is damaged, locked, incomplete or of another layout."""


class BaseModelError(LorasynthError):
    """A base model is missing a part, or is not the one that an adapter was made for."""


class BundleError(LorasynthError):
    """A saved component (synthesizer, encoder, shipped bundle) is damaged or incomplete."""


class ConfigError(LorasynthError):
    """An option has a value that its component does not accept."""


class CollectionError(LorasynthError):
    """A collection of adapters cannot start or go on."""
