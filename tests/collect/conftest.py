"""A tiny random Stable Diffusion pipeline folder, and subjects of random pictures."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lorasynth.base import BaseModel
from lorasynth.pictures import Subject
from lorasynth.randomness import torch_stream

SIDE = 16


def save_tiny_pipeline(folder: Path, prediction_type: str = "epsilon") -> Path:
    torch.manual_seed(0)
    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = CLIPTokenizer(
        vocab={word: index for index, word in enumerate(words)}, merges=[], model_max_length=8
    )
    StableDiffusionPipeline(
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=8,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=8,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
            )
        ),
        unet=UNet2DConditionModel(
            sample_size=SIDE // 2,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=8,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        vae=AutoencoderKL(
            block_out_channels=(4, 4),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=2,
            sample_size=SIDE,
        ),
        scheduler=DDPMScheduler(prediction_type=prediction_type, clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class RandomSubjects:
    """A source of `count` subjects, each random pictures around a colour of its own."""

    count: int
    pictures: int = 3

    @property
    def ids(self):
        return [f"subject-{index:03d}" for index in range(self.count)]

    def load(self, subject_id):
        stream = torch_stream(7, subject_id)
        colour = torch.randint(64, 192, (1, 1, 1, 3), generator=stream)
        noise = torch.randint(-60, 60, (self.pictures, SIDE, SIDE, 3), generator=stream)
        return Subject(
            id=subject_id,
            pictures=(colour + noise).to(torch.uint8),
            captions=[f"a portrait {'abc'[index % 3]}" for index in range(self.pictures)],
            attributes={"redness": float(colour[..., 0])},
        )


@pytest.fixture(scope="session")
def make_pipeline():
    return save_tiny_pipeline


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return save_tiny_pipeline(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def base(folder):
    return BaseModel.load(folder, dtype=torch.float64)


@pytest.fixture
def source():
    return RandomSubjects(5)


@pytest.fixture
def subjects(source):
    return [source.load(name) for name in source.ids]
