"""Every family, carried by diffusers' own call: a row of `tiny_families.BUILDERS` each.

The truth is a direct call of the denoiser, written here as diffusers' training scripts have it,
and the images that the pipeline itself makes.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from lorasynth.adapter import Adapter, Factor, Factors, map_factors, unstack
from lorasynth.base import (
    BASE_MODELS,
    BaseModel,
    Memory,
    SamplingConfig,
    StackedAdapters,
    Texts,
)
from lorasynth.base.families import family_of
from lorasynth.base.model import parts_of
from lorasynth.core.errors import BaseModelError, ConfigError, LayoutError
from lorasynth.core.randomness import torch_stream
from tiny_families import BUILDERS, build, flow, wan
from tiny_pipelines import KINDS

from .test_contract import distance, row

PROMPTS = ["a portrait of sks", "sad, red", "blue hoodie smiling person", "a"]
SEEDS = [3, 1, 4, 1]
#: Of a smallest image, and of one that is no square; Lumina's and Sana's units are fixed.
SIDE = dict.fromkeys(BUILDERS, 16) | {"Lumina2Pipeline": 32, "SanaPipeline": 32}

FOLDERS: dict[str, Path] = {}


@pytest.fixture(scope="module", params=BUILDERS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = tmp_path_factory.mktemp(request.param) / "tiny"
    build(request.param).save_pretrained(folder)
    FOLDERS[request.param] = folder
    return BaseModel.load(folder, image_size=SIDE[request.param])


def kind(base: BaseModel) -> str:
    return base.pipeline_class.__name__


def noised(base: BaseModel, count: int) -> tuple[Tensor, Tensor, Tensor, Texts]:
    """Noisy latents of images that are no squares, their target, times and prompts."""
    stream = torch_stream(0, "x")
    channels, rows, columns = base.shape_of(base.image_size, 2 * base.image_size)
    clean, noise = torch.randn((2, count, channels, rows, columns), generator=stream)
    times = base.draw_times((count,), stream)
    assert times.unique().numel() == count
    noisy, target = base.add_noise(clean, noise, times)
    return noisy, target, times, base.encode_prompts(PROMPTS[:count])


def adapters_of(base: BaseModel, n: int) -> Factors:
    stream = torch_stream(0, "adapters", n)

    def draw(*shape: int) -> Tensor:
        return 0.5 * torch.randn(shape, generator=stream)

    return {
        name: Factor(draw(n, 2, layer.in_features), draw(n, layer.out_features, 2))
        for name, layer in base.target_linears(base.default_targets).items()
    }


def test_every_row_is_run_here_and_names_pipelines_of_diffusers() -> None:
    assert set(BASE_MODELS.names()) == set(BUILDERS)
    seen: set[str] = set()
    for family in map(BASE_MODELS.get, BASE_MODELS.names()):
        assert family.prompt.format(family.trigger).count(family.trigger) == 1
        for name in (family.pipeline, *family.also):
            assert name not in seen
            seen.add(name)
            assert family_of(name) is family
        own = parts_of(getattr(diffusers, family.pipeline))
        for name in set(family.also) - {"Lumina2Text2ImgPipeline"}:  # of older versions
            other = parts_of(getattr(diffusers, name))
            assert other[1].items() >= own[1].items(), name


# The truth: the denoiser called directly, in the scheduler's convention (noise minus clean)


def packed(x: Tensor) -> Tensor:
    b, c, i, j = x.shape
    cells = x.reshape(b, c, i // 2, 2, j // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(b, i * j // 4, 4 * c)


def unpacked(x: Tensor, like: Tensor) -> Tensor:
    b, c, i, j = like.shape
    cells = x.reshape(b, i // 2, j // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(b, c, i, j)


def places(rows: int, columns: int) -> Tensor:
    grid = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(grid[0]), *grid], dim=-1).flatten(0, 1).float()


def of_flux2(net: Any, x: Tensor, t: Tensor, parts: Any) -> Tensor:
    b, _, i, j = x.shape
    tokens = parts["prompt_embeds"].shape[1]
    text_ids = torch.cat([torch.zeros(tokens, 3), torch.arange(tokens)[:, None]], dim=1)
    image_ids = torch.cat([places(i, j), torch.zeros(i * j, 1)], dim=1)
    said = net(
        hidden_states=x.flatten(2).mT,
        timestep=t / 1000,
        guidance=torch.ones(b) if net.config.guidance_embeds else None,
        encoder_hidden_states=parts["prompt_embeds"],
        txt_ids=text_ids.expand(b, -1, -1),
        img_ids=image_ids.expand(b, -1, -1),
    ).sample
    return said.mT.reshape(x.shape)


def of_flux(net: Any, x: Tensor, t: Tensor, parts: Any) -> Tensor:
    given = {"guidance": torch.ones(len(x)), "pooled_projections": parts["pooled_prompt_embeds"]}
    return _of_flux(net, x, t, parts, **given)


def of_chroma(net: Any, x: Tensor, t: Tensor, parts: Any) -> Tensor:
    image = torch.ones(len(x), x.shape[2] * x.shape[3] // 4)
    mask = torch.cat([parts["prompt_attention_mask"], image], dim=1)
    return _of_flux(net, x, t, parts, attention_mask=mask)


def _of_flux(net: Any, x: Tensor, t: Tensor, parts: Any, **given: Any) -> Tensor:
    said = net(
        hidden_states=packed(x),
        timestep=t / 1000,
        encoder_hidden_states=parts["prompt_embeds"],
        txt_ids=torch.zeros(parts["prompt_embeds"].shape[1], 3),
        img_ids=places(x.shape[2] // 2, x.shape[3] // 2),
        **given,
    ).sample
    return unpacked(said, x)


def of_z_image(net: Any, x: Tensor, t: Tensor, parts: Any) -> Tensor:
    lengths = parts["prompt_embeds_mask"].sum(1)
    texts = [row[:n] for row, n in zip(parts["prompt_embeds"], lengths, strict=True)]
    said = net(list(x.unsqueeze(2)), (1000 - t) / 1000, texts).sample
    return -torch.stack(said).squeeze(2)


def of_qwen(net: Any, x: Tensor, t: Tensor, parts: Any) -> Tensor:
    longest = int(parts["prompt_embeds_mask"].sum(1).max())
    said = net(
        hidden_states=packed(x),
        timestep=t / 1000,
        encoder_hidden_states=parts["prompt_embeds"][:, :longest],
        encoder_hidden_states_mask=parts["prompt_embeds_mask"][:, :longest],
        img_shapes=[[(1, x.shape[2] // 2, x.shape[3] // 2)]] * len(x),
    ).sample
    return unpacked(said, x)


def of_sdxl(net: Any, x: Tensor, t: Tensor, parts: Any) -> Tensor:
    height, width = (2 * side for side in x.shape[2:])
    sizes = torch.tensor([height, width, 0, 0, height, width]).float().expand(len(x), -1)
    added = {"text_embeds": parts["pooled_prompt_embeds"], "time_ids": sizes}
    said: Tensor = net(x, t, parts["prompt_embeds"], added_cond_kwargs=added).sample
    return said


def of_pixart(net: Any, x: Tensor, t: Tensor, parts: Any) -> Tensor:
    height, width = (2 * side for side in x.shape[2:])
    added = {"resolution": torch.tensor([[height, width]]).float().expand(len(x), 2)}
    added["aspect_ratio"] = torch.tensor([[height / width]]).expand(len(x), 1)
    unsaid = {"resolution": None, "aspect_ratio": None}
    said = net(
        x,
        parts["prompt_embeds"],
        t,
        added if net.config.use_additional_conditions else unsaid,
        encoder_attention_mask=parts["prompt_attention_mask"],
    ).sample
    return said.chunk(2, dim=1)[0]


DIRECT: dict[str, Callable[[Any, Tensor, Tensor, Any], Tensor]] = {
    "StableDiffusionPipeline": lambda net, x, t, p: net(x, t, p["prompt_embeds"]).sample,
    "StableDiffusionXLPipeline": of_sdxl,
    "StableDiffusion3Pipeline": lambda net, x, t, p: (
        net(x, p["prompt_embeds"], p["pooled_prompt_embeds"], t).sample
    ),
    "FluxPipeline": of_flux,
    "Flux2Pipeline": of_flux2,
    "Flux2KleinPipeline": of_flux2,
    "ChromaPipeline": of_chroma,
    "ZImagePipeline": of_z_image,
    "QwenImagePipeline": of_qwen,
    "Lumina2Pipeline": lambda net, x, t, p: (
        -net(x, 1 - t / 1000, p["prompt_embeds"], p["prompt_attention_mask"]).sample
    ),
    "PixArtAlphaPipeline": of_pixart,
    "PixArtSigmaPipeline": of_pixart,
    "SanaPipeline": lambda net, x, t, p: (
        net(x, p["prompt_embeds"], t, encoder_attention_mask=p["prompt_attention_mask"]).sample
    ),
    "WanPipeline": lambda net, x, t, p: net(x[:, :, None], t, p["prompt_embeds"]).sample[:, :, 0],
    "AuraFlowPipeline": lambda net, x, t, p: net(x, p["prompt_embeds"], t / 1000).sample,
    "HiDreamImagePipeline": lambda net, x, t, p: (
        -net(
            x,
            t,
            p["prompt_embeds_t5"],
            p["prompt_embeds_llama3"].transpose(0, 1),
            p["pooled_prompt_embeds"],
        ).sample
    ),
}


def test_predictions_are_the_denoisers_own_for_a_time_of_each_sample(base: BaseModel) -> None:
    noisy, target, times, texts = noised(base, 4)
    direct = DIRECT[kind(base)]
    with torch.no_grad():
        said = base.denoise(noisy, times, texts)
        # To the bit, but where the call has one time for all and each is multiplied in.
        exact = base.row.each_time
        options = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(
            said, direct(base.denoiser, noisy, times, texts.parts), **options
        )
        for i in range(2):
            alone = base.denoise(noisy[i : i + 1], times[i : i + 1], texts[i : i + 1])
            torch.testing.assert_close(said[i : i + 1], alone, rtol=1e-4, atol=1e-4)
        other = base.denoise(noisy, times.flip(0), texts)
    assert said.shape == target.shape == noisy.shape
    assert (other - said).norm() > 1e-3 * said.norm()
    assert said.norm() > 0


def test_targets_are_noise_minus_clean_or_the_schedulers_own(base: BaseModel) -> None:
    stream = torch_stream(1)
    clean, noise = torch.randn((2, 2, *base.latent_shape), generator=stream)
    latents = None
    for time in base.schedule(5):
        noisy, target = base.add_noise(clean, noise, time.expand(2))
        latents = noisy if latents is None else latents
        if kind(base) in KINDS:  # whose solvers have no memory
            torch.testing.assert_close(latents, noisy, atol=1e-3, rtol=0)
        latents = base.step(target, time, latents)
    torch.testing.assert_close(latents, clean, atol=0.05, rtol=0)


def test_gradients_reach_stacked_adapters_each_its_own(base: BaseModel) -> None:
    adapters = adapters_of(base, 2)
    leaves = [part.requires_grad_() for factor in adapters.values() for part in factor]
    noisy, target, times, texts = noised(base, 4)
    with StackedAdapters(base.denoiser, adapters):
        errors = (base.denoise(noisy, times, texts) - target).square().flatten(1).sum(1)
        errors[:2].sum().backward()
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad[0].any()
        assert not leaf.grad[1].any()
    kept = [leaf.grad for leaf in leaves]
    slope = sum(
        float((g * leaf.detach()).sum())
        for g, leaf in zip(kept, leaves, strict=True)
        if g is not None
    )
    first = {name: Factor(*(part.detach()[:1] for part in f)) for name, f in adapters.items()}
    with torch.no_grad():
        ends = []
        for size in (0.999, 1.001):
            moved = map_factors(lambda part, size=size: size * part, first)
            with StackedAdapters(base.denoiser, moved):
                errors = (base.denoise(noisy[:2], times[:2], texts[:2]) - target[:2]).square()
            ends.append(float(errors.double().sum()))
    assert (ends[1] - ends[0]) / 0.002 == pytest.approx(slope, rel=0.02)
    Memory(gradient_checkpointing=True).apply(base.denoiser, base.name)
    with StackedAdapters(base.denoiser, adapters):
        errors = (base.denoise(noisy, times, texts) - target).square().flatten(1).sum(1)
        found = torch.autograd.grad(errors[:2].sum(), leaves)
    base.denoiser.disable_gradient_checkpointing()
    for gradient, expected in zip(found, kept, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


# Images


GUIDANCE = 2.5
#: Pipelines that run the negative prompt before the prompt, or apart, so that products round
#: otherwise than in our batch.
APART = {
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "ChromaPipeline",
    "QwenImagePipeline",
    "Lumina2Pipeline",
    "WanPipeline",
    "HiDreamImagePipeline",
}


def own_images(base: BaseModel, count: int, negative: str, **options: Any) -> Any:
    """What the pipeline itself makes, from our noise, by its own or DDIM's steps."""
    pipe, side = base.pipeline, base.image_size
    # The pipeline's parts, so its own scheduler, too, but DDIM where we always take it.
    pipe.scheduler = type(base.scheduler).from_config(base.scheduler.config)
    if base.row.sized:
        pipe.default_sample_size = base._caller.default_sample_size
    shape = base.shape_of(side, 2 * side)
    given = {name: value for name, value in base.row.call.items() if "scale" not in name}
    given |= {"latents": base._packed(base.noise(SEEDS[:count], shape)), **options}
    given["true_cfg_scale" if kind(base) == "QwenImagePipeline" else "guidance_scale"] = GUIDANCE
    if kind(base) not in ("FluxPipeline", "Flux2Pipeline", "Flux2KleinPipeline"):
        given["negative_prompt"] = [negative] * count if negative else None
        if kind(base) in (
            "PixArtAlphaPipeline",
            "PixArtSigmaPipeline",
            "SanaPipeline",
            "QwenImagePipeline",
        ):
            given["negative_prompt"] = [negative] * count
    if "max_sequence_length" in base._encoding:
        given["max_sequence_length"] = base._encoding["max_sequence_length"]
    given |= {"height": side, "width": 2 * side, "num_inference_steps": 2}
    return pipe(prompt=PROMPTS[:count], **given)[0]


@pytest.mark.parametrize("negative", ["", "sad"])
def test_images_are_the_pipelines_own(base: BaseModel, negative: str) -> None:
    config = SamplingConfig(
        steps=2,
        guidance=GUIDANCE,
        height=base.image_size,
        width=2 * base.image_size,
        negative_prompt=negative,
    )
    if negative and kind(base) in ("FluxPipeline", "Flux2Pipeline"):
        with pytest.raises(ConfigError, match="takes no negative prompt"):
            base.sample(PROMPTS[:2], SEEDS[:2], config=config)
        return
    if negative and kind(base) == "Flux2KleinPipeline":
        return  # diffusers' call takes none
    shape = base.shape_of(base.image_size, 2 * base.image_size)
    ours = base._sample_batch(PROMPTS[:2], SEEDS[:2], 1, config, shape)
    images = own_images(base, 2, negative, output_type="np")
    theirs = np.asarray(images)[:, 0] if kind(base) == "WanPipeline" else np.asarray(images)
    pixels = torch.from_numpy((theirs * 255).round().astype(np.uint8))
    assert distance(base.sample(PROMPTS[:2], SEEDS[:2], config=config), pixels) <= 1
    if kind(base) == "Flux2KleinPipeline":
        return  # it unpacks and rescales them, too
    latents = own_images(base, 2, negative, output_type="latent")
    expected = base._unpacked(latents, ours)  # type: ignore[attr-defined]
    if kind(base) in APART:
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    else:
        assert ours.equal(expected)


def test_stacked_adapters_sample_as_each_does_alone(base: BaseModel) -> None:
    adapters, config = adapters_of(base, 2), SamplingConfig(steps=2, guidance=2.0)
    together = base.sample(PROMPTS, SEEDS, adapters, config)
    assert distance(together, base.sample(PROMPTS, SEEDS, None, config)) > 1
    for i in range(2):
        mine = slice(2 * i, 2 * i + 2)
        alone = base.sample(PROMPTS[mine], SEEDS[mine], row(adapters, i), config)
        assert distance(together[mine], alone) <= 1


def test_adapters_may_act_on_the_prompts_side_of_guidance_alone(base: BaseModel) -> None:
    if base.row.guidance == "told":
        return
    adapters, noisy, _, times, texts = adapters_of(base, 2), *noised(base, 4)
    config = SamplingConfig(guidance=GUIDANCE, guidance_side="prompt")
    time = times[0]
    with torch.no_grad():
        unsaid = base._said(noisy, time, base.empty_prompts(4))
        with base.attached(adapters):
            found = base.guided(texts, 2, config)(noisy, time)
            usual = base.guided(texts, 2, SamplingConfig(guidance=GUIDANCE))(noisy, time)
            said = base._said(noisy, time, texts)
    expected = base._unpacked(base._guided(said, unsaid, GUIDANCE), noisy)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, usual, rtol=1e-3, atol=1e-3)


def test_adapters_may_each_have_a_region_of_one_image(base: BaseModel) -> None:
    adapters, config = adapters_of(base, 2), SamplingConfig(steps=2, guidance=GUIDANCE)
    prompts, seeds = PROMPTS[:2], SEEDS[:2]
    everywhere, nowhere = (0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 1e-9, 1.0)
    alone = base.sample(prompts, seeds, row(adapters, 0), config)
    first = replace(config, regions=(everywhere, nowhere))
    assert distance(base.sample(prompts * 2, seeds * 2, adapters, first), alone) <= 1
    same = map_factors(lambda part: part[:1].expand(2, *part.shape[1:]), adapters)
    halves = replace(config, regions=((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)))
    assert distance(base.sample(prompts * 2, seeds * 2, same, halves), alone) <= 1
    both = base.sample(prompts * 2, seeds * 2, adapters, halves)
    assert both.shape == alone.shape
    with pytest.raises(LayoutError, match="each adapter needs a region"):
        base.sample(prompts, seeds, row(adapters, 0), halves)


def test_a_lora_file_makes_the_same_images_in_diffusers(base: BaseModel, tmp_path: Path) -> None:
    pipe = base.pipeline
    if not hasattr(pipe, "load_lora_weights"):
        pytest.skip("diffusers reads no LoRA files of this family")
    adapters = adapters_of(base, 1)
    config = SamplingConfig(steps=2, guidance=GUIDANCE, width=2 * base.image_size)
    ours = base.sample(PROMPTS[:2], SEEDS[:2], adapters, config)
    assert distance(ours, base.sample(PROMPTS[:2], SEEDS[:2], None, config)) > 1
    file = Adapter(unstack(adapters)[0]).save(tmp_path / "me.safetensors", "diffusers")
    pipe.load_lora_weights(file)
    try:
        images = own_images(base, 2, "", output_type="np")
    finally:
        pipe.unload_lora_weights()
    theirs = np.asarray(images)[:, 0] if kind(base) == "WanPipeline" else np.asarray(images)
    pixels = torch.from_numpy((theirs * 255).round().astype(np.uint8))
    assert distance(ours, pixels) <= 2


def _plain_z_image() -> Any:
    pipeline = build("ZImagePipeline")
    pipeline.scheduler = flow(6.0)
    return pipeline


def _schnell() -> Any:
    pipeline = build("FluxPipeline")
    network = pipeline.transformer
    pipeline.transformer = type(network).from_config(network.config, guidance_embeds=False)
    return pipeline


def _distilled(family: str, scheduler: Any = None, **stated: Any) -> Any:
    pipeline = build(family)
    if scheduler is not None:
        pipeline.register_modules(scheduler=scheduler)
    pipeline.register_to_config(**stated)
    return pipeline


_TRAILING = diffusers.EulerAncestralDiscreteScheduler(timestep_spacing="trailing")


@pytest.mark.parametrize(
    ("pipeline", "few", "weight"),
    [
        (_plain_z_image, None, 3.0),
        (lambda: build("ZImagePipeline"), 9, 0.0),
        (lambda: build("Flux2KleinPipeline"), None, 3.0),
        (lambda: _distilled("Flux2KleinPipeline", is_distilled=True), 4, 1.0),
        (_schnell, 4, 1.0),
        (lambda: build("StableDiffusionXLPipeline"), None, 3.0),
        (lambda: _distilled("StableDiffusionXLPipeline", scheduler=_TRAILING), 4, 1.0),
        (lambda: _distilled("PixArtAlphaPipeline", scheduler=diffusers.LCMScheduler()), 4, 1.0),
        (
            lambda: _distilled(
                "HiDreamImagePipeline", scheduler=diffusers.FlowMatchLCMScheduler(shift=6.0)
            ),
            28,
            1.0,
        ),
    ],
)
def test_a_distilled_model_says_so_itself(
    pipeline: Callable[[], Any], few: int | None, weight: float
) -> None:
    base = BaseModel(pipeline(), "tiny", 16)
    assert base.few_steps == few
    assert base.guidance(None) == weight
    assert base.guidance(2.0) == 2.0
    asked, unasked = SamplingConfig(steps=2, guidance=weight), SamplingConfig(steps=2)
    made = [base.sample(["sad"], [0], config=config) for config in (asked, unasked)]
    assert made[0].equal(made[1])


def test_images_come_back_from_their_latents(base: BaseModel) -> None:
    height, width = base.image_size, 2 * base.image_size
    images = torch.randint(0, 256, (3, height, width, 3), generator=torch_stream(0)).byte()
    latents = base.encode_images(images)
    assert latents.shape == (3, *base.shape_of(height, width))
    torch.testing.assert_close(base.encode_images(images, batch=1), latents, rtol=1e-4, atol=1e-4)
    unit = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    video = "z_dim" in base.vae.config
    with torch.no_grad():
        encoded = base.vae.encode(unit[:, :, None] if video else unit)
        latent = encoded.latent if "latent" in encoded else encoded.latent_dist.mode()
        back = base.vae.decode(latent).sample
    back = back[:, :, 0] if video else back
    expected = ((back.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    assert distance(base.decode_latents(latents), expected) <= 1
    assert latents.abs().max() > 0


def test_buckets_are_sides_that_the_model_can_make(base: BaseModel) -> None:
    own = base.image_size, base.frames
    base.image_size = 128  # tiny models have units smaller than what diffusers asks for
    base.use_buckets()
    frames = base.frames
    base.image_size, base.frames = own
    _, *square = base.shape_of(128, 128)
    assert (128, 128) in frames
    for height, width in frames:
        assert 0.7 * 128**2 <= height * width <= 128**2
        _, i, j = base.shape_of(height, width)
        assert i * j <= square[0] * square[1]
        assert (width, height) in frames


# Formats, sizes and the true configurations


def test_bfloat16(base: BaseModel) -> None:
    low = BaseModel.load(FOLDERS[kind(base)], dtype=torch.bfloat16, image_size=base.image_size)
    assert low.fingerprint == base.fingerprint
    sketch = BaseModel.load(FOLDERS[kind(base)], "meta", image_size=base.image_size)
    assert sketch.fingerprint == base.fingerprint
    assert sketch.latent_shape == base.latent_shape
    noisy, _, times, texts = noised(base, 2)
    with torch.no_grad():
        exact = base.denoise(noisy, times, texts)
        rough = low.denoise(noisy.bfloat16(), times, low.encode_prompts(PROMPTS[:2]))
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).norm() < 0.1 * exact.norm()
    made = low.sample(["sad"], [0], config=SamplingConfig(steps=2, guidance=2.0))
    assert made.shape == (1, base.image_size, base.image_size, 3)


def test_a_side_must_be_a_multiple_of_the_unit(base: BaseModel) -> None:
    with pytest.raises(BaseModelError, match=r"must have a multiple of \d+ pixels"):
        base.sample(["a"], [0], config=SamplingConfig(height=base.image_size, width=33))
    if kind(base) == "StableDiffusion3Pipeline":
        with pytest.raises(BaseModelError, match=r"128 x 16 pixels, but tiny cannot \("):
            base.sample(["a"], [0], config=SamplingConfig(height=128, width=16))


def test_wan_22_5b_takes_a_time_for_each_token() -> None:
    torch.manual_seed(0)
    base = BaseModel(wan(expanded=True), "wan", 16)
    noisy, _, times, texts = noised(base, 3)
    tokens = noisy.shape[2] * noisy.shape[3] // 4
    each = times[:, None].expand(-1, tokens)
    with torch.no_grad():
        said = base.denoise(noisy, times, texts)
        direct = base.denoiser(noisy[:, :, None], each, texts.parts["prompt_embeds"]).sample
    torch.testing.assert_close(said, direct[:, :, 0], rtol=1e-5, atol=1e-5)
    assert base.sample(["a"], [0], config=SamplingConfig(steps=1)).shape == (1, 16, 16, 3)


_SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_KL = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "sample_size": 1024,
}
_KL_4 = ("AutoencoderKL", {**_KL, "latent_channels": 4})
_KL_16 = ("AutoencoderKL", {**_KL, "latent_channels": 16})
_TWO = {"num_layers": 2}
_BOTH = {"num_layers": 2, "num_single_layers": 2}
_HIDREAM = {
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "caption_channels": [4096, 4096],
    "axes_dims_rope": (64, 32, 32),
    "llama_layers": [0, 1],
}
_DITS = {"num_mmdit_layers": 2, "num_single_dit_layers": 2}

#: Denoiser and autoencoder at their true widths, the side of its images, the shape of a latent, and
#: how many layers are adapted of two blocks of each kind.
TRUE: dict[str, tuple[dict[str, Any], tuple[str, dict[str, Any]], int, tuple[int, ...], int]] = {
    "StableDiffusionPipeline": (
        {"cross_attention_dim": 768, "sample_size": 64},
        _KL_4,
        512,
        (4, 64, 64),
        160,
    ),
    "StableDiffusionXLPipeline": (_SDXL, _KL_4, 1024, (4, 128, 128), 110),
    "StableDiffusion3Pipeline": (_TWO, _KL_16, 1024, (16, 128, 128), 12),
    "FluxPipeline": (_BOTH, _KL_16, 1024, (16, 128, 128), 18),
    "Flux2Pipeline": (_BOTH, ("AutoencoderKLFlux2", {}), 1024, (128, 64, 64), 12),
    "Flux2KleinPipeline": (
        {**_BOTH, "guidance_embeds": False},
        ("AutoencoderKLFlux2", {}),
        1024,
        (128, 64, 64),
        12,
    ),
    "ChromaPipeline": (_BOTH, _KL_16, 1024, (16, 128, 128), 18),
    "ZImagePipeline": ({"n_layers": 2}, _KL_16, 1024, (16, 128, 128), 42),
    "QwenImagePipeline": (_TWO, ("AutoencoderKLQwenImage", {}), 1024, (16, 128, 128), 12),
    "Lumina2Pipeline": (_TWO, _KL_16, 1024, (16, 128, 128), 42),
    **dict.fromkeys(
        ("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
        ({**_TWO, "caption_channels": 4096}, _KL_4, 1024, (4, 128, 128), 20),
    ),
    "SanaPipeline": (_TWO, ("AutoencoderDC", {}), 1024, (32, 32, 32), 16),
    "WanPipeline": (_TWO, ("AutoencoderKLWan", {}), 480, (16, 60, 60), 20),
    "AuraFlowPipeline": (_DITS, _KL_4, 1024, (4, 128, 128), 28),
    "HiDreamImagePipeline": (_HIDREAM, _KL_16, 1024, (16, 128, 128), 8),
}


@pytest.mark.parametrize("family", BUILDERS)
def test_the_true_configuration_has_these_latents_and_default_targets(
    family: str, tmp_path: Path
) -> None:
    options, (vae, sizes), side, shape, layers = TRUE[family]
    pipeline = build(family)
    part = parts_of(type(pipeline))[0]
    with torch.device("meta"):
        made = {part: type(getattr(pipeline, part))(**options)}
        made["vae"] = getattr(diffusers, vae)(**sizes)
    switches = {
        name: value
        for name, value in pipeline.config.items()
        if isinstance(value, bool) and name in inspect.signature(type(pipeline)).parameters
    }
    base = BaseModel(type(pipeline)(**{**pipeline.components, **switches, **made}), str(tmp_path))
    assert base.image_size == side
    assert base.latent_shape == shape
    assert len(base.target_linears(base.default_targets)) == layers
