"""Training of the embedded base model's autoencoder."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from lorasynth.avatars.config import AutoencoderTraining, AvatarModelConfig, BaseTrainingConfig
from lorasynth.avatars.judge import AttributeJudge
from lorasynth.avatars.model import build_autoencoder
from lorasynth.core import config as configs
from lorasynth.core.errors import BaseModelError, reason_of
from lorasynth.core.progress import progress
from lorasynth.core.randomness import stream_seed
from lorasynth.engine.trainer import Trainer
from lorasynth.images.files import to_unit_range

#: Feature maps of images in [-1, 1], from several layers of a network.
Perception: TypeAlias = Callable[[Tensor], Sequence[Tensor]]

#: Images whose latents give the statistics that latents are whitened by.
_MEASURED = 2048
#: Of latents at the beginning, where training starts from an autoencoder.
_LOG_VARIANCE = -5.0


def train_autoencoder(
    images: UInt8[Tensor, "n h w 3"],
    config: BaseTrainingConfig,
    checkpoint: Path,
    device: torch.device,
    perception: Perception | None = None,
    start: Path | None = None,
) -> AutoencoderKL:
    """Train the autoencoder of the embedded base model, whose latents have mean 0, covariance 1.

    Args:
        images: drawn images.
        config: sizes of the base model, and how its autoencoder is trained.
        checkpoint: file to save to and to resume from.
        device: where to train.
        perception: feature maps of images, by a network that is not part of the base model; the
            autoencoder is also judged by them, as that of Stable Diffusion is (Zhang et al. 2018).
        start: folder of an autoencoder to start from.

    Raises:
        BaseModelError: that one has layers of other shapes.
    """
    model, training = config.model, config.autoencoder
    options = training.optimisation
    torch.manual_seed(stream_seed(options.seed, "autoencoder"))
    parts = nn.ModuleDict({"vae": build_autoencoder(model)})
    if start is not None:
        start_from(parts["vae"], AutoencoderKL, start)
    if perception is not None:
        parts["alignment"] = _alignment(perception, model)
    if training.adversarial_weight:
        parts["discriminator"] = _discriminator()
    vae: Any = parts["vae"]
    shape, own = dict(vae.config), configs.to_dict(training)
    settings = {
        "model": {name: shape[name] for name in sorted(shape) if name[0] != "_"},
        **{name: own[name] for name in own if name != "optimisation"},
        "images": len(images),
        "perception": perception is not None,
        "start": start is not None,
    }
    parts.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if training.decoder_alone:
        for part in (vae.encoder, vae.quant_conv):
            part.requires_grad_(False)
    elif start is not None:  # a finished one draws nothing (`_whiten`), but one that learns must
        vae.quant_conv.bias.data[model.latent_channels :] = _LOG_VARIANCE
    trainer = Trainer(parts, options, checkpoint, device, settings)
    trainer.run("autoencoder", partial(_loss, images, training, perception, device))
    if not training.decoder_alone:
        _whiten(vae, images[:_MEASURED], device)
    autoencoder: AutoencoderKL = vae.cpu()
    return autoencoder


def _loss(
    images: UInt8[Tensor, "n h w 3"],
    training: AutoencoderTraining,
    perception: Perception | None,
    device: torch.device,
    parts: Any,
    step: int,
) -> tuple[Tensor, str]:
    """The loss of a step, all of whose random numbers follow from its number."""
    seed = stream_seed(training.optimisation.seed, "vae", step)
    generator = torch.Generator().manual_seed(seed)
    batch = _batch(images, training, step, generator).to(device)
    latents = parts["vae"].encode(batch).latent_dist
    width: Tensor | float = training.noise if training.decoder_alone else latents.std
    noise = torch.randn(latents.mean.shape, generator=generator).to(device)
    decoded = parts["vae"].decode(latents.mean + width * noise).sample.float()
    total = _pixel_distance(decoded, batch, training.contrast)
    note = f"error {(decoded - batch).detach().square().mean().item():.5f}"
    seen = None if perception is None else perception(batch)
    if perception is not None and seen is not None:
        distance = _feature_distance(perception(decoded), seen)
        total = total + training.perception_weight * distance
        note += f" features {distance.item():.3f}"
    if training.adversarial_weight and step >= training.adversarial_after:
        made, told_apart = _adversarial(parts["discriminator"], decoded, batch)
        total = total + training.adversarial_weight * made + told_apart
        note += f" discriminator {told_apart.item():.3f}"
    if training.decoder_alone:
        return total, note
    prior = latents.kl().mean() / latents.mean[0].numel()
    total = total + training.kl_weight * prior
    if seen is not None:
        told = parts["alignment"](latents.mean)
        gap = _feature_distance([told], [_map_of(seen, told)])
        total = total + training.alignment_weight * gap
        note += f" alignment {gap.item():.3f}"
    return total, f"{note} kl {prior.item():.2f}"


def perceive(network: AttributeJudge, model: AvatarModelConfig) -> Perception:
    """The feature maps of a network of attributes, which may be of smaller images."""
    factor = max(1, model.image_size // network.config.image_size)

    def maps(images: Float[Tensor, "b 3 h w"]) -> Sequence[Tensor]:
        return network.feature_maps(functional.avg_pool2d(images, factor))

    return maps


def start_from(network: nn.Module, kind: Any, folder: Path) -> None:
    """Take over the weights of a network of diffusers or transformers in a folder.

    Raises:
        BaseModelError: its layers are others.
    """
    try:
        network.load_state_dict(kind.from_pretrained(folder).float().state_dict())
    except (RuntimeError, OSError) as error:
        raise BaseModelError(
            f"what training starts from must have the layers of what is trained, but {folder} has "
            f"not ({reason_of(error)}): start from none"
        ) from error


def _batch(
    images: UInt8[Tensor, "n h w 3"],
    training: AutoencoderTraining,
    step: int,
    generator: torch.Generator,
) -> Float[Tensor, "b 3 i j"]:
    """Crops of images, or every few steps fewer whole ones.

    Crops keep off the margin by half of what they leave out: faces are in the middle.
    """
    side, count = images.shape[1], training.optimisation.batch
    crop = side if (step + 1) % training.whole == 0 else min(training.crop, side)
    if crop == side:
        count = max(1, count * training.crop**2 // side**2)
    rows = torch.randint(len(images), (count,), generator=generator)
    out = side - crop
    corners = torch.randint(out // 4, out - out // 4 + 1, (count, 2), generator=generator)
    cut = [
        images[row, top : top + crop, left : left + crop]
        for row, (top, left) in zip(rows.tolist(), corners.tolist(), strict=True)
    ]
    return to_unit_range(torch.stack(cut)).contiguous(memory_format=torch.channels_last)


def _discriminator() -> nn.Sequential:
    """Says of each patch of about 38 pixels whether it is drawn (Isola et al. 2017)."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((3, 32, 64, 96)):
        layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(96, 1, 3, 1, 1))


def _adversarial(
    network: nn.Module, decoded: Float[Tensor, "b 3 h w"], drawn: Float[Tensor, "b 3 h w"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The decoder's loss, which leaves the discriminator alone, and the discriminator's own."""
    fixed = {name: value.detach() for name, value in network.named_parameters()}
    made: Tensor = -functional_call(network, fixed, (decoded,)).mean()
    real, unreal = network(drawn), network(decoded.detach())
    return made, (functional.relu(1 - real) + functional.relu(1 + unreal)).mean() / 2


def _alignment(perception: Perception, model: AvatarModelConfig) -> nn.Conv2d:
    """A linear layer from latents to the feature map of their size."""
    with torch.no_grad():
        maps = perception(torch.zeros(1, 3, model.image_size, model.image_size))
    latents = torch.empty(1, 0, model.latent_side, model.latent_side)
    return nn.Conv2d(model.latent_channels, _map_of(maps, latents).shape[1], 1)


def _map_of(maps: Sequence[Tensor], latents: Tensor) -> Tensor:
    """The feature map that is nearest in size to latents."""
    return min(maps, key=lambda seen: abs(seen.shape[-1] - latents.shape[-1]))


def _pixel_distance(
    decoded: Float[Tensor, "b 3 h w"], original: Float[Tensor, "b 3 h w"], contrast: float
) -> Float[Tensor, ""]:
    difference = decoded - original
    weight = 1 - contrast + contrast * _local_contrast(original)
    return (weight * (difference.abs() + difference.square())).mean()


def _local_contrast(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """How much each pixel's neighbourhood varies, as a multiple of the image's mean."""

    def smooth(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return functional.avg_pool2d(functional.pad(x, (2, 2, 2, 2), mode="replicate"), 5, 1)

    contrast = smooth((images - smooth(images)).abs().mean(dim=1, keepdim=True))
    return contrast / contrast.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-2)


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
def _whiten(vae: Any, images: UInt8[Tensor, "n h w 3"], device: torch.device) -> None:
    """Fold the map to latents of mean 0 and covariance 1 into the layers around them.

    Else what varies most, such as the colour of the background, is nearly all that a denoiser's
    loss sees.  Directions that vary little are widened by no more than a bound.
    """
    parts = []
    with progress("measuring latents", len(images)) as advance:
        for rows in images.split(64):
            mean = vae.encode(to_unit_range(rows.to(device))).latent_dist.mean
            parts.append(mean.movedim(1, -1).flatten(0, 2).double().cpu())
            advance(len(rows))
    latents = torch.cat(parts)
    centre, width = latents.mean(dim=0), latents.shape[1]
    values, vectors = torch.linalg.eigh(torch.cov(latents.T))
    scales = values.clamp(min=0.05 * float(values.mean())).rsqrt()
    white = (vectors * scales) @ vectors.T
    black = (vectors / scales) @ vectors.T
    weight, bias = (p.double().cpu() for p in vae.quant_conv.parameters())
    # The posterior becomes its mean: nothing is drawn from it once the training is over.
    weight = torch.cat([white @ weight[:width, :, 0, 0], torch.zeros(width, weight.shape[1])])
    bias = torch.cat([white @ (bias[:width] - centre), torch.full((width,), -30.0)])
    after, offset = (p.double().cpu() for p in vae.post_quant_conv.parameters())
    matrix = after[:, :, 0, 0]
    for layer, kernel, shift in (
        (vae.quant_conv, weight, bias),
        (vae.post_quant_conv, matrix @ black, offset + matrix @ centre),
    ):
        layer.weight.copy_(kernel[:, :, None, None])
        layer.bias.copy_(shift)
    vae.register_to_config(scaling_factor=1.0)
