"""Training of the embedded base model: the autoencoder, then the U-Net with the text encoder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from lorasynth import config as configs
from lorasynth.atomic import atomic_directory, write_json
from lorasynth.base.avatar_model import AvatarModelConfig, build_pipeline
from lorasynth.base.stable_diffusion import StableDiffusion
from lorasynth.pictures.files import to_unit_range
from lorasynth.pictures.pool import CAPTIONS, Pool
from lorasynth.progress import progress
from lorasynth.randomness import stream_seed
from lorasynth.training import Optimisation, Trainer

#: Feature maps of pictures in [-1, 1], from several layers of a network.
Perception: TypeAlias = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True, kw_only=True)
class BaseTrainingConfig:
    """How the embedded base model is trained.

    Attributes:
        model: its sizes.
        autoencoder: optimisation of the autoencoder.
        unet: optimisation of U-Net and text encoder.
        kl_weight: of the autoencoder's prior, per latent number; small, as in Rombach et al. 2022.
        contrast: share of the autoencoder's pixel loss that follows the picture's local contrast,
            so that small features count for more than flat areas; 0: every pixel counts alike.
        perception_weight: of the distance between feature maps, if a network gives them.
        unconditional: share of captions replaced by the empty one, for classifier-free guidance.
    """

    model: AvatarModelConfig = field(default_factory=AvatarModelConfig)
    autoencoder: Optimisation = field(
        default_factory=lambda: Optimisation(steps=12000, batch=8, lr=1e-3, weight_decay=0.0)
    )
    unet: Optimisation = field(
        default_factory=lambda: Optimisation(steps=12000, batch=64, lr=8e-4, warmup=300)
    )
    kl_weight: float = 1e-4
    contrast: float = 0.7
    perception_weight: float = 0.5
    unconditional: float = 0.1


def train_autoencoder(
    pool: Pool,
    config: BaseTrainingConfig,
    run: Path,
    out: Path,
    device: torch.device,
    perception: Perception | None = None,
) -> None:
    """Train the autoencoder of the embedded base model and save it as a folder (fp16).

    Args:
        pool: drawn pictures.
        config: what to train and how.
        run: folder for the checkpoint; the same folder resumes.
        out: the folder to write.
        device: where to train.
        perception: feature maps of pictures, by a network that is not part of the base model; the
            autoencoder is also judged by them, as that of Stable Diffusion is (Zhang et al. 2018).
    """
    options = config.autoencoder
    torch.manual_seed(stream_seed(config.unet.seed, "base"))
    vae = build_pipeline(config.model).vae
    pictures = pool.pictures.to(device)

    def loss(model: Any, step: int) -> tuple[Tensor, str]:
        generator = torch.Generator(device).manual_seed(stream_seed(options.seed, "vae", step))
        rows = torch.randint(len(pictures), (options.batch,), generator=generator, device=device)
        batch = to_unit_range(pictures[rows])
        posterior = model.encode(batch).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator, device=device)
        decoded = model.decode(posterior.mean + posterior.std * noise).sample
        difference = decoded.float() - batch
        weight = 1 - config.contrast + config.contrast * _local_contrast(batch)
        total = (weight * (difference.abs() + difference.square())).mean()
        prior = posterior.kl().mean() / posterior.mean[0].numel()
        total = total + config.kl_weight * prior
        if perception is not None:
            distance = _feature_distance(perception(decoded), perception(batch))
            total = total + config.perception_weight * distance
        note = f"error {difference.detach().square().mean().item():.5f}" if step % 50 == 0 else ""
        return total, note

    settings = {
        "model": configs.to_dict(config.model),
        "kl_weight": config.kl_weight,
        "contrast": config.contrast,
        "perception_weight": 0.0 if perception is None else config.perception_weight,
        "pictures": len(pool),
    }
    Trainer(vae, options, run / "autoencoder.safetensors", device, settings).run(
        "autoencoder", loss
    )
    with atomic_directory(out) as temporary:
        vae.to("cpu", torch.float16).save_pretrained(temporary)


def train_base(
    pool: Pool,
    config: BaseTrainingConfig,
    autoencoder: Path,
    run: Path,
    out: Path,
    device: torch.device,
) -> None:
    """Train U-Net and text encoder of the embedded base model and save the pipeline folder.

    Args:
        pool: drawn pictures with captions.
        config: what to train and how.
        autoencoder: the folder that `train_autoencoder` wrote.
        run: folder for the checkpoint; the same folder resumes.
        out: the pipeline folder to write.
        device: where to train.
    """
    torch.manual_seed(stream_seed(config.unet.seed, "base"))
    pipeline = build_pipeline(config.model)
    pipeline.vae = AutoencoderKL.from_pretrained(autoencoder).float()
    pipeline.vae.register_to_config(_name_or_path="")  # a local path
    latents = _encode_pool(pipeline, pool, device)
    _train_unet(pipeline, latents, pool, config, run / "unet.safetensors", device)
    with atomic_directory(out) as temporary:
        pipeline.to("cpu").to(torch.float16).save_pretrained(temporary)
        write_json(temporary / "training.json", configs.to_dict(config))


def _local_contrast(pictures: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """How much each pixel's neighbourhood varies, as a multiple of the picture's mean."""

    def smooth(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return functional.avg_pool2d(functional.pad(x, (2, 2, 2, 2), mode="replicate"), 5, 1)

    contrast = smooth((pictures - smooth(pictures)).abs().mean(dim=1, keepdim=True))
    return contrast / contrast.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)


def _feature_distance(
    decoded: Sequence[Float[Tensor, "b ..."]], original: Sequence[Float[Tensor, "b ..."]]
) -> Float[Tensor, ""]:
    """Squared distance between feature maps as a share of their variance, mean over layers."""
    shares = [
        (ours - theirs.detach()).float().square().mean() / theirs.detach().float().var()
        for ours, theirs in zip(decoded, original, strict=True)
    ]
    return torch.stack(shares).mean()


@torch.no_grad()
def _encode_pool(
    pipeline: StableDiffusionPipeline, pool: Pool, device: torch.device
) -> Float[Tensor, "n c h w"]:
    """Latents of the pool, of unit variance; their scale is recorded in the autoencoder."""
    vae = pipeline.vae.to(device)
    vae.register_to_config(scaling_factor=1.0)
    parts = []
    with progress("encoding pictures", len(pool)) as advance:
        for rows in pool.pictures.split(256):
            parts.append(vae.encode(to_unit_range(rows.to(device))).latent_dist.mean.half())
            advance(len(rows))
    latents = torch.cat(parts)
    scale = 1 / float(latents[: 1 << 14].float().std())
    vae.register_to_config(scaling_factor=scale)
    return latents * scale


def _tokenize(pipeline: StableDiffusionPipeline, pool: Pool) -> Int64[Tensor, "n captions tokens"]:
    texts = [text.decode() for text in pool.captions.flatten()]
    tokens = pipeline.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    ids: Tensor = tokens.input_ids
    return ids.reshape(len(pool), CAPTIONS, -1)


def _train_unet(
    pipeline: StableDiffusionPipeline,
    latents: Float[Tensor, "n c h w"],
    pool: Pool,
    config: BaseTrainingConfig,
    checkpoint: Path,
    device: torch.device,
) -> None:
    options = config.unet
    base = StableDiffusion(pipeline.to(device), "avatars")
    tokens = _tokenize(pipeline, pool).to(device)
    empty = pipeline.tokenizer("", padding="max_length", return_tensors="pt").input_ids.to(device)
    steps = base.scheduler.config.num_train_timesteps

    def loss(model: Any, step: int) -> tuple[Tensor, str]:
        generator = torch.Generator(device).manual_seed(stream_seed(options.seed, "unet", step))

        def uniform(high: int) -> Int64[Tensor, " b"]:
            return torch.randint(high, (options.batch,), generator=generator, device=device)

        rows, which = uniform(len(latents)), uniform(CAPTIONS)
        silent = torch.rand(options.batch, generator=generator, device=device)
        caption = torch.where((silent < config.unconditional)[:, None], empty, tokens[rows, which])
        clean = latents[rows].float()
        noise = torch.randn(clean.shape, generator=generator, device=device)
        timesteps = uniform(steps)
        noisy, target = base.add_noise(clean, noise, timesteps)
        text = model["text_encoder"](caption)[0]
        prediction = model["unet"](noisy, timesteps, text).sample.float()
        value = functional.mse_loss(prediction, target)
        return value, f"loss {value.item():.4f}" if step % 50 == 0 else ""

    parts = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    for part in parts.values():
        part.requires_grad_(True)
    settings = configs.to_dict(config) | {"pictures": len(pool)}
    # On a CPU, products on 8 x 8 latents are too small for bf16 to win what its casts cost.
    trainer = Trainer(
        nn.ModuleDict(parts),
        options,
        checkpoint,
        device,
        settings,
        autocast=device.type == "cuda",
    )
    trainer.run("U-Net", loss)
