"""The command `lorasynth`: groups of commands, and what happens to errors."""

import os
from typing import Any

import typer
from typer.core import TyperGroup

from lorasynth.cli import (
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
from lorasynth.cli.quiet import quiet
from lorasynth.errors import ConfigError, LorasynthError
from lorasynth.progress import console

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
            return super().invoke(ctx)
        except LorasynthError as error:
            _say(f"error: {error}", "red")
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            safe = str(error) or "what was finished is kept; run the same command to go on"
            _say(f"interrupted: {safe}", "yellow")
            raise typer.Exit(130) from error


def _say(line: str, style: str) -> None:
    line = " ".join(line.split())
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


app = typer.Typer(
    name="lorasynth",
    cls=Commands,
    help="One reference picture in, a LoRA file for a text-to-image diffusion model out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("synth")(synth.synth)
app.command("images")(images.images)
app.add_typer(importing.app, name="import")
app.command("convert")(lora.convert)
app.command("inspect")(lora.inspect)
app.command("check")(lora.check)
app.command("blend")(optimise.blend)
app.command("invert")(optimise.invert)
app.command("refine")(optimise.refine)
app.command("fine-tune")(families.fine_tune)
app.add_typer(families.app, name="ip-adapter")
app.command("edit")(edit.edit)
app.command("interpolate")(edit.interpolate)
app.command("sample")(edit.sample)
app.command("demo")(demo.demo)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("growth")(growth.growth)
app.command("reproduce")(reproduce.reproduce)
app.command("ladder")(ladder.ladder)
app.command("collect")(collect.collect)
app.command("pretrain")(pretrain.pretrain)
app.command("repeatability")(repeatability.repeatability)
app.command("recipes")(repeatability.recipes)
app.command("conditions")(conditions.conditions)
app.add_typer(library.app, name="library")
app.add_typer(recipe.app, name="recipe")
app.command("fit")(train.fit)
app.command("train")(train.train)
app.add_typer(base.app, name="base")
app.add_typer(encoders.app, name="encoders")
app.add_typer(bundle.app, name="bundle")


def main() -> None:
    """Run a command."""
    app()
