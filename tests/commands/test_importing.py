"""`lorasynth import`: a folder of LoRA files, or weights2weights' published files."""

from pathlib import Path

import pytest
import torch

from command_line import Run
from lorasynth.adapter import Adapter, Factor
from lorasynth.commands.shared import memory_of
from lorasynth.core.errors import ConfigError
from lorasynth.library import Library
from w2w_files import imitate_w2w


def test_a_folder_of_loras(run: Run, tmp_path: Path) -> None:
    factor = Factor(torch.randn(2, 6), torch.randn(8, 2))
    Adapter({"mid_block.to_q": factor}).save(tmp_path / "downloads" / "a.safetensors")
    (tmp_path / "downloads" / "b.safetensors").write_text("hello")
    result = run("import", "loras", tmp_path / "downloads", "-o", tmp_path / "library")
    assert result.status == 0
    assert "1 adapters imported, 1 files skipped" in result.out
    assert "b.safetensors" in result.err
    assert Library.open(tmp_path / "library").ids == ["a"]
    run("import", "loras", tmp_path / "none", "-o", tmp_path / "x").is_one_error("is none")


def test_weights2weights(run: Run, tmp_path: Path) -> None:
    files, library = tmp_path / "w2w", tmp_path / "library"
    imitate_w2w(files, 30, 64)
    result = run("import", "w2w", files, "-o", library, "--dtype", "float16")
    assert result.status == 0
    assert "30 adapters imported" in result.out
    assert "no split" not in result.err
    assert not Library.open(library).check().damages


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
