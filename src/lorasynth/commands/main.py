"""The program `lorasynth`: finds the command that is asked for, and says what went wrong."""

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from difflib import get_close_matches
from functools import partial
from typing import IO, Any, cast

from lorasynth import __version__
from lorasynth.commands import catalogue
from lorasynth.commands.quiet import quiet
from lorasynth.core.command import Command, read_command
from lorasynth.core.errors import ConfigError, LorasynthError, escaped
from lorasynth.core.progress import console, note, told_soon


def main() -> None:
    """Run the command that the shell asks for, and exit.

    Bad input ends with one line and status 2, Ctrl-C with one line and 130, a reader of the
    output that stops reading with 141, silently, as of any program.
    """
    sys.exit(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Run a command; the exit status."""
    try:
        with _ended_as_by_ctrl_c(), redirect_stdout(cast("IO[str]", _Escaping(sys.stdout))):
            try:
                return _run(words)
            finally:
                sys.stdout.flush()  # here, and not at the interpreter's end, a closed pipe is met
    except BrokenPipeError:  # `lorasynth ... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except LorasynthError as error:
        return _end(f"error: {error}", "red", 2)
    except OSError as error:  # a disk that is full or read-only, too many open files
        line = f"error: the system refused a file ({error}): make room for it"
        return _end(escaped(line), "red", 2)
    except (MemoryError, RuntimeError) as error:
        from lorasynth.core.device import is_out_of_memory  # imports torch

        if not is_out_of_memory(error):
            raise
        why = (str(error).splitlines() or [type(error).__name__])[0]
        line = f"error: memory must suffice for what is done at once, but does not ({why}): see "
        return _end(escaped(f"{line}what `lorasynth plan` says of the base model"), "red", 2)
    except KeyboardInterrupt as error:
        safe = str(error) or "what was finished is kept; run the same command to go on"
        return _end(f"interrupted: {safe}", "yellow", 130)
    except SystemExit as ended:
        return int(ended.code or 0)


def _run(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(catalogue.overview())
        return 0
    if words[0] == "--version":
        print(f"lorasynth {__version__}")
        return 0
    name, command, rest = find(words)
    if command is None:
        print(catalogue.overview(name))
        return 0
    quiet()
    made = read_command(command, f"lorasynth {name}", rest)
    with told_soon(partial(note, f"lorasynth {name}: loading")):
        made.run()
    return 0


def find(words: Sequence[str]) -> tuple[str, type[Command] | None, Sequence[str]]:
    """The command that words begin with, its name, and the other words; None for a group's help.

    Raises:
        ConfigError: there is none, or several processes call one that is for one.
    """
    names = catalogue.names()
    for length in (2, 1):
        name = " ".join(words[:length])
        if len(words) < length or name not in names:
            continue
        command, rest = catalogue.load(name), words[length:]
        if kinds := command.kinds():
            if not rest or rest[0] in ("-h", "--help"):
                return name, None, rest
            if rest[0] not in kinds:
                raise ConfigError(
                    f"lorasynth {name} is followed by one of {', '.join(kinds)}, but got "
                    f"{escaped(rest[0])}: see lorasynth {name} --help"
                )
            name, command, rest = f"{name} {rest[0]}", kinds[rest[0]], rest[1:]
        _require_one_process(name, command)
        return name, command, rest
    grouped = any(one.startswith(f"{words[0]} ") for one in names)
    if grouped and (len(words) == 1 or words[1] in ("-h", "--help")):
        return words[0], None, ()
    asked = escaped(" ".join(words[: 1 + grouped]))
    close = get_close_matches(asked, names, n=3)
    near = f"did you mean {' or '.join(close)}?" if close else "lorasynth --help lists them"
    raise ConfigError(f"lorasynth has no command {asked!r}: {near}")


def _require_one_process(name: str, command: type[Command]) -> None:
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # as core.device, which imports torch
    if processes > 1 and not command.shared:
        raise ConfigError(
            f"lorasynth {name} is for one process, but was launched as {processes}: start it "
            "without a launcher; pretrain and train share their work among processes, and collect "
            "has --shard and --engine"
        )


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """Let SIGTERM, which schedulers send, end a command as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Escaping:
    """Standard output in which names out of files do not act on a terminal.

    Colours pass on a terminal, since rich writes them.
    """

    _colour = re.compile("(\x1b\\[[0-9;]*m)")

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        parts = self._colour.split(text) if self._stream.isatty() else [text]
        parts[::2] = [escaped(part, kept="\n\t") for part in parts[::2]]
        self._stream.write("".join(parts))
        return len(text)


def _end(line: str, style: str, status: int) -> int:
    line = " ".join(line.split())
    with suppress(OSError):  # standard error may be a file on the disk that is full
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
    return status
