"""`lorasynth conditions`: which condition encoders there are, and under which licences."""

import typer


def conditions() -> None:
    """List the condition encoders: what each needs, its licence, and whether it is installed.

    Every option that takes an encoder takes one of these names, or a folder that holds one.
    """
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from lorasynth.condition import NAMED

    table = Table(box=SIMPLE)
    for column in ("encoder", "embeds", "needs", "licence of the weights", "here"):
        table.add_column(column, no_wrap=column == "encoder", overflow="fold")
    table.add_row("FOLDER", "avatars, 64 pixels to 128", "the bundle", "Apache-2.0", "yes")
    absent = []
    for _, one in sorted(NAMED.own.items()):
        here = "no" if one.missing else "yes"
        table.add_row(one.spelling, one.embeds, one.needs, one.licence, here)
        if one.missing:
            packages = ", ".join(one.missing)
            absent.append(f"{one.spelling} lacks {packages}: pip install 'lorasynth[{one.extra}]'")
    for name in (name for name in NAMED.names() if name not in NAMED.own):  # not imported for this
        table.add_row(name, "of another package", "that package", "its own", "yes")
    Console(markup=False).print(table)
    for line in absent:
        typer.echo(line)
    typer.echo("Any of them as a folder, with other options: lorasynth encoders make --help")
    typer.echo("Attributes in words, alone or beside one: lorasynth encoders attributes --help")
