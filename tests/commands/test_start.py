"""What a user waits for before a command begins: modules that it does not need are not imported."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Seconds of start-up each.
HEAVY = (
    "torch._dynamo",
    "sympy",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "matplotlib",
    "huggingface_hub",
    "pyarrow",
)

SCRIPT = """
import sys
from lorasynth.commands.main import main
try:
    main()
except SystemExit as stopped:
    assert not stopped.code, stopped.code
print(*sys.modules, file=sys.stderr)
"""


def imported(*arguments: object) -> tuple[str, set[str]]:
    """What a command prints in a process of its own, and all modules that it imported."""
    words = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    done = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout, set(done.stderr.splitlines()[-1].split())


def test_a_photo_becomes_a_file_without_what_it_does_not_need(tmp_path: Path) -> None:
    out = tmp_path / "me.safetensors"
    printed, modules = imported("synth", "examples/photo.png", "-o", out)
    assert printed == f"{out}\n"
    assert out.is_file()
    assert modules.isdisjoint(HEAVY), modules.intersection(HEAVY)


@pytest.mark.parametrize("command", [(), ("synth",), ("edit",)])
def test_help_imports_no_torch(command: tuple[str, ...]) -> None:
    printed, modules = imported(*command, "--help")
    assert "usage" in printed
    assert modules.isdisjoint(("torch", "numpy", *HEAVY))
