"""The commands, one after another, on the whole U-Net of Stable Diffusion 1.5 in bf16.

Its weights are random and images have 64 pixels.  Takes minutes and 6 GB:
`pytest -m slow tests/cli`.
"""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from command_line import call
from full_size import whole_pipeline
from lorasynth.adapter import Adapter
from lorasynth.library import Library

from .conftest import DENOISER, SUBJECTS, TRAINING, save_encoder, write_image

SIDE = 64
RECIPE = ("--recipe.steps", 2, "--recipe.prior.images", 2, "--recipe.prior.steps", 1)
PROMPT = "a portrait of sks, smiling"


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_from_images_to_a_file_that_diffusers_loads(tmp_path: Path) -> None:
    base, people, library = (tmp_path / name for name in ("base", "people", "library"))
    whole_pipeline().save_pretrained(base)
    for index, name in enumerate(SUBJECTS):
        for image in range(2):
            write_image(people / name / f"{image}.png", 10 * index + image, SIDE)
    encoder = save_encoder(tmp_path / "encoder")
    model = ("--base", base, "--device", "cpu")
    small = ("--dtype", "bfloat16", "--size", SIDE)
    codec, made, lora = tmp_path / "codec", tmp_path / "made", tmp_path / "me.safetensors"
    photo = people / SUBJECTS[0] / "0.png"
    collect = ["collect", people, "-o", library, *model, *small, "--encoder", encoder]
    collect += ["--gradient-checkpointing", "--preset", "weights2weights", *RECIPE]
    for command in (
        [*collect, "--min-similarity", -1, "--fleet", 3],
        ["library", "check", library],
        ["fit", "pca", library, "-o", codec, "--device", "cpu", "--run", tmp_path / "fit"],
        ["train", library, "--codec", codec, "--encoder", encoder, "-o", made, *model,
         "--run", tmp_path / "train", *TRAINING, *DENOISER],
        ["synth", photo, "-o", lora, "--synthesizer", made],
        ["images", "--lora", lora, "--prompt", PROMPT, "-n", 2, "--steps", 2, *model, *small,
         "-o", tmp_path / "sheet.png"],
    ):  # fmt: skip
        assert call(command) == 0, command
    found = Library.open(library)
    assert found.ids == list(SUBJECTS)
    assert (found.width, len(found.layout.slots)) == (99_648, 64)
    assert all(-1 <= value <= 1 for value in found.table["similarity"].to_pylist())
    assert len(list(tmp_path.glob("class-*"))) == 1
    adapter = Adapter.load(lora)
    assert adapter.layout == found.layout
    assert changes(base, lora), "diffusers adds what the file holds"


def changes(base: Path, lora: Path) -> bool:
    """Whether a module's output in diffusers differs by B·A of the file."""
    pipeline = StableDiffusionPipeline.from_pretrained(base, torch_dtype=torch.bfloat16)
    module, factor = next(iter(Adapter.load(lora).factors.items()))
    x = torch.randn(1, 3, factor.A.shape[1]).bfloat16()
    before = pipeline.unet.get_submodule(module)(x).float()
    pipeline.load_lora_weights(lora)
    moved = pipeline.unet.get_submodule(module)(x).float() - before
    expected = x.float() @ (factor.B @ factor.A).float().T
    scale = before.abs().max()
    return bool((moved - expected).abs().max() <= 0.02 * scale) and bool(moved.any())
