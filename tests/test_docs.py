"""Every command that README and docs show can be read by the command that it names."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from lorasynth.commands import catalogue
from lorasynth.commands.main import find
from lorasynth.core.command import read_command

ROOT = Path(__file__).parents[1]
PAGES = {
    page.name: page.read_text(encoding="utf-8")
    for page in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
}
FAMILIES = runpy.run_path(str(ROOT / "docs" / "family_pages.py"))["texts"]()
PAGES |= {f"families/{name}": text for name, text in FAMILIES.items()}


def commands_in(text: str) -> list[str]:
    """Commands of a page: lines of shell blocks, and `lorasynth ...` in code spans."""
    text = text.replace("\\\n", " ")
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    spans = re.findall(r"`(lorasynth [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    found = [re.sub(r"^(\$ |srun )", "", line) for line in (*lines, *spans)]
    found = [line for line in found if "..." not in line and "--help" not in line]
    return [line for line in found if line.startswith("lorasynth ")]


SHOWN = [
    pytest.param(line, id=f"{page}: {line[:60]}")
    for page, text in PAGES.items()
    if page not in ("experiments.md", "commands.md")  # the log keeps what was typed then
    for line in commands_in(text)
]


@pytest.mark.parametrize("line", SHOWN)
def test_a_command_that_is_shown_can_be_typed(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    name, command, options = find([re.sub(r"\$\{?\w+\}?", "1", word) for word in words])
    assert name.split()[0] in {one.split()[0] for one in catalogue.names()}
    if command is not None and options:
        read_command(command, f"lorasynth {name}", options)


def test_the_pages_show_commands() -> None:
    assert len(SHOWN) > 20
