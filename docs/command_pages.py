"""Writes commands.md: every command and option, from the configs that make the command line."""

import dataclasses
from pathlib import Path

from docstring_parser import parse

from lorasynth.commands import catalogue
from lorasynth.core.command import Command


def write(page: Path) -> None:
    """Write the page."""
    lines = ["# Commands", "", "Made from the code: `lorasynth COMMAND --help` says the same.", ""]
    group = ""
    for name in catalogue.names():
        kind = catalogue.load(name)
        if kind.group != group:
            group = kind.group
            lines += [f"## {group}", ""]
        for word, command in (kind.kinds() or {"": kind}).items():
            lines += _section(f"{name} {word}".strip(), command)
    page.write_text("\n".join(lines), encoding="utf-8")


def _section(name: str, command: type[Command]) -> list[str]:
    said = parse(command.__doc__ or "")
    text = "\n\n".join(filter(None, (said.short_description, said.long_description)))
    rows = _rows(command)
    table = ["| option | default | |", "|---|---|---|", *rows] if rows else []
    return [f"### lorasynth {name}", "", text, "", *table, ""]


def _rows(config: type, prefix: str = "") -> list[str]:
    rows = []
    explained = {
        one.arg_name: one.description or ""
        for base in reversed(config.__mro__)
        for one in parse(base.__doc__ or "").params
    }
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        name = f"{prefix}{field.name}"
        made = field.default_factory
        default = made() if made is not dataclasses.MISSING else field.default
        if dataclasses.is_dataclass(default):
            rows += _rows(type(default), f"{name}.")
            continue
        given = "needed" if default is dataclasses.MISSING else f"`{default}`"
        given = "" if default is None or default is False or default == () else given
        text = " ".join(explained.get(field.name, "").split()).replace("|", "\\|")
        rows.append(f"| `--{name.replace('_', '-')}` | {given} | {text} |")
    return rows
