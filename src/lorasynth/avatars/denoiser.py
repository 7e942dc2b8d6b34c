"""Training of the embedded base model's denoiser, with its text encoder."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from lorasynth.avatars import captions
from lorasynth.avatars.autoencoder import perceive, start_from
from lorasynth.avatars.config import (
    TRAINING,
    AvatarModelConfig,
    BaseTrainingConfig,
    DenoiserTraining,
)
from lorasynth.avatars.drawing import AvatarSubjects
from lorasynth.avatars.judge import AttributeJudge
from lorasynth.avatars.model import build_pipeline
from lorasynth.avatars.parts import Following, follow_captions
from lorasynth.avatars.pool import Drawn, load_images
from lorasynth.base import MEASURED, BaseModel
from lorasynth.core import config as configs
from lorasynth.core.atomic import atomic_directory, write_json
from lorasynth.core.cache import Cache
from lorasynth.core.progress import progress
from lorasynth.core.randomness import numpy_stream, stream_seed
from lorasynth.core.weights import fingerprint
from lorasynth.engine.trainer import Trainer
from lorasynth.images.files import to_unit_range
from lorasynth.images.png import contact_sheet, write_synthetic

#: Images on the sheet of samples.
_SHOWN = 32


def train_base(
    drawn: Drawn,
    config: BaseTrainingConfig,
    pipeline: StableDiffusionPipeline,
    device: torch.device,
    perception: AttributeJudge | None = None,
    watch: "Progress | None" = None,
) -> StableDiffusionPipeline:
    """Train denoiser and text encoder of the embedded base model; the whole pipeline.

    Args:
        drawn: images with their captions; latents and the checkpoint are kept beside them.
        config: what to train and how.
        pipeline: what `untrained` gives; its autoencoder stays as it is.
        device: where to train.
        perception: a network whose features of the images are learned too; not the judge.
        watch: what is measured on the way.
    """
    run, options = drawn.run, config.denoiser.optimisation
    start, chunks = fingerprint(pipeline.unet), drawn.chunks()
    latents = _latents(pipeline.vae, chunks, run, device)
    scale = 1 / float(latents.float().std())  # as Stable Diffusion's: latents of unit size
    pipeline.vae.register_to_config(scaling_factor=scale)
    latents = latents * scale
    parts = nn.ModuleDict({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder})
    features = None
    if perception is not None:
        features = _features(perception.to(device), config.model, chunks, run, device)
        parts["projection"] = _projection(config.model.unet_channels[-1], features.shape[1])
    parts.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    settings = {
        "model": configs.to_dict(config.model),
        **{
            n: value for n, value in configs.to_dict(config.denoiser).items() if n != "optimisation"
        },
        "encoder": encoder_fingerprint(pipeline.vae),
        "images": len(latents),
        "perception": None if perception is None else fingerprint(perception),
        "start": start,
    }
    # On 64 tokens plain products are faster than torch's fused attention on a CPU.
    pipeline.unet.set_attn_processor(AttnProcessor())
    trainer = Trainer(parts, options, run / "denoiser.safetensors", device, settings)
    loss = _Loss(pipeline, latents, features, _phrases(drawn.subjects), config.denoiser, device)
    if watch is not None:
        trainer.record(watch.every, lambda average, step: watch(pipeline, average, step))
    trainer.run("denoiser", loss)
    pipeline.unet, pipeline.text_encoder = parts["unet"], parts["text_encoder"]
    return pipeline


def untrained(
    config: BaseTrainingConfig, autoencoder: Path, start: Path | None = None
) -> StableDiffusionPipeline:
    """A pipeline to train: with an autoencoder from its folder, and all else new, or of `start`.

    Raises:
        BaseModelError: the pipeline to start from has layers of other shapes.
    """
    torch.manual_seed(stream_seed(config.denoiser.optimisation.seed, "base"))
    pipeline = build_pipeline(config.model)
    if start is not None:
        start_from(pipeline.unet, type(pipeline.unet), start / "unet")
        start_from(pipeline.text_encoder, type(pipeline.text_encoder), start / "text_encoder")
    pipeline.vae = AutoencoderKL.from_pretrained(autoencoder).float()
    pipeline.vae.register_to_config(_name_or_path="")  # a local path
    return pipeline


def save_pipeline(pipeline: StableDiffusionPipeline, out: Path, stated: dict[str, Any]) -> None:
    """Write a pipeline in fp16, with JSON values that say how it was trained."""
    names = ("unet", "vae", "text_encoder")
    halves = {name: deepcopy(getattr(pipeline, name)).to(torch.float16) for name in names}
    stored = type(pipeline)(**(pipeline.components | halves), requires_safety_checker=False)
    with atomic_directory(out) as temporary:
        stored.save_pretrained(temporary)
        write_json(temporary / TRAINING, stated)


class _Loss:
    """The denoising loss of a step, all of whose random numbers follow from its number."""

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        latents: Float[Tensor, "n c h w"],
        features: Float[Tensor, "n f i j"] | None,
        phrases: Sequence[tuple[list[str], list[str]]],
        training: DenoiserTraining,
        device: torch.device,
    ) -> None:
        self.base = BaseModel(pipeline.to(device), "avatars")
        for part in (pipeline.unet, pipeline.text_encoder):
            part.requires_grad_(True)
        self.latents, self.features, self.phrases = latents.to(device), features, phrases
        self.training, self.device = training, device
        alphas = pipeline.scheduler.alphas_cumprod.to(device)
        # In units of the prediction of velocity, whose own weight is the ratio + 1.
        self.weights = ((training.gamma + 1) * (1 - alphas)).clamp(max=1)

    def __call__(self, model: Any, step: int) -> tuple[Tensor, str]:
        options = self.training.optimisation
        generator = torch.Generator().manual_seed(stream_seed(options.seed, "denoiser", step))
        rows = torch.randint(len(self.latents), (options.batch,), generator=generator)
        times = draw_times(self.training, options.batch, generator).to(self.device)
        clean = self.latents[rows.to(self.device)].float()
        noise = torch.randn(clean.shape, generator=generator).to(self.device)
        noisy, target = self.base.add_noise(clean, noise, times)
        rng = numpy_stream(options.seed, "captions", step)
        said = [self._caption(row, rng) for row in rows.tolist()]
        tokens = self.base.pipeline.tokenizer(
            said, padding="max_length", truncation=True, return_tensors="pt"
        )
        text = model["text_encoder"](tokens.input_ids.to(self.device))[0]
        middle: list[Tensor] = []
        hook = model["unet"].mid_block.register_forward_hook(lambda *io: middle.append(io[-1]))
        prediction = model["unet"](noisy, times, text).sample.float()
        hook.remove()
        errors = (prediction - target).square().mean(dim=(1, 2, 3))
        value = (self.weights[times] * errors).mean()
        note = f"loss {value.item():.4f}"
        if self.features is not None:
            seen = self.features[rows].to(self.device).float()
            told = functional.interpolate(model["projection"](middle[0]).float(), seen.shape[2:])
            likeness = functional.cosine_similarity(told, seen, dim=1).mean()
            value = value - self.training.alignment_weight * likeness
            note += f" features {likeness.item():.3f}"
        return value, note

    def _caption(self, row: int, rng: np.random.Generator) -> str:
        if rng.random() < self.training.unconditional:
            return ""
        return captions.training_caption(*self.phrases[row], rng)


def draw_times(
    training: DenoiserTraining, count: int, generator: torch.Generator
) -> Int64[Tensor, " n"]:
    """Timesteps to denoise at, most of them where captions act."""
    uniform = torch.rand(count, generator=generator) * 1000
    near = training.centre + training.spread * torch.randn(count, generator=generator)
    centred = torch.rand(count, generator=generator) < training.centred
    return torch.where(centred, near, uniform).long().clamp(0, 999)


def _phrases(subjects: AvatarSubjects) -> list[tuple[list[str], list[str]]]:
    """What can be said of each image: of its subject, and of its scene."""
    phrases = []
    for subject_id in subjects.ids:
        who = captions.identity_phrases(subjects.identity(subject_id))
        phrases += [(who, captions.scene_phrases(s)) for s in subjects.scenes(subject_id)]
    return phrases


def _projection(width: int, features: int) -> nn.Sequential:
    """From the middle of a U-Net to features."""
    return nn.Sequential(nn.Conv2d(width, 256, 1), nn.SiLU(), nn.Conv2d(256, features, 1))


def _latents(
    vae: Any, chunks: Sequence[Path], run: Path, device: torch.device
) -> Float[Tensor, "n c h w"]:
    """Latents of all images."""
    network = vae.to(device, memory_format=torch.channels_last)
    kept = Cache(run / f"latents-{encoder_fingerprint(vae)[:12]}")
    return _of_images(chunks, kept, device, lambda unit: network.encode(unit).latent_dist.mean)


def _features(
    network: AttributeJudge,
    model: AvatarModelConfig,
    chunks: Sequence[Path],
    run: Path,
    device: torch.device,
) -> Float[Tensor, "n f i j"]:
    """The coarsest feature maps of all images, each channel with mean 0 and deviation 1."""
    maps, kept = perceive(network, model), Cache(run / f"features-{fingerprint(network)[:12]}")
    features = _of_images(chunks, kept, device, lambda unit: maps(unit)[-1])
    some = features[:2048].float()
    centre = some.mean(dim=(0, 2, 3), keepdim=True)
    width = some.std(dim=(0, 2, 3), keepdim=True).clamp(min=1e-3)
    return ((features - centre.half()) / width.half()).clamp(-10, 10)


@torch.no_grad()
def _of_images(
    chunks: Sequence[Path], cache: Cache, device: torch.device, network: Callable[[Tensor], Tensor]
) -> Float[Tensor, "n ..."]:
    """What a network makes of images, once, into a file for each chunk."""

    def encode(chunk: Path) -> dict[str, Tensor]:
        units = (to_unit_range(rows.to(device)) for rows in load_images(chunk).split(32))
        return {"latents": torch.cat([network(unit).half().cpu() for unit in units])}

    parts = []
    with progress("encoding images", len(chunks)) as advance:
        for chunk in chunks:
            kept = cache.tensors("part", chunk.stem, partial(encode, chunk))
            parts.append(kept["latents"].half())
            advance()
    return torch.cat(parts)


def encoder_fingerprint(vae: Any) -> str:
    """Identifies what decides latents: the decoder can be trained further beside a denoiser."""
    return fingerprint(nn.ModuleDict({"encoder": vae.encoder, "quant_conv": vae.quant_conv}))


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Measures caption following on the way; decides nothing.

    Attributes:
        run: folder for a sheet of samples, and the pipeline so far.
        judge: what reads the images.
        following: what is measured.
        every: so many steps.
    """

    run: Path
    judge: AttributeJudge
    following: Following = field(default_factory=lambda: Following(count=128, sampling=MEASURED))
    every: int = 500

    def __call__(
        self, pipeline: StableDiffusionPipeline, average: Any, step: int
    ) -> Mapping[str, float]:
        """Keep the averaged model, and say how often it makes each attribute that is asked for."""
        parts = {name: average[name] for name in ("unet", "text_encoder")}
        averaged = type(pipeline)(**(pipeline.components | parts), requires_safety_checker=False)
        averaged.set_progress_bar_config(disable=True)
        base = BaseModel(averaged, "averaged")
        shares, images = follow_captions(base, self.judge, self.following)
        write_synthetic(self.run / "samples.png", contact_sheet(images[:_SHOWN], 8))
        save_pipeline(averaged, self.run / "so-far", {"steps": step})
        return shares
