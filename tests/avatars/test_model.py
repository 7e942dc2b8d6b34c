"""The embedded model is a Stable Diffusion pipeline, and knows every word of the captions."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from lorasynth.avatars import captions
from lorasynth.avatars.drawing import sample_identity, sample_scene
from lorasynth.avatars.model import AvatarModelConfig, build_pipeline, build_tokenizer
from lorasynth.base import BaseModel
from lorasynth.core.randomness import numpy_stream


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer(AvatarModelConfig())


def every_caption() -> list[str]:
    drawn = [numpy_stream(0, "captions", i) for i in range(500)]
    return [captions.described(sample_identity(rng, "test"), sample_scene(rng)) for rng in drawn]


# The pipeline


def test_attention_is_stated_for_each_resolution() -> None:
    with pytest.raises(ValueError, match="3 in unet_channels and 2 in attention"):
        AvatarModelConfig(unet_channels=(32, 64, 64), attention=(True, True))


def test_plain_diffusers_loads_and_runs_it(pipeline_folder: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(pipeline_folder)
    pipe.set_progress_bar_config(disable=True)
    parts = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "tokenizer": CLIPTokenizer,
        "scheduler": DDIMScheduler,
    }
    for name, kind in parts.items():
        assert type(getattr(pipe, name)) is kind
    image = pipe("a portrait of sks", num_inference_steps=2).images[0]
    assert image.size == (16, 16)


def test_saving_loses_nothing(pipeline_folder: Path, tmp_path: Path) -> None:
    base = BaseModel.load(pipeline_folder)
    base.pipeline.save_pretrained(tmp_path / "again")
    again = BaseModel.load(tmp_path / "again")
    for part in ("unet", "vae", "text_encoder"):
        for name, value in getattr(base.pipeline, part).state_dict().items():
            assert getattr(again.pipeline, part).state_dict()[name].equal(value), name
    first, second = (one.encode_prompts(["sks, sad"]).parts for one in (base, again))
    assert all(second[name].equal(part) for name, part in first.items())
    assert again.scheduler.config == base.scheduler.config


def test_noise_ends_without_signal() -> None:
    """Else flat backgrounds keep the brightness of the starting noise."""
    scheduler = build_pipeline(AvatarModelConfig()).scheduler
    assert scheduler.alphas_cumprod[-1] == pytest.approx(0, abs=1e-7)
    assert scheduler.config.prediction_type == "v_prediction"
    scheduler.set_timesteps(5)
    assert scheduler.timesteps[0] == 999


def test_sizes_follow_the_config() -> None:
    torch.manual_seed(0)
    config = AvatarModelConfig(
        image_size=32,
        latent_channels=3,
        unet_channels=(32, 64),
        attention=(False, True),
        text_width=24,
        tokens=16,
        heads=2,
    )
    base = BaseModel(build_pipeline(config), "sizes")
    assert base.latent_shape == (3, 2, 2)
    assert base.image_size == 32
    assert base.encode_prompts(["sks"]).parts["prompt_embeds"].shape == (1, 16, 24)


# The tokenizer


def test_every_word_of_a_caption_is_one_token_of_its_own(tokenizer: CLIPTokenizer) -> None:
    # A hyphen ends a word for CLIP.
    words = {word for text in every_caption() for word in re.findall("[a-z]+", text)}
    assert {"sks", "portrait", "wide", "bobble", "shirt"} < words
    ids = [tokenizer(word, add_special_tokens=False).input_ids for word in sorted(words)]
    assert all(len(tokens) == 1 for tokens in ids)
    assert len({tokens[0] for tokens in ids}) == len(words)


def test_it_is_the_same_each_time(tokenizer: CLIPTokenizer) -> None:
    """Else a resumed training reads other words than it began with."""
    again = build_tokenizer(AvatarModelConfig())
    assert again.get_vocab() == tokenizer.get_vocab()
    texts = [*every_caption(), "zebra!"]
    assert again(texts).input_ids == tokenizer(texts).input_ids


def test_every_caption_fits_and_is_read_whole(tokenizer: CLIPTokenizer) -> None:
    limit = AvatarModelConfig().tokens
    for text in every_caption():
        tokens = tokenizer(text).input_ids
        assert len(tokens) <= limit
        assert tokens[0] == tokenizer.bos_token_id
        assert tokens[-1] == tokenizer.eos_token_id
        read = tokenizer.decode(tokens, skip_special_tokens=True)
        assert read.replace(" ", "") == text.replace(" ", "")


def test_captions_that_differ_are_read_differently(tokenizer: CLIPTokenizer) -> None:
    texts = set(every_caption())
    assert len({tuple(tokenizer(text).input_ids) for text in texts}) == len(texts)


def test_other_words_are_spelt(tokenizer: CLIPTokenizer) -> None:
    for text in ("zebra!", "café", "日本", "§12"):
        tokens = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.unk_token_id not in tokens
        assert tokenizer.decode(tokens).replace(" ", "") == text


def test_long_texts_are_cut(tokenizer: CLIPTokenizer) -> None:
    tokens = tokenizer("sad " * 100, truncation=True, padding="max_length").input_ids
    assert len(tokens) == AvatarModelConfig().tokens
    assert tokens[-1] == tokenizer.eos_token_id
