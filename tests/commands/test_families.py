"""`fine-tune` and `ip-adapter` on the tiny world."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors import safe_open

from command_line import Run, call
from lorasynth.base import BaseModel

from .conftest import SIDE, World

DEVICE = ("--device", "cpu")


def test_all_weights_are_trained_and_diffusers_reads_them(
    world: World, run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    result = run("fine-tune", world.photo, "-o", out, "--base", world.base, "--steps", 2, *DEVICE)
    assert result.status == 0, result.err
    trained = UNet2DConditionModel.from_pretrained(out)
    before = dict(BaseModel.load(world.base).denoiser.named_parameters())
    moved = [not torch.equal(p, before[name]) for name, p in trained.named_parameters()]
    assert sum(moved) > 0.9 * len(moved)


def test_several_subjects_have_a_folder_each(world: World, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "all"
    result = run(
        "fine-tune", world.subjects, "-o", out, "--base", world.base, "--steps", 1, *DEVICE
    )
    assert result.status == 0, result.err
    assert sorted(path.name for path in out.iterdir()) == ["ann", "ben", "cyd"]


@pytest.fixture(scope="module")
def adapter(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ip")
    words = ["ip-adapter", "train", "--folder", world.subjects, "--encoder", world.encoder]
    words += ["--base", world.base, "-o", root / "ip.safetensors", "--run", root / "run", *DEVICE]
    words += ["--set", "optimisation.steps=2", "--set", "optimisation.batch=2"]
    assert call(words) == 0
    return root / "ip.safetensors"


def test_an_ip_adapter_makes_a_row_of_images_for_each_subject(
    world: World, run: Run, tmp_path: Path, adapter: Path
) -> None:
    with safe_open(adapter, framework="pt") as file:
        assert {"image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"} <= set(file.keys())
    where = ("--adapter", adapter, "--encoder", world.encoder, "--base", world.base, *DEVICE)
    out = tmp_path / "sheet.png"
    result = run("ip-adapter", "images", world.subjects, "-o", out, "-n", 2, *where)
    assert result.status == 0, result.err
    with Image.open(out) as image:
        assert image.size == (2 * SIDE + 2, 3 * SIDE + 2 * 2)
        assert "synthetic" in image.text["Comment"]
    wrong = ("--adapter", world.lora, *where[2:])
    run("ip-adapter", "images", world.photo, "-o", out, *wrong).is_one_error("must be a file that")
