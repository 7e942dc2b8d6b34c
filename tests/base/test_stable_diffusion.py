"""What is particular to Stable Diffusion, and what no kind of base model has of its own."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorasynth.adapter import Factor
from lorasynth.base import BaseModel, SamplingConfig
from lorasynth.core.errors import BaseModelError, LayoutError
from lorasynth.core.randomness import torch_stream

from .test_contract import PROMPTS, QUICK, ROUNDING, SEEDS, distance, random_adapters

# Sampling


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
    zero = {k: Factor(f.A, torch.zeros_like(f.B)) for k, f in random_adapters(base, 2).items()}
    images = base.sample(PROMPTS, SEEDS, zero, QUICK)
    assert distance(images, base.sample(PROMPTS, SEEDS, config=QUICK)) <= ROUNDING


@pytest.mark.parametrize(
    ("prompts", "seeds", "adapters"), [(3, 3, 2), (1, 1, 2), (2, 3, 1), (4, 2, 2), (0, 0, 1)]
)
def test_prompts_that_do_not_divide_among_adapters(
    base: BaseModel, prompts: int, seeds: int, adapters: int
) -> None:
    with pytest.raises(LayoutError, match=f"got {prompts} prompts, {seeds} seeds") as caught:
        base.sample(PROMPTS[:prompts], SEEDS[:seeds], random_adapters(base, adapters), QUICK)
    assert "\n" not in str(caught.value)


# What is read from the pipeline


def test_sizes_are_those_of_the_pipeline(base: BaseModel) -> None:
    assert base.scheduler.config.prediction_type == "v_prediction"
    [text] = base.encode_prompts(["sad", "a b c"]).parts.values()
    assert text.shape == (2, 24, 16)
    assert not base.scheduler.config.clip_sample


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
        (folder / name).unlink()

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
        for name in ("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json")
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
    with pytest.raises(BaseModelError, match=r"model\.ckpt is not: pickles"):
        BaseModel.load(tmp_path / "model.ckpt")
    with pytest.raises(BaseModelError, match="is not there") as caught:
        BaseModel.load(tmp_path / "none")
    assert "\n" not in str(caught.value)
