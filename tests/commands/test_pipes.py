"""Named pipes in place of files: refused at once, since to read from one would wait for ever."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from command_line import Run

from .conftest import World, train_arguments

CPU = ("--device", "cpu")


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """End what waits."""

    def ended(*_: object) -> None:
        raise AssertionError("it waits for what is never written")

    before = signal.signal(signal.SIGALRM, ended)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def piped(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "{pipe}"],
        ["convert", "{pipe}", "{out}"],
        ["resize", "{pipe}", "{out}", "--rank", 1],
        ["merge", "{lora}", "{pipe}", "-o", "{out}"],
        ["extract", "{pipe}", "{base}", "{out}"],
        ["extract", "{base}", "{pipe}", "{out}"],
        ["synth", "{pipe}", "-o", "{out}", "--synthesizer", "{synthesizer}"],
        ["refine", "{pipe}", "{photo}", "-o", "{out}", "--base", "{base}", *CPU],
        ["refine", "{lora}", "{pipe}", "-o", "{out}", "--base", "{base}", *CPU],
        ["images", "--prompt", "x", "--base", "{pipe}", "-o", "{out}", *CPU],
        ["library", "annotate", "{library}", "{pipe}"],
        ["import", "w2w", "{folder}", "-o", "{out}"],
        ["import", "loras", "{folder}", "-o", "{out}"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_pipe_is_no_file(world: World, run: Run, tmp_path: Path, words: list[object]) -> None:
    for name in ("all_weights.pt", "weight_dimensions.pt", "identity_df.csv", "a.safetensors"):
        piped(tmp_path / "folder" / name)
    piped(tmp_path / "pipe.safetensors")
    places = {name: getattr(world, name) for name in ("lora", "base", "photo", "synthesizer")}
    places |= {"library": world.library, "folder": tmp_path / "folder"}
    places |= {"pipe": tmp_path / "pipe.safetensors", "out": tmp_path / "out.safetensors"}
    filled = [word.format(**places) if isinstance(word, str) else word for word in words]
    result = run(*filled)
    assert result.status == 2
    assert result.err.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("base", "model_index.json"),
        ("base", "unet/config.json"),
        ("base", "unet/diffusion_pytorch_model.safetensors"),
        ("base", "vae/diffusion_pytorch_model.safetensors"),
        ("library", "library.json"),
        ("library", "shards/000000/vectors.npy"),
        ("library", "shards/000000/subjects.parquet"),
        ("library", "shards/000000/checksums.json"),
        ("codec", "config.json"),
        ("codec", "codec.safetensors"),
        ("encoder", "config.json"),
        ("encoder", "model.safetensors"),
    ],
)
def test_a_pipe_within_a_folder_that_training_opens(
    world: World, run: Run, tmp_path: Path, part: str, name: str
) -> None:
    folder = shutil.copytree(getattr(world, part), tmp_path / part)
    assert (folder / name).is_file()
    piped(folder / name)
    words = train_arguments(world, tmp_path / "out", tmp_path / "run")
    words = [folder if word == getattr(world, part) else word for word in words]
    if part == "base":
        words = ["images", "--prompt", "x", "-n", 1, "--steps", 1, "--base", folder]
        words += ["-o", tmp_path / "out"]
    result = run(*words, *CPU)
    assert result.status == 2, result.err
    assert result.err.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_a_peft_folder_with_pipes(world: World, run: Run, tmp_path: Path) -> None:
    assert run("convert", world.lora, tmp_path / "me", "--format", "peft").status == 0
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        folder = shutil.copytree(tmp_path / "me", tmp_path / name)
        piped(folder / name)
        result = run("inspect", folder)
        assert result.status == 2
        assert "error: " in result.err + result.out
