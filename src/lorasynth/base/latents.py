"""Images to latents and back, by the class of the autoencoder.

Latents have four axes and the scale that the denoiser is trained on; they are the means of what
the encoder predicts, so that an image has one encoding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lorasynth.core.errors import BaseModelError


@dataclass(frozen=True)
class Scale:
    """How an autoencoder is used.

    Attributes:
        encode: images from -1 to 1 (b 3 h w) to latents (b c i j).
        decode: back; the result may leave the range.
        channels: of a latent.
        factor: pixels along one side of a latent.
    """

    encode: Callable[[Any, Float[Tensor, "b 3 h w"]], Float[Tensor, "b c i j"]]
    decode: Callable[[Any, Float[Tensor, "b c i j"]], Float[Tensor, "b 3 h w"]]
    channels: Callable[[Any], int]
    factor: Callable[[Any], int]


def _shift(vae: Any) -> float:
    return float(getattr(vae.config, "shift_factor", None) or 0.0)


def _encode_kl(vae: Any, images: Tensor) -> Tensor:
    mean: Tensor = vae.encode(images).latent_dist.mean
    return (mean - _shift(vae)) * float(vae.config.scaling_factor)


def _decode_kl(vae: Any, latents: Tensor) -> Tensor:
    unscaled = latents / float(vae.config.scaling_factor) + _shift(vae)
    decoded: Tensor = vae.decode(unscaled.to(vae.dtype)).sample
    return decoded


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of the channels of a video autoencoder's latents."""
    mean, std = (
        torch.tensor(part, device=like.device, dtype=like.dtype).view(1, -1, 1, 1)
        for part in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std


def _encode_video(vae: Any, images: Tensor) -> Tensor:
    mean: Tensor = vae.encode(images[:, :, None]).latent_dist.mean[:, :, 0]
    centre, std = _statistics(vae, mean)
    return (mean - centre) / std


def _decode_video(vae: Any, latents: Tensor) -> Tensor:
    centre, std = _statistics(vae, latents)
    # As the pipelines compute it, to the bit.
    unscaled = latents / (1.0 / std) + centre
    decoded: Tensor = vae.decode(unscaled[:, :, None].to(vae.dtype)).sample[:, :, 0]
    return decoded


def _normal(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of the patches of FLUX.2's latents."""
    mean = vae.bn.running_mean.view(1, -1, 1, 1).to(like)
    variance = vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps
    return mean, variance.sqrt().to(like)


def _encode_flux2(vae: Any, images: Tensor) -> Tensor:
    patches = functional.pixel_unshuffle(vae.encode(images).latent_dist.mean, 2)
    mean, std = _normal(vae, patches)
    return (patches - mean) / std


def _decode_flux2(vae: Any, latents: Tensor) -> Tensor:
    mean, std = _normal(vae, latents)
    unscaled = functional.pixel_shuffle(latents * std + mean, 2)
    decoded: Tensor = vae.decode(unscaled.to(vae.dtype)).sample
    return decoded


def _encode_dc(vae: Any, images: Tensor) -> Tensor:
    latent: Tensor = vae.encode(images).latent
    return latent * float(vae.config.scaling_factor)


def _halvings(blocks: Any) -> int:
    return 1 << (len(blocks) - 1)


_KL = Scale(
    _encode_kl,
    _decode_kl,
    lambda vae: int(vae.config.latent_channels),
    lambda vae: _halvings(vae.config.block_out_channels),
)

SCALES: dict[str, Scale] = {
    "AutoencoderKL": _KL,
    "AutoencoderKLQwenImage": Scale(
        _encode_video,
        _decode_video,
        lambda vae: int(vae.config.z_dim),
        lambda vae: 1 << len(vae.temperal_downsample),
    ),
    "AutoencoderKLWan": Scale(
        _encode_video,
        _decode_video,
        lambda vae: int(vae.config.z_dim),
        lambda vae: int(vae.config.scale_factor_spatial),
    ),
    "AutoencoderKLFlux2": Scale(
        _encode_flux2,
        _decode_flux2,
        lambda vae: 4 * int(vae.config.latent_channels),
        lambda vae: 2 * _halvings(vae.config.block_out_channels),
    ),
    "AutoencoderDC": Scale(
        _encode_dc,
        _decode_kl,
        lambda vae: int(vae.config.latent_channels),
        lambda vae: _halvings(vae.config.encoder_block_out_channels),
    ),
}


def scale_of(vae: Any) -> Scale:
    """How an autoencoder is used.

    Raises:
        BaseModelError: it is of a class that is not known.
    """
    kind = type(vae).__name__
    if kind not in SCALES:
        raise BaseModelError(
            f"a base model's autoencoder must be one of {', '.join(SCALES)}, but is a {kind}: use "
            "the autoencoder that the model was published with"
        )
    return SCALES[kind]
