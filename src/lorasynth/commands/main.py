"""The command `lorasynth`: groups of commands, and what happens to errors."""

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import IO, Annotated, Any, cast

import typer
from typer.core import TyperGroup

from lorasynth import __version__
from lorasynth.commands import (
    base,
    bundle,
    collect,
    compare,
    conditions,
    demo,
    edit,
    encoders,
    evaluate,
    families,
    growth,
    images,
    importing,
    ladder,
    library,
    lora,
    optimise,
    pretrain,
    recipe,
    repeatability,
    reproduce,
    synth,
    train,
)
from lorasynth.commands.quiet import quiet
from lorasynth.core.errors import ConfigError, LorasynthError, escaped
from lorasynth.core.progress import console

#: Commands that several processes of a launcher run together.
_SHARED = ("train",)


class Commands(TyperGroup):
    """Commands in which bad input ends with one line and status 2, Ctrl-C with one line and 130."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that is called.

        Raises:
            ConfigError: one of several processes calls a command that is for one.
        """
        name, command, rest = super().resolve_command(ctx, args)
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        if processes > 1 and name not in _SHARED:
            raise ConfigError(
                f"lorasynth {name} is for one process, but was launched as {processes}: start it "
                f"without a launcher; {', '.join(_SHARED)} shares its work among processes, and "
                "collect has --shard and --engine"
            )
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        quiet()
        try:
            with _ended_as_by_ctrl_c(), redirect_stdout(cast("IO[str]", _Escaping(sys.stdout))):
                return super().invoke(ctx)
        except LorasynthError as error:
            _say(f"error: {error}", "red")
            raise typer.Exit(2) from error
        except OSError as error:  # a disk that is full or read-only, too many open files
            _say(escaped(f"error: the system refused a file ({error}): make room for it"), "red")
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            safe = str(error) or "what was finished is kept; run the same command to go on"
            _say(f"interrupted: {safe}", "yellow")
            raise typer.Exit(130) from error


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
        if not isinstance(text, str):  # which is how typer finds out that this is no binary stream
            raise TypeError(f"text must be written, but got {type(text).__name__}")
        parts = self._colour.split(text) if self._stream.isatty() else [text]
        parts[::2] = [escaped(part, kept="\n\t") for part in parts[::2]]
        self._stream.write("".join(parts))
        return len(text)


def _say(line: str, style: str) -> None:
    line = " ".join(line.split())
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


app = typer.Typer(
    name="lorasynth",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _show_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"lorasynth {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """One reference image in, a LoRA file for a text-to-image diffusion model out."""


def _add(panel: str, *commands: tuple[str, Any]) -> None:
    """Commands and groups of commands, under a heading of the help."""
    for name, command in commands:
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, rich_help_panel=panel)
        else:
            app.command(name, rich_help_panel=panel)(command)


_add(
    "Use",
    ("synth", synth.synth),
    ("images", images.images),
    ("edit", edit.edit),
    ("interpolate", edit.interpolate),
    ("sample", edit.sample),
    ("refine", optimise.refine),
    ("blend", optimise.blend),
    ("invert", optimise.invert),
    ("demo", demo.demo),
)
_add(
    "LoRA files",
    ("inspect", lora.inspect),
    ("convert", lora.convert),
    ("resize", lora.resize),
    ("merge", lora.merge),
    ("extract", lora.extract),
    ("check", lora.check),
    ("import", importing.app),
    ("library", library.app),
)
_add(
    "Make a synthesizer",
    ("pretrain", pretrain.pretrain),
    ("collect", collect.collect),
    ("fit", train.fit),
    ("train", train.train),
    ("recipe", recipe.app),
    ("conditions", conditions.conditions),
    ("encoders", encoders.app),
    ("base", base.app),
    ("bundle", bundle.app),
)
_add(
    "Measure",
    ("evaluate", evaluate.evaluate),
    ("compare", compare.compare),
    ("repeatability", repeatability.repeatability),
    ("recipes", repeatability.recipes),
    ("ladder", ladder.ladder),
    ("growth", growth.growth),
    ("reproduce", reproduce.reproduce),
    ("fine-tune", families.fine_tune),
    ("ip-adapter", families.app),
)


def main() -> None:
    """Run a command."""
    app()
