"""`lorasynth import`: a folder of LoRA files, or weights2weights' published files; then `fit`."""

from pathlib import Path

import pytest
import torch

from command_line import Run
from lorasynth.adapter import Adapter, Factor
from lorasynth.codec import load_codec
from lorasynth.commands.options import memory_of
from lorasynth.core.errors import ConfigError
from lorasynth.library import Library


@pytest.mark.parametrize("first", [[], ["folder"]])
def test_a_folder_needs_no_word(run: Run, tmp_path: Path, first: list[str]) -> None:
    factor = Factor(torch.randn(2, 6), torch.randn(8, 2))
    Adapter({"mid_block.to_q": factor}).save(tmp_path / "downloads" / "a.safetensors")
    result = run("import", *first, tmp_path / "downloads", "-o", tmp_path / "library")
    assert result.status == 0
    assert "1 adapters imported" in result.out
    assert Library.open(tmp_path / "library").ids == ["a"]
    options_first = run("import", "-o", tmp_path / "other", tmp_path / "downloads")
    assert options_first.status == 0


def test_weights2weights_from_files_to_a_codec(run: Run, tmp_path: Path) -> None:
    files, library, codec = tmp_path / "w2w", tmp_path / "library", tmp_path / "codec"
    assert run("library", "imitate", files, "--rows", 30, "--shrink", 64).status == 0
    result = run("import", "w2w", files, "-o", library, "--dtype", "float16")
    assert result.status == 0
    assert "30 adapters imported" in result.out
    assert "no split" not in result.err
    assert "all intact" in run("library", "check", library).out

    fit = ("fit", "pca", library, "-o", codec, "--split", "train", "--half", "--device", "cpu")
    more = ("--memory", "2GB", "--run", tmp_path / "run", "--set", "latents=5")
    assert run(*fit, *more).status == 0
    assert load_codec(codec).latents == 5
    assert (codec / "explained_variance.png").read_bytes().startswith(b"\x89PNG")
    run(*fit, "--memory", "much").is_one_error("--memory", "8GB", "'much'")
    run(*fit, "--memory", "0.1GB").is_one_error("more memory")
    run("fit", "pca", library, "-o", codec, "--split", "none").is_one_error("0")


def test_files_that_are_not_there(run: Run, tmp_path: Path) -> None:
    (tmp_path / "w2w").mkdir()
    result = run("import", "w2w", tmp_path / "w2w", "-o", tmp_path / "library")
    result.is_one_error("all_weights.pt", "Snapchat/weights2weights")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8GB", 8 * 10**9), ("7.5 GiB", 7.5 * 2**30), ("500m", 500 * 10**6), ("1T", 10**12)],
)
def test_amounts_of_memory(text: str, expected: float) -> None:
    assert memory_of(text) == expected


def test_no_amounts_of_memory() -> None:
    for text in ("8", "GB", "-1GB", "8XB"):
        with pytest.raises(ConfigError, match="a number with its unit"):
            memory_of(text)
    assert memory_of(None) > 10**8
