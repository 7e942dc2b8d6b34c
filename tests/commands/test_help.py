"""Help is there for every command, and quick: nothing heavy is imported for it."""

import subprocess
import sys
from collections.abc import Callable
from typing import get_type_hints

import pytest
from typer import Typer
from typer.main import get_command

from command_line import Run
from lorasynth import __version__
from lorasynth.commands.main import app

#: Options that take a folder or the name of something elsewhere, such as a hub id.
NAMES = {"base", "encoder", "second", "condition", "anchor", "synthesizer", "identity", "clip"}


@pytest.mark.parametrize("command", sorted(get_command(app).commands))
def test_every_command_says_what_it_does(run: Run, command: str) -> None:
    result = run(command, "--help")
    assert result.status == 0
    assert f"lorasynth {command}" in result.out
    assert result.err == ""


def test_help_imports_neither_torch_nor_diffusers() -> None:
    heavy = "{'torch', 'diffusers', 'transformers', 'pyarrow'}"
    program = f"import sys, lorasynth.commands.main; print(sorted({heavy} & sys.modules.keys()))"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert (found.stdout, found.stderr) == ("[]\n", "")


@pytest.mark.parametrize("command", ["synth", "collect", "pretrain", "blend", "invert", "refine"])
def test_consent_is_in_the_help(run: Run, command: str) -> None:
    assert "consent" in run(command, "--help").out


def test_the_version_is_said(run: Run) -> None:
    result = run("--version")
    assert (result.status, result.out) == (0, f"lorasynth {__version__}\n")


def test_only_training_is_for_several_processes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    run("pretrain", "-o", "nowhere").is_one_error("lorasynth pretrain is for one process", "as 2")
    assert run("train", "--help").status == 0


def commands(group: Typer) -> list[Callable[..., object]]:
    below = [one.typer_instance for one in group.registered_groups if one.typer_instance]
    own = [one.callback for one in group.registered_commands if one.callback]
    return [*own, *(command for one in below for command in commands(one))]


def test_what_may_be_a_name_is_never_read_as_a_path() -> None:
    """Windows would turn the slash of a hub id into a backslash."""
    found = [
        (name, kind)
        for command in commands(app)
        for name, kind in get_type_hints(command).items()
        if name in NAMES
    ]
    assert {name for name, _ in found} == NAMES
    assert {kind for _, kind in found} <= {str, str | None}
