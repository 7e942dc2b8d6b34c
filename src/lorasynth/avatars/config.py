"""How the embedded models are made.  Imports no torch, so that commands show this at once."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from lorasynth.engine.optimisation import Optimisation

#: In the folder of a model: how it was trained.
TRAINING = "training.json"


@dataclass(frozen=True, kw_only=True)
class AvatarModelConfig:
    """The sizes of the embedded model.

    Attributes:
        image_size: In pixels.
        latent_channels: Of a latent.
        vae_channels: Per resolution of the autoencoder, which halves the side between two; its
            decoder has two blocks at each, its encoder one.
        unet_channels: Per resolution of the U-Net.
        attention: Which resolutions of the U-Net have attention.
        text_width: Of the text encoder, and so of cross-attention.
        text_layers: Of the text encoder.
        tokens: That a caption may have.
        heads: Of every attention layer.
        vae_groups: Of the autoencoder's group norms; few, since a group of two channels forgets
            the level of a flat area, its colour.
        unet_groups: Of the U-Net's group norms.
    """

    image_size: int = 128
    latent_channels: int = 16
    vae_channels: tuple[int, ...] = (16, 16, 32, 64, 128)
    unet_channels: tuple[int, ...] = (64, 192)
    attention: tuple[bool, ...] = (True, True)
    text_width: int = 160
    text_layers: int = 2
    tokens: int = 40
    heads: int = 4
    vae_groups: int = 2
    unet_groups: int = 8

    @model_validator(mode="after")
    def _attention_is_whole(self) -> "AvatarModelConfig":
        if len(self.attention) != len(self.unet_channels):
            raise ValueError(
                "attention must be stated for each resolution of the U-Net, but there are "
                f"{len(self.unet_channels)} in unet_channels and {len(self.attention)} in attention"
            )
        return self

    @property
    def latent_side(self) -> int:
        """Height and width of a latent."""
        return self.image_size >> (len(self.vae_channels) - 1)


@dataclass(frozen=True, kw_only=True)
class AutoencoderTraining:
    """How the autoencoder is trained.

    Attributes:
        optimisation: How; its batch is of crops.
        crop: Side of the crops in pixels; most steps are of crops, which cost less.
        whole: Every so many steps are of whole images, as many pixels as the crops have.
        kl_weight: Of the autoencoder's prior, per dimension of the latents; small, as in Rombach
            et al. 2022.
        contrast: Share of the pixel loss that follows the image's local contrast, so that small
            features count for more than flat areas; 0: every pixel counts alike.
        perception_weight: Of the distance between feature maps of a network.
        alignment_weight: Of the distance between such a map and what a linear layer makes of the
            latents; a denoiser learns latents that say what is seen faster (Yao et al. 2025).
        decoder_alone: Whether the encoder stays as it is, and latents with it.
        noise: Standard deviation of noise on latents where the decoder is trained alone.
        adversarial_weight: Of a discriminator of patches, as that of Stable Diffusion (Esser et
            al. 2021), which makes edges crisp; 0: there is none.
        adversarial_after: So many steps.
    """

    optimisation: Optimisation = field(
        default_factory=lambda: Optimisation(steps=16000, batch=8, lr=1e-3, weight_decay=0.0)
    )
    crop: Annotated[int, Field(ge=1)] = 64
    whole: Annotated[int, Field(ge=1)] = 4
    kl_weight: float = 3e-3
    contrast: float = 0.7
    perception_weight: float = 0.5
    alignment_weight: float = 0.2
    decoder_alone: bool = False
    noise: float = 0.05
    adversarial_weight: float = 0.0
    adversarial_after: int = 500


@dataclass(frozen=True, kw_only=True)
class DenoiserTraining:
    """How the denoiser and its text encoder are trained.

    Attributes:
        optimisation: How.  The rate stays at its peak but for the last part, so that a run can be
            made longer until that begins.
        unconditional: Share of captions replaced by the empty one, for classifier-free guidance.
        centred: Share of timesteps that are drawn around `centre`, where captions decide most of
            what is denoised (docs/experiments.md, 2026-11-25); the others are uniform.
        centre: Mean of those timesteps.
        spread: Their standard deviation.
        alignment_weight: Of the distance between what a projection makes of the middle of the
            U-Net and a perception's features of the clean image, if there is one: so a denoiser
            learns sooner what is to be seen (Yu et al. 2025).
        gamma: Largest signal-to-noise ratio with full weight (Hang et al. 2023); less noise counts
            less.  More noise keeps its weight: there colours are decided, at no signal at all.
    """

    optimisation: Optimisation = field(
        default_factory=lambda: Optimisation(
            steps=24000, batch=64, lr=8e-4, warmup=500, ema=0.9995, decay=0.25
        )
    )
    unconditional: float = 0.1
    centred: float = 0.7
    centre: float = 550.0
    spread: float = 150.0
    alignment_weight: float = 0.5
    gamma: float = 5.0


@dataclass(frozen=True, kw_only=True)
class BaseTrainingConfig:
    """Every choice behind the embedded base model.

    Attributes:
        model: Its sizes.
        autoencoder: Training of the autoencoder.
        denoiser: Training of the denoiser and the text encoder.
    """

    model: AvatarModelConfig = field(default_factory=AvatarModelConfig)
    autoencoder: AutoencoderTraining = field(default_factory=AutoencoderTraining)
    denoiser: DenoiserTraining = field(default_factory=DenoiserTraining)


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """What a network that reads attributes off avatars is, and how it is trained.

    Attributes:
        trunk: Architecture.
        image_size: In pixels.
        features: Width of the last hidden layer.
        optimisation: How it is trained.
    """

    trunk: Literal["residual", "separable"] = "residual"
    image_size: int = 128
    features: int = 512
    optimisation: Optimisation = field(
        default_factory=lambda: Optimisation(
            steps=6000, batch=64, lr=2e-3, weight_decay=0.05, ema=0.998
        )
    )
