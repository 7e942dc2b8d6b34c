"""Errors that a user can act on.

Every error that bad input can cause is a `LorasynthError`.  Its message is one line with three
parts: the rule, the value received, and what to do.  The command line prints that line, without a
traceback, and exits with status 2.
"""


class LorasynthError(Exception):
    """Base of all errors caused by input rather than by a defect.

    What messages quote may come from anywhere, so characters that would break the line or act on a
    terminal are escaped.
    """

    def __init__(self, message: str) -> None:
        escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        super().__init__("".join(escaped))


class PictureError(LorasynthError):
    """A picture cannot be used: unreadable, too large, or without a face."""


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
