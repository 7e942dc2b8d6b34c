"""`study fine-tune`: the family that LoRA stands beside."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from command_line import Run
from lorasynth.base import BaseModel

from .conftest import write_image

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
