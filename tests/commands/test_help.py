"""Help is there for every command, made from its config, and quick: nothing heavy is imported."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import Run
from lorasynth import __version__
from lorasynth.commands import catalogue
from lorasynth.core.command import Command

#: Options that take a folder or the name of something elsewhere, such as a hub id.
NAMES = {"base", "encoder", "second", "images", "init_from", "residual_of", "synthesizer", "clip"}
HEAVY = ("torch", "diffusers", "transformers", "pyarrow", "numpy", "matplotlib")

ALL = {
    f"{name} {kind}".strip(): command
    for name in catalogue.names()
    for kind, command in (catalogue.load(name).kinds() or {"": catalogue.load(name)}).items()
}


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_command_says_what_it_and_its_options_do(run: Run, name: str) -> None:
    result = run(*name.split(), "--help")
    assert result.status == 0
    assert f"lorasynth {name}" in result.out
    assert result.err == ""
    said = " ".join(result.out.split())
    for field in dataclasses.fields(ALL[name]):  # type: ignore[arg-type]
        assert described(ALL[name], field.name), f"{name} does not explain {field.name}"
    assert "(default: )" not in said.replace("│", "") or "--" in said


def described(command: type[Command], option: str) -> bool:
    """Whether a docstring of the command, or of a group of options in it, explains an option."""
    return any(f"\n        {option}: " in (kind.__doc__ or "") for kind in command.__mro__)


def test_the_overview_has_every_command_and_at_most_25_first_words(run: Run) -> None:
    overview = run("--help").out
    for name in catalogue.names():
        assert f"  {name} " in overview
    own = {name.split()[0] for name in catalogue.names()}
    assert len(own) <= 25, sorted(own)


def test_no_help_imports_what_takes_seconds() -> None:
    program = (
        "import sys; from lorasynth.commands import catalogue\n"
        "for name in catalogue.names(): catalogue.load(name).kinds()\n"
        f"print(sorted({set(HEAVY)} & sys.modules.keys()))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert (found.stdout, found.stderr) == ("[]\n", "")


@pytest.mark.parametrize("command", ["synth", "collect", "pretrain", "optimise blend", "refine"])
def test_consent_is_in_the_help(run: Run, command: str) -> None:
    assert "consent" in run(*command.split(), "--help").out.lower()


def test_the_version_is_said(run: Run) -> None:
    result = run("--version")
    assert (result.status, result.out) == (0, f"lorasynth {__version__}\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("snyth",), "did you mean synth"),
        (("library", "nonsense"), "no command 'library nonsense'"),
        (("fit", "nonsense"), "one of pca, scaled, vae"),
        (("synth", "--seeed", "1", "-o", "x"), "--seed"),
        (("synth", "-o", "x", "--seed", "one"), "--seed"),
        (("synth", "-o", "x", "--face", "0"), "--face: input should be greater than or equal to 1"),
        (("synth", "photo.png"), "--out"),
    ],
)
def test_what_cannot_be_read_ends_with_one_line(
    run: Run, words: tuple[str, ...], said: str
) -> None:
    run(*words).is_one_error(said)


def test_only_training_is_for_several_processes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    run("collect", "images", "-o", "nowhere").is_one_error("collect is for one process", "as 2")
    assert run("train", "--help").status == 0


def test_what_may_be_a_name_is_never_read_as_a_path() -> None:
    """Windows would turn the slash of a hub id into a backslash."""
    for name, command in ALL.items():
        if name in ("convert", "extract"):  # whose base is a checkpoint on this disk
            continue
        for field in dataclasses.fields(command):  # type: ignore[arg-type]
            if field.name in NAMES:
                assert "Path" not in str(field.type), f"{name} --{field.name}"


def test_a_command_is_a_class_for_python_too(tmp_path: Path) -> None:
    from lorasynth.commands.synth import Synth

    root = Path(__file__).parents[2]
    out = tmp_path / "me.safetensors"
    [written] = Synth(photos=(root / "examples" / "photo.png",), out=out).run()
    assert written == out
    assert out.stat().st_size > 1000


@pytest.mark.parametrize("words", [("--help",), ("library",), ("synth", "--help"), ("--version",)])
def test_a_reader_that_stops_reading_ends_a_command_silently(words: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "lorasynth", *words]
        done = subprocess.run(command, check=False, stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")
