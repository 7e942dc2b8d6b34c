"""convert, inspect, check and import, as a user runs them, and what they say of bad input."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from command_line import Run
from lorasynth.adapter import Adapter, AdapterMetadata, Factor
from lorasynth.library import Library

from .conftest import World


def test_convert_there_and_back(world: World, run: Run, tmp_path: Path) -> None:
    kohya, peft, again = (tmp_path / name for name in ("k.safetensors", "p", "d.safetensors"))
    for source, out, name in (
        (world.lora, kohya, "kohya"), (kohya, peft, "peft"), (peft, again, "diffusers")
    ):  # fmt: skip
        result = run("convert", source, out, "--format", name)
        assert (result.status, result.out.strip()) == (0, str(out))
    first, last = Adapter.load(world.lora), Adapter.load(again)
    assert torch.equal(first.to_vector(), last.to_vector())
    assert first.metadata == last.metadata


def test_convert_to_half_precision(world: World, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "half.safetensors"
    assert run("convert", world.lora, out, "--format", "kohya", "--dtype", "float16").status == 0
    weights = [t for key, t in load_file(out).items() if not key.endswith(".alpha")]
    assert {tensor.dtype for tensor in weights} == {torch.float16}
    result = run("convert", world.lora, out, "--format", "kohya", "--dtype", "int8")
    result.is_one_error("--dtype must be one of float32, float16, bfloat16", "'int8'")


def test_convert_to_a_format_that_is_none(world: World, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    run("convert", world.lora, out, "--format", "lycoris").is_one_error("lycoris", "kohya")
    assert not out.exists()


def test_inspect(world: World, run: Run, tmp_path: Path) -> None:
    picture = tmp_path / "norms.png"
    result = run("inspect", world.lora, "--picture", picture)
    assert result.status == 0
    facts = dict(line.split(maxsplit=1) for line in result.out.splitlines() if " " in line.strip())
    assert facts["format"] == "kohya"
    assert facts["origin"] == "synthesised"
    assert facts["trigger"] == "sks"
    assert "mid_block" in result.out
    assert "warning" not in result.out
    other = tmp_path / "other.safetensors"
    assert run("convert", world.lora, other, "--format", "diffusers").status == 0
    assert "8 of 40" in row(run("inspect", other).out, "ComfyUI")
    with Image.open(picture) as image:
        assert min(image.size) > 100


def row(out: str, program: str) -> str:
    """The line of a program in what `inspect` prints."""
    [line] = [line for line in out.splitlines() if program in line]
    return line


def test_check(world: World, run: Run, tmp_path: Path) -> None:
    result = run("check", world.lora, "--base", world.base)
    assert result.status == 0
    assert "modules fit" in result.out
    bad = {"mid_block.x": Factor(torch.ones(1, 2), torch.ones(2, 1))}
    path = Adapter({**Adapter.load(world.lora).factors, **bad}).save(tmp_path / "bad.safetensors")
    result = run("check", path, "--base", world.base)
    result.is_one_error("1 do not fit")
    assert result.out.startswith("mid_block.x: the base model has no such")
    run("check", world.lora, "--base", tmp_path).is_one_error("model_index.json")


def test_import(world: World, run: Run, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    shutil.copy(world.lora, tree / "a.safetensors")
    (tree / "b.safetensors").write_text("hello")
    result = run("import", tree, "-o", tmp_path / "library")
    assert result.status == 0
    assert "1 adapters imported, 1 files skipped" in result.out
    assert "b.safetensors" in result.err
    assert Library.open(tmp_path / "library").ids == ["a"]
    run("import", tmp_path / "none", "-o", tmp_path / "other").is_one_error("is none")


def damaged(path: Path, change: str) -> Path:
    """A LoRA file with something wrong."""
    tensors = {
        "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(2, 4),
        "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.ones(3, 2),
        "lora_unet_mid_block_attentions_0_proj_in.alpha": torch.tensor(2.0),
    }
    down, up, _ = tensors
    if change == "a missing key":
        del tensors[up]
    elif change == "contradicting shapes":
        tensors[up] = torch.ones(3, 5)
    elif change == "rank 0":
        tensors |= {down: torch.ones(0, 4), up: torch.ones(3, 0)}
    elif change == "infinite values":
        tensors[up] = torch.full((3, 2), torch.inf)
    elif change == "two formats":
        tensors["unet.mid_block.attentions.0.proj_in.lora_A.weight"] = torch.ones(2, 4)
    elif change == "a duplicated key":
        tensors["lora_transformer_mid_block_attentions_0_proj_in.lora_down.weight"] = torch.ones(
            2, 4
        )
    save_file(tensors, path)
    data = path.read_bytes()
    if change == "truncated":
        path.write_bytes(data[:-4])
    elif change == "a header of 10 GB":
        path.write_bytes((10 * 2**30).to_bytes(8, "little") + data[8:])
    elif change == "a pickle":
        torch.save(tensors, path)
    return path


DAMAGES = {
    "a missing key": "without its partner .lora_up.weight",
    "contradicting shapes": "with r at least 1, but lora_unet_mid_block_attentions_0_proj_in",
    "rank 0": "r at least 1",
    "infinite values": "infinite values",
    "two formats": "mixes diffusers and kohya",
    "a duplicated key": "without its partner",
    "truncated": "complete safetensors",
    "a header of 10 GB": "complete safetensors",
    "a pickle": "is a pickle",
}


@pytest.mark.parametrize("command", ["inspect", "convert"])
@pytest.mark.parametrize("change", DAMAGES)
def test_a_damaged_file_is_one_line(run: Run, tmp_path: Path, change: str, command: str) -> None:
    path = damaged(tmp_path / "bad.safetensors", change)
    out = tmp_path / "out.safetensors"
    arguments = (path,) if command == "inspect" else (path, out, "--format", "diffusers")
    run(command, *arguments).is_one_error(DAMAGES[change])
    assert not out.exists()


def test_wrong_width_is_told_by_check(world: World, run: Run, tmp_path: Path) -> None:
    adapter = Adapter.load(world.lora)
    module, factor = next(iter(adapter.factors.items()))
    wide = Factor(torch.ones(factor.rank, factor.in_features + 1), factor.B)
    metadata = AdapterMetadata()
    path = Adapter({module: wide}, metadata).save(tmp_path / "wide.safetensors")
    result = run("check", path, "--base", world.base)
    result.is_one_error("1 do not fit")
    assert f"it is {factor.in_features + 1} -> " in result.out
