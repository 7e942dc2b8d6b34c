"""What every kind of base model does; a row in `tiny_pipelines.KINDS` each."""

import json
import logging
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FluxPipeline
from torch import Tensor

from lorasynth.adapter import Adapter, Factor, Factors, map_factors, unstack
from lorasynth.adapter.addition import add
from lorasynth.base import BaseModel, Memory, SamplingConfig, StackedAdapters, Texts
from lorasynth.core.errors import BaseModelError, ConfigError, LayoutError
from lorasynth.core.randomness import torch_stream
from tiny_pipelines import KINDS, build

PROMPTS = ["a portrait of sks, smiling", "sad", "", "blue hoodie"]
SEEDS = [3, 1, 4, 1]
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
QUICK = SamplingConfig(steps=2, guidance=2.0)
#: Levels of 255 by which two ways to the same image may differ: both round once.
ROUNDING = 1


@dataclass(frozen=True)
class Kind:
    """A kind's folder, and the model in it; precise, so that only rounding is left."""

    name: str
    folder: Path
    base: BaseModel


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kind:
    folder = tmp_path_factory.mktemp(request.param) / "tiny"
    build(request.param).save_pretrained(folder)
    return Kind(request.param, folder, BaseModel.load(folder, dtype=torch.float64))


@pytest.fixture
def base(kind: Kind) -> BaseModel:
    return kind.base


def random_adapters(base: BaseModel, n: int, size: float = 0.3) -> Factors:
    stream = torch_stream(0, "adapters", n)

    def draw(*shape: int) -> Tensor:
        return size * torch.randn(shape, generator=stream, dtype=torch.float64)

    return {
        name: Factor(draw(n, 2, module.in_features), draw(n, module.out_features, 2))
        for name, module in base.target_linears(TARGETS).items()
    }


def row(adapters: Factors, i: int) -> Factors:
    return {name: Factor(f.A[i : i + 1], f.B[i : i + 1]) for name, f in adapters.items()}


def distance(first: Tensor, second: Tensor) -> int:
    return int((first.int() - second.int()).abs().max())


def noised(base: BaseModel, count: int) -> tuple[Tensor, Tensor, Tensor, Texts]:
    """Noisy latents, their target, times and prompts, for a training step."""
    stream = torch_stream(0, "x")
    shape = (2, count, *base.latent_shape)
    clean, noise = torch.randn(shape, generator=stream, dtype=torch.float64).to(base.dtype)
    times = base.draw_times((count,), stream)
    noisy, target = base.add_noise(clean, noise, times)
    return noisy, target, times, base.encode_prompts(PROMPTS[:count])


# Encoding


def test_the_kind_is_told_by_the_folder(kind: Kind) -> None:
    assert kind.base.pipeline_class.__name__ == kind.name
    assert kind.base.image_size == 16
    assert kind.base.latent_shape == (4, 8, 8)
    networks = (kind.base.denoiser, kind.base.vae, *kind.base.text_encoders.values())
    assert not any(p.requires_grad for network in networks for p in network.parameters())
    assert kind.base.dtype == torch.float64


def test_prompts_do_not_depend_on_their_batch(base: BaseModel) -> None:
    together = base.encode_prompts(PROMPTS)
    assert len(together) == len(PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        for name, part in base.encode_prompts([prompt]).parts.items():
            torch.testing.assert_close(part, together.parts[name][i : i + 1])
    assert all(not part[0].allclose(part[1]) for part in together.parts.values())


def test_texts_are_chosen_joined_and_replaced_row_by_row(base: BaseModel) -> None:
    texts, empty = base.encode_prompts(PROMPTS), base.empty_prompts(1)
    again = Texts.cat([texts[:1], texts[torch.tensor([1, 2, 3])]])
    dropped = torch.tensor([False, True, False, True])
    for name, part in texts.parts.items():
        assert again.parts[name].equal(part)
        replaced = texts.replaced(dropped, empty).parts[name]
        assert replaced[~dropped].equal(part[~dropped])
        assert replaced[dropped].equal(empty.parts[name].expand_as(part)[dropped])


# Training


def test_times_are_drawn_from_the_stream_alone(base: BaseModel) -> None:
    times = base.draw_times((500,), torch_stream(2))
    assert base.draw_times((500,), torch_stream(2)).equal(times)
    assert times.min() >= 0
    assert times.unique().numel() > 100
    assert times.max() < 1000
    assert 400 < times.double().mean() < 700


def test_stacked_adapters_denoise_as_each_does_alone(base: BaseModel) -> None:
    adapters = random_adapters(base, 2)
    noisy, _, times, texts = noised(base, 4)
    with torch.no_grad():
        bare = base.denoise(noisy, times, texts)
        with base.attached(adapters):
            together = base.denoise(noisy, times, texts)
        for i in range(2):
            mine = slice(2 * i, 2 * i + 2)
            with base.attached(row(adapters, i)):
                alone = base.denoise(noisy[mine], times[mine], texts[mine])
            torch.testing.assert_close(together[mine], alone, rtol=1e-5, atol=1e-5)
    assert (together - bare).norm() > 0.05 * bare.norm()


def gradients(base: BaseModel, memory: Memory) -> list[Tensor]:
    adapters = random_adapters(base, 2)
    leaves = [part.requires_grad_() for factor in adapters.values() for part in factor]
    noisy, target, times, texts = noised(base, 4)
    memory.apply(base.denoiser, base.name)
    with StackedAdapters(base.denoiser, adapters):
        (base.denoise(noisy, times, texts) - target).square().sum().backward()
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


@pytest.fixture
def fresh(kind: Kind) -> BaseModel:
    """A model of its own, whose options may be changed."""
    return BaseModel.load(kind.folder, dtype=torch.float64)


def test_gradient_checkpointing_changes_no_gradient_and_keeps_less(
    base: BaseModel, fresh: BaseModel
) -> None:
    def kept(model: BaseModel, memory: Memory) -> tuple[int, list[Tensor]]:
        seen = 0

        def count(part: Tensor) -> Tensor:
            nonlocal seen
            seen += part.numel()
            return part

        with torch.autograd.graph.saved_tensors_hooks(count, lambda part: part):
            found = gradients(model, memory)
        return seen, found

    whole, expected = kept(base, Memory())
    less, found = kept(fresh, Memory(gradient_checkpointing=True))
    assert less < whole
    for gradient, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("how", ["int8", "nf4"])
def test_gradients_pass_through_quantised_layers(kind: Kind, how: Any) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    whole = BaseModel.load(kind.folder)
    packed = BaseModel.load(kind.folder, memory=Memory(quantize=how))
    assert packed.fingerprint == whole.fingerprint
    before = gradients(whole, Memory())
    found = gradients(packed, Memory())
    layers = 0
    for name, layer in packed.denoiser.named_modules():
        if isinstance(layer, bnb.nn.Linear8bitLt):
            unpacked = layer.state.CB.float() * layer.state.SCB[:, None] / 127
        elif isinstance(layer, bnb.nn.Linear4bit):
            unpacked = bnb.functional.dequantize_4bit(layer.weight, layer.weight.quant_state)
        else:
            continue
        layers += 1
        whole.denoiser.get_submodule(name).weight.data.copy_(unpacked)
    assert layers > 5
    for gradient, wanted, usual in zip(found, gradients(whole, Memory()), before, strict=True):
        # int8 rounds what enters a layer, too
        error = (gradient - wanted).norm() / wanted.norm()
        assert error < (0.05 if how == "int8" else 1e-3)
        assert not torch.equal(gradient, usual)


def test_quantised_without_the_library(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(BaseModelError, match=r"--quantize nf4 needs bitsandbytes.*\[quantize\]"):
        BaseModel.load(kind.folder, memory=Memory(quantize="nf4"))


def test_offloaded_networks_come_one_by_one_and_change_nothing(kind: Kind) -> None:
    whole = BaseModel.load(kind.folder)
    base = BaseModel.load(kind.folder, memory=Memory(offload=True))
    assert base.device == whole.device
    images = torch.full((1, 16, 16, 3), 90, dtype=torch.uint8)
    assert base.encode_images(images).equal(whole.encode_images(images))
    assert base._there is base.vae
    base.encode_prompts(["sad"])
    assert base._there in base.text_encoders.values()
    adapters = random_adapters(base, 1)
    drawn = [one.sample(["sad"], [0], adapters, SamplingConfig(steps=2)) for one in (base, whole)]
    assert drawn[0].equal(drawn[1])
    expected = gradients(whole, Memory())
    for gradient, wanted in zip(gradients(base, Memory()), expected, strict=True):
        assert gradient.equal(wanted)
    assert base._there is base.denoiser


def test_another_scheduler_makes_the_images_that_diffusers_makes(kind: Kind) -> None:
    base = BaseModel.load(kind.folder)
    if kind.name == "FluxPipeline":
        with pytest.raises(ConfigError, match=r"one of .*FlowMatch.*but is 'DDIMScheduler'"):
            base.use_scheduler("DDIMScheduler")
        return
    for name in ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler"):
        base.use_scheduler(name)
        ours = base.sample(["sad"], [0], None, SamplingConfig(steps=3, guidance=2.0))
        pipe = base.pipeline
        pipe.scheduler = type(base.scheduler).from_config(base.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        noise = base.noise([0])
        options = {"num_inference_steps": 3, "guidance_scale": 2.0}
        size = {"height": base.image_size, "width": base.image_size}
        [made] = pipe("sad", latents=noise, output_type="np", **options, **size).images
        theirs = torch.from_numpy((made * 255).round().astype("uint8"))
        assert (ours[0].int() - theirs.int()).abs().max() <= 2, name


def test_attention_in_slices_changes_nothing(kind: Kind, base: BaseModel, fresh: BaseModel) -> None:
    slicing = Memory(attention_slicing=True)
    if kind.name == "FluxPipeline":
        with pytest.raises(BaseModelError, match="leave it out"):
            BaseModel.load(kind.folder, memory=slicing)
        return
    expected = gradients(base, Memory())
    for gradient, wanted in zip(gradients(fresh, slicing), expected, strict=True):
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(kind: Kind, base: BaseModel, dtype: torch.dtype) -> None:
    low = BaseModel.load(kind.folder, dtype=dtype)
    assert low.dtype == dtype
    assert low.fingerprint == base.fingerprint
    images = torch.full((1, 16, 16, 3), 90, dtype=torch.uint8)
    assert low.encode_images(images).dtype == dtype
    assert all(part.dtype == dtype for part in low.encode_prompts(["sad"]).parts.values())
    noisy, _, times, texts = noised(base, 2)
    adapters = random_adapters(base, 2)
    with torch.no_grad():
        with base.attached(adapters):
            exact = base.denoise(noisy, times, texts)
        with low.attached(adapters):
            cast = texts.map(lambda part: part.to(dtype))
            rough = low.denoise(noisy.to(dtype), times, cast)
    assert rough.dtype == dtype
    assert (rough.double() - exact).norm() < 0.1 * exact.norm()
    assert low.sample(["sad"], [0], config=QUICK).shape == (1, 16, 16, 3)


# Sampling


def test_a_image_depends_on_its_prompt_and_seed_and_not_on_its_batch(base: BaseModel) -> None:
    together = base.sample(PROMPTS, SEEDS, config=QUICK)
    assert together.dtype == torch.uint8
    for i, prompt in enumerate(PROMPTS):
        alone = base.sample([prompt], SEEDS[i : i + 1], config=QUICK)
        assert distance(alone, together[i : i + 1]) <= ROUNDING
    small = SamplingConfig(steps=2, guidance=2.0, batch=3)
    assert distance(base.sample(PROMPTS, SEEDS, config=small), together) <= ROUNDING
    other = base.sample([PROMPTS[0]] * 2, [3, 4], config=QUICK)
    assert distance(other[0], other[1]) > 10 * ROUNDING
    assert distance(together[1], together[3]) > ROUNDING  # of one seed


@pytest.fixture
def diffusers_pipeline(kind: Kind) -> Iterator[Any]:
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    pipe = kind.base.pipeline_class.from_pretrained(kind.folder, dtype=torch.float64)
    pipe.set_progress_bar_config(disable=True)
    if isinstance(pipe.scheduler, DDIMScheduler):
        pipe.scheduler = DDIMScheduler.from_config(kind.base.scheduler.config)
    yield pipe
    pipe.unload_lora_weights()


def made_by(pipe: Any, base: BaseModel) -> Tensor:
    """What diffusers makes of the first two prompts and seeds."""
    options: dict[str, Any] = {"guidance_scale": QUICK.guidance, "num_inference_steps": QUICK.steps}
    latents = base.noise(SEEDS[:2])
    if isinstance(pipe, FluxPipeline):
        latents = base._packed(latents)
        options["max_sequence_length"] = pipe.tokenizer_2.model_max_length
    images = pipe(PROMPTS[:2], height=16, width=16, latents=latents, **options).images
    return torch.from_numpy(np.stack(images))


@pytest.mark.parametrize("name", ["diffusers", "kohya"])
def test_a_file_of_an_adapter_makes_the_same_images_in_diffusers(
    kind: Kind, diffusers_pipeline: Any, tmp_path: Path, name: str
) -> None:
    if (kind.name, name) == ("FluxPipeline", "kohya"):
        pytest.skip("diffusers reads kohya's FLUX files at the full width only")
    base, pipe = kind.base, diffusers_pipeline
    adapters = random_adapters(base, 1)
    bare = base.sample(PROMPTS[:2], SEEDS[:2], config=QUICK)
    ours = base.sample(PROMPTS[:2], SEEDS[:2], adapters, QUICK)
    assert distance(made_by(pipe, base), bare) <= ROUNDING
    assert distance(bare, ours) > 5 * ROUNDING
    pipe.load_lora_weights(Adapter(unstack(adapters)[0]).save(tmp_path / "me.safetensors", name))
    assert distance(made_by(pipe, base), ours) <= ROUNDING


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # peft's word for two files
def test_set_adapters_stacks_files_as_their_sum_here(
    base: BaseModel, diffusers_pipeline: Any, tmp_path: Path
) -> None:
    weights = {"me": 1.0, "style": 0.6}
    adapters = dict(zip(weights, map(Adapter, unstack(random_adapters(base, 2))), strict=True))
    for name, adapter in adapters.items():
        file = adapter.save(tmp_path / f"{name}.safetensors", format="diffusers")
        diffusers_pipeline.load_lora_weights(file, adapter_name=name)
    scaled = [adapter.scaled(weights[name]).factors for name, adapter in adapters.items()]
    both = map_factors(lambda part: part[None], add(scaled))
    ours = base.sample(PROMPTS[:2], SEEDS[:2], both, QUICK)
    diffusers_pipeline.set_adapters(list(weights), list(weights.values()))
    assert distance(made_by(diffusers_pipeline, base), ours) <= ROUNDING
    diffusers_pipeline.set_adapters(["me"])
    assert distance(made_by(diffusers_pipeline, base), ours) > 5 * ROUNDING


def test_adapters_of_text_encoders_change_the_prompts(base: BaseModel) -> None:
    bare = base.encode_prompts(PROMPTS[:2]).parts
    for part, encoder in base.text_encoders.items():
        linears = {n: m for n, m in encoder.named_modules() if isinstance(m, torch.nn.Linear)}
        name, layer = next(iter(linears.items()))
        factor = Factor(torch.randn(2, 1, layer.in_features), torch.ones(2, layer.out_features, 1))
        with base.attached({f"{part}.{name}": factor}):
            changed = base.encode_prompts(PROMPTS[:2]).parts
        assert any(not changed[key].allclose(text) for key, text in bare.items())
    with (
        pytest.raises(LayoutError, match="this one changes text_encoder_3"),
        base.attached({"text_encoder_3.x": factor}),
    ):
        pass


# Sizes and folders


def test_images_may_have_another_size(kind: Kind) -> None:
    base = BaseModel.load(kind.folder, image_size=8)
    assert base.latent_shape == (4, 4, 4)
    assert base.sample(["sad"], [0], config=QUICK).shape == (1, 8, 8, 3)
    with pytest.raises(BaseModelError, match="15 x 15 are asked for"):
        BaseModel.load(kind.folder, image_size=15)


def test_a_hub_id_is_read_from_the_cache(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, repository = 40 * "a", tmp_path / "models--someone--tiny"
    shutil.copytree(kind.folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = BaseModel.load("hub:someone/tiny")
    assert found.fingerprint == kind.base.fingerprint
    with pytest.raises(BaseModelError, match=r"model_index\.json, but hub:someone/none cannot"):
        BaseModel.load("hub:someone/none")


PARTS = {
    "StableDiffusionPipeline": ["unet", "vae", "text_encoder", "tokenizer", "scheduler"],
    "StableDiffusionXLPipeline": ["unet", "text_encoder_2", "tokenizer_2", "tokenizer"],
    "FluxPipeline": ["transformer", "vae", "text_encoder_2", "tokenizer_2", "scheduler"],
}


def test_a_missing_part_is_told_in_one_line(kind: Kind, tmp_path: Path) -> None:
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    for part in [*PARTS[kind.name], "model_index.json"]:
        folder = tmp_path / f"no {part}"
        shutil.copytree(kind.folder, folder)
        shutil.move(folder / part, tmp_path / f"moved {part}")
        with pytest.raises(BaseModelError, match=f"no {part}") as caught:
            BaseModel.load(folder)
        assert "\n" not in str(caught.value)


def test_a_part_that_the_index_leaves_out_is_told_in_one_line(kind: Kind, tmp_path: Path) -> None:
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    folder = tmp_path / "base"
    shutil.copytree(kind.folder, folder)
    index = folder / "model_index.json"
    stated = json.loads(index.read_text())
    encoder = list(kind.base.text_parts.values())[-1]
    index.write_text(json.dumps(stated | {encoder: [None, None]}))
    with pytest.raises(BaseModelError, match=encoder) as caught:
        BaseModel.load(folder)
    assert "\n" not in str(caught.value)
    index.write_text(json.dumps(stated | {"_class_name": "NoPipeline"}))
    with pytest.raises(
        BaseModelError, match=r"FluxPipeline, .*but .* is a NoPipeline: .*add a row"
    ):
        BaseModel.load(folder)
