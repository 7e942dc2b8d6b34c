"""Sampling, alone and with stacked adapters, against itself and against diffusers."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lorasynth.adapter import Factor, Factors
from lorasynth.base import BaseModel, SamplingConfig
from lorasynth.errors import BaseModelError, LayoutError
from lorasynth.randomness import torch_stream

PROMPTS = ["a portrait of sks, smiling", "sad", "", "blue background", "red hoodie", "sks"]
SEEDS = [3, 1, 4, 1, 5, 9]
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
QUICK = SamplingConfig(steps=3, guidance=2.0)
#: Levels of 255 by which two ways to the same picture may differ: both round once.
ROUNDING = 1


def random_adapters(base: BaseModel, n: int, size: float = 0.3) -> Factors:
    stream = torch_stream(0, "adapters", n)

    def draw(*shape: int) -> Tensor:
        return size * torch.randn(shape, generator=stream, dtype=torch.float64)

    return {
        name: Factor(draw(n, 2, module.in_features), draw(n, module.out_features, 2))
        for name, module in base.target_linears(TARGETS).items()
    }


def distance(first: Tensor, second: Tensor) -> int:
    return int((first.int() - second.int()).abs().max())


# Sampling


def test_a_picture_depends_on_its_prompt_and_its_seed(base: BaseModel) -> None:
    prompts = ["sad", "sad", "red hoodie, green background, smiling, fur hat, sunglasses"]
    pictures = base.sample(prompts, [1, 2, 1], config=QUICK)
    assert pictures.shape == (3, 16, 16, 3)
    assert pictures.dtype == torch.uint8
    assert distance(base.sample(["sad"], [1], config=QUICK), pictures[:1]) <= ROUNDING
    assert distance(pictures[0], pictures[1]) > 10 * ROUNDING
    assert distance(pictures[0], pictures[2]) > 10 * ROUNDING


@pytest.mark.parametrize("batch", [1, 4, 64])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_picture_does_not_depend_on_its_batch(
    base: BaseModel, batch: int, guidance: float
) -> None:
    config = SamplingConfig(steps=3, guidance=guidance, batch=batch)
    together = base.sample(PROMPTS, SEEDS, config=config)
    order = [4, 0, 5, 2, 1, 3]
    shuffled = base.sample([PROMPTS[i] for i in order], [SEEDS[i] for i in order], config=config)
    assert distance(together[order], shuffled) <= ROUNDING
    alone = [base.sample([p], [s], config=config) for p, s in zip(PROMPTS, SEEDS, strict=True)]
    assert distance(together, torch.cat(alone)) <= ROUNDING


def test_guidance_of_one_is_none(base: BaseModel) -> None:
    plain = base.sample(PROMPTS[:1], [0], config=SamplingConfig(steps=3, guidance=1.0))
    nearly = base.sample(PROMPTS[:1], [0], config=SamplingConfig(steps=3, guidance=1 + 1e-9))
    strong = base.sample(PROMPTS[:1], [0], config=SamplingConfig(steps=3, guidance=4.0))
    assert distance(plain, nearly) <= ROUNDING
    assert distance(plain, strong) > 10 * ROUNDING


def test_sampling_leaves_random_state_alone(base: BaseModel) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    base.sample(PROMPTS[:1], [0], config=QUICK)
    assert torch.get_rng_state().equal(state)


# With stacked adapters


def test_adapters_of_zero_change_nothing(base: BaseModel) -> None:
    zero = {k: Factor(f.A, torch.zeros_like(f.B)) for k, f in random_adapters(base, 3).items()}
    pictures = base.sample(PROMPTS, SEEDS, zero, QUICK)
    assert distance(pictures, base.sample(PROMPTS, SEEDS, config=QUICK)) <= ROUNDING


@pytest.mark.parametrize("batch", [1, 2, 4, 64])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_stacked_adapters_sample_as_each_does_alone(
    base: BaseModel, batch: int, guidance: float
) -> None:
    config = SamplingConfig(steps=3, guidance=guidance, batch=batch)
    adapters = random_adapters(base, 3)
    together = base.sample(PROMPTS, SEEDS, adapters, config)
    for i in range(3):
        mine = slice(2 * i, 2 * i + 2)
        one = {name: Factor(f.A[i : i + 1], f.B[i : i + 1]) for name, f in adapters.items()}
        assert distance(together[mine], base.sample(PROMPTS[mine], SEEDS[mine], one, config)) <= (
            ROUNDING
        )
    assert distance(together, base.sample(PROMPTS, SEEDS, config=config)) > 10 * ROUNDING


@pytest.mark.parametrize(
    ("prompts", "seeds", "adapters"), [(5, 5, 2), (1, 1, 2), (2, 3, 1), (4, 2, 2), (0, 0, 1)]
)
def test_prompts_that_do_not_divide_among_adapters(
    base: BaseModel, prompts: int, seeds: int, adapters: int
) -> None:
    with pytest.raises(LayoutError, match=f"got {prompts} prompts, {seeds} seeds") as caught:
        base.sample(PROMPTS[:prompts], SEEDS[:seeds], random_adapters(base, adapters), QUICK)
    assert "\n" not in str(caught.value)


# What is read from the pipeline


def test_sizes_are_those_of_the_pipeline(base: BaseModel) -> None:
    assert base.latent_shape == (4, 8, 8)
    assert base.picture_size == 16
    assert base.prediction_type == "v_prediction"
    assert base.dtype == torch.float64
    [text] = base.encode_prompts(["sad", "a b c"]).parts.values()
    assert text.shape == (2, 24, 16)
    assert not any(p.requires_grad for p in base.denoiser.parameters())
    assert not base.scheduler.config.clip_sample


def test_latents_are_scaled_and_do_not_depend_on_their_batch(pipeline_folder: Path) -> None:
    base = BaseModel.load(pipeline_folder)
    pictures = torch.randint(0, 256, (5, 16, 16, 3), generator=torch_stream(0, "x"))
    latents = base.encode_pictures(pictures.to(torch.uint8))
    assert latents.shape == (5, *base.latent_shape)
    in_twos = base.encode_pictures(pictures.to(torch.uint8), batch=2)
    torch.testing.assert_close(in_twos, latents, atol=1e-5, rtol=0)
    decoded = base.decode_latents(latents)
    assert decoded.shape == (5, 16, 16, 3)
    assert distance(base.decode_latents(latents, batch=2), decoded) <= ROUNDING
    base.scaling *= 2
    torch.testing.assert_close(base.encode_pictures(pictures.to(torch.uint8)), 2 * latents)
    assert distance(base.decode_latents(2 * latents), decoded) <= ROUNDING


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_target_is_what_the_scheduler_takes_for_a_prediction(
    tmp_path: Path, make_pipeline: Callable[..., Path], kind: str
) -> None:
    base = BaseModel.load(make_pipeline(tmp_path / "base", kind), dtype=torch.float64)
    clean, noise = torch.randn(
        2, 3, *base.latent_shape, generator=torch_stream(0, "x"), dtype=torch.float64
    )
    timesteps = torch.tensor([10, 400, 900])
    noisy, target = base.add_noise(clean, noise, timesteps)
    base.scheduler.set_timesteps(20)
    for i, timestep in enumerate(timesteps):
        step = base.scheduler.step(target[i], int(timestep), noisy[i])
        torch.testing.assert_close(step.pred_original_sample, clean[i], atol=1e-3, rtol=0)


def test_targets_name_linear_layers(base: BaseModel) -> None:
    found = base.target_linears(["attn2.to_k", "to_out.0"])
    assert list(found) == sorted(found)
    assert all(name.endswith((".attn2.to_k", ".to_out.0")) for name in found)
    assert any(".attn1.to_out.0" in name for name in found)
    every = dict(base.denoiser.named_modules())
    assert all(every[name] is module for name, module in found.items())
    whole = base.target_linears([next(iter(found))])
    assert list(whole) == [next(iter(found))]


@pytest.mark.parametrize("target", ["to_x", "o_k", "conv_in", "", "attn2"])
def test_a_target_that_is_no_layer_is_told_in_one_line(base: BaseModel, target: str) -> None:
    with pytest.raises(LayoutError, match=rf"but '{target}' ends none.*to_k") as caught:
        base.target_linears(["to_q", target])
    assert "\n" not in str(caught.value)


# Fingerprints


def test_the_fingerprint_is_of_the_weights_not_of_their_format(
    pipeline_folder: Path, tmp_path: Path
) -> None:
    logging.getLogger("diffusers").setLevel(logging.ERROR)  # it warns of fp16 on a CPU
    half = BaseModel.load(pipeline_folder, dtype=torch.float16)
    half.pipeline.save_pretrained(tmp_path / "half")
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    loaded = [BaseModel.load(pipeline_folder, dtype=kind) for kind in kinds]
    assert [base.dtype for base in loaded] == list(kinds)
    assert {base.fingerprint for base in loaded} == {half.fingerprint}
    assert BaseModel.load(tmp_path / "half").fingerprint == half.fingerprint


def test_other_weights_have_another_fingerprint(pipeline_folder: Path, tmp_path: Path) -> None:
    base = BaseModel.load(pipeline_folder)
    with torch.no_grad():
        next(base.denoiser.parameters()).mul_(1.01)
    base.pipeline.save_pretrained(tmp_path / "other")
    assert BaseModel.load(tmp_path / "other").fingerprint != base.fingerprint


# Folders that are no base model


def _remove(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    return damage


def _truncate(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def _widen(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cross_attention_dim": 24}))


DAMAGES = {
    **{
        f"no {name}": _remove(name)
        for name in (
            "unet",
            "vae",
            "text_encoder",
            "tokenizer",
            "tokenizer/tokenizer.json",
            "tokenizer/tokenizer_config.json",
            "scheduler",
            "model_index.json",
        )
    },
    "half the U-Net": _truncate("unet/diffusion_pytorch_model.safetensors"),
    "half an index": _truncate("model_index.json"),
    "a wider U-Net": _widen,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_that_lacks_a_part_is_told_in_one_line(
    pipeline_folder: Path, tmp_path: Path, damage: str
) -> None:
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    folder = tmp_path / "damaged"
    shutil.copytree(pipeline_folder, folder)
    DAMAGES[damage](folder)
    with pytest.raises(BaseModelError, match="damaged") as caught:
        BaseModel.load(folder)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(BaseModelError, match=r"model\.ckpt is a file"):
        BaseModel.load(tmp_path / "model.ckpt")
    with pytest.raises(BaseModelError, match="cannot be loaded") as caught:
        BaseModel.load(tmp_path / "none")
    assert "\n" not in str(caught.value)
