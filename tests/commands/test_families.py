"""`study fine-tune` and `study ip-adapter`: the families that LoRA stands beside."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from command_line import Run, call
from lorasynth.base import BaseModel

from .conftest import SIDE, save_encoder, write_image

DEVICE = ("--device", "cpu")


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("people")
    for index, name in enumerate(("ann", "ben", "cyd")):
        for image in range(2):
            write_image(root / name / f"{image}.png", 10 * index + image)
    return root


def test_all_weights_are_trained_and_diffusers_reads_them(
    pipeline_folder: Path, people: Path, run: Run, tmp_path: Path
) -> None:
    out, words = tmp_path / "all", ("--base", pipeline_folder, "--steps", 2, *DEVICE)
    result = run("study", "fine-tune", people, "-o", out, *words)
    assert result.status == 0, result.err
    assert sorted(path.name for path in out.iterdir()) == ["ann", "ben", "cyd"]
    trained = UNet2DConditionModel.from_pretrained(out / "ann")
    before = dict(BaseModel.load(pipeline_folder).denoiser.named_parameters())
    moved = [not torch.equal(p, before[name]) for name, p in trained.named_parameters()]
    assert sum(moved) > 0.9 * len(moved)


def test_an_ip_adapter_makes_a_row_of_images_for_each_subject(
    pipeline_folder: Path, people: Path, run: Run, tmp_path: Path
) -> None:
    adapter, encoder = tmp_path / "ip.safetensors", save_encoder(tmp_path / "encoder")
    parts = ["--encoder", encoder, "--base", pipeline_folder, *DEVICE]
    train = ["study", "ip-adapter", people, "-o", adapter, "--run", tmp_path / "run", *parts]
    assert call([*train, "--steps", 2, "--batch", 2]) == 0
    with safe_open(adapter, framework="pt") as file:
        assert {"image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"} <= set(file.keys())
    out = tmp_path / "sheet.png"
    words = ["study", "ip-adapter-images", people, "-o", out, "-n", 2, *parts, "--adapter"]
    result = run(*words, adapter)
    assert result.status == 0, result.err
    with Image.open(out) as image:
        assert image.size == (2 * SIDE + 2, 3 * SIDE + 2 * 2)
        assert "synthetic" in image.text["Comment"]
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    run(*words, tmp_path / "other.safetensors").is_one_error("must be a file that")
