"""One step of a fleet on the whole U-Net of Stable Diffusion 1.5, of random weights, in bf16.

Takes minutes where bf16 products are emulated, and 2.3 GB: `pytest -m slow tests/collect`.
"""

from dataclasses import replace

import pytest
import torch

from full_size import whole_pipeline
from lorasynth.base import BaseModel, Memory
from lorasynth.core.randomness import torch_stream
from lorasynth.engine.fleet import train_fleet
from lorasynth.engine.recipe import PRESETS
from lorasynth.images import Subject

SIDE = 64
BLOCK = "mid_block.attentions.0.transformer_blocks.0"
#: There the latents have shrunk to a single one, whose attention to itself has no gradient.
INNERMOST = (f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn1.to_k")


@pytest.fixture(scope="module")
def base():
    base = BaseModel(whole_pipeline(), "whole", image_size=SIDE)
    Memory(gradient_checkpointing=True).apply(base.denoiser, base.name)
    return base


def subject(name):
    images = torch.randint(256, (2, SIDE, SIDE, 3), generator=torch_stream(0, name))
    return Subject(
        id=name, photos=images.to(torch.uint8), captions=["a portrait of sks", "sks, sad"]
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("name", "modules"), [("ours", 160), ("weights2weights", 64)])
def test_a_fleet_of_two_takes_a_step(base, name, modules):
    recipe = replace(PRESETS[name], steps=1, images_per_step=1)
    classes = torch.randn(2, *base.latent_shape, generator=torch_stream(1)).bfloat16()
    fleet = train_fleet(base, recipe, [subject("ann"), subject("ben")], classes=classes)
    assert len(fleet.factors) == modules
    assert fleet.losses.shape == (2, 1)
    assert 0.1 < fleet.losses.mean() < 10
    for module, factor in fleet.factors.items():
        assert factor.B.dtype == torch.float32
        assert factor.B.isfinite().all()
        if module not in INNERMOST:
            assert factor.B.flatten(1).any(dim=1).all(), module
            assert not factor.B[0].equal(factor.B[1]), module
