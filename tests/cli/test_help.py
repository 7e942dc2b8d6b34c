"""Help is there for every command, and quick: nothing heavy is imported for it."""

import subprocess
import sys

import pytest
from typer.main import get_command

from command_line import Run
from lorasynth.cli.main import app


@pytest.mark.parametrize("command", sorted(get_command(app).commands))
def test_every_command_says_what_it_does(run: Run, command: str) -> None:
    result = run(command, "--help")
    assert result.status == 0
    assert f"lorasynth {command}" in result.out
    assert result.err == ""


def test_help_imports_neither_torch_nor_diffusers() -> None:
    heavy = "{'torch', 'diffusers', 'transformers', 'pyarrow'}"
    program = f"import sys, lorasynth.cli.main; print(sorted({heavy} & sys.modules.keys()))"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert (found.stdout, found.stderr) == ("[]\n", "")


def test_consent_is_in_the_help(run: Run) -> None:
    assert "consent" in run("synth", "--help").out


def test_only_training_is_for_several_processes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    run("pretrain", "-o", "nowhere").is_one_error("lorasynth pretrain is for one process", "as 2")
    assert run("train", "--help").status == 0
