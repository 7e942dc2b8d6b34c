"""The command `lorasynth`: groups of commands, and what happens to errors."""

import sys

import typer

from lorasynth.cli import base, encoders
from lorasynth.errors import LorasynthError
from lorasynth.progress import console

app = typer.Typer(
    name="lorasynth",
    help="One reference picture in, a LoRA file for a text-to-image diffusion model out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(base.app, name="base")
app.add_typer(encoders.app, name="encoders")


def main() -> None:
    """Run a command; bad input ends with one line and status 2, Ctrl-C with one line and 130."""
    try:
        app()
    except LorasynthError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("interrupted: what was finished is kept; run the same command to go on")
        sys.exit(130)
