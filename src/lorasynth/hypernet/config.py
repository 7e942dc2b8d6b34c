"""What hypernetworks are made of, and how they are trained; imports no torch."""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from lorasynth.engine.optimisation import Optimisation


def _odd(number: int) -> int:
    if number % 2 == 0:
        raise ValueError("must be odd")
    return number


Size = Annotated[int, Field(ge=1)]
Embedding = Annotated[int, Field(ge=2)]


@dataclass(frozen=True, kw_only=True)
class AdaNormConfig:
    """AdaNorm has no options."""


@dataclass(frozen=True, kw_only=True)
class LowRankModulationConfig:
    """Options of `LowRankModulation`, the paper's AdaLoRA layer.

    Attributes:
        form: Where the pair acts.  layer: W h + B A h, with W the layer's own weight (Eq. 4);
            product: W (B A h), the paper's x A B (3.4), so that only what passes the low rank goes
            on; residual: W (h + B A h).
        rank: r, the inner width of the pair.
    """

    form: Literal["product", "layer", "residual"] = "layer"
    rank: Size = 8


@dataclass(frozen=True, kw_only=True)
class MLPDenoiserConfig:
    """Options of `MLPDenoiser`.

    Attributes:
        width: Of the residual stream.
        depth: Residual blocks.
        expansion: A block's hidden width, as a multiple of `width`.
        embedding: Width of the embedded time and of the embedded condition.
        dropout: Share of a block's hidden units dropped in training.
        modulation: How the condition enters each block: ada_norm or low_rank.
        modulation_options: Options of that modulation's config.
    """

    width: Size = 256
    depth: Size = 4
    expansion: Size = 2
    embedding: Embedding = 256
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    modulation: str = "ada_norm"
    modulation_options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class UNetDenoiserConfig:
    """Options of `UNetDenoiser`.

    Attributes:
        patch: Neighbouring dimensions of a latent that are one position; more make long vectors
            cheap.
        channels: Of each resolution, the finest first; each is half as fine as the one before.
        blocks: Residual blocks at each resolution, on the way down and again on the way up; the
            bottleneck has as many at the coarsest.
        kernel: Positions that a convolution sees; odd.
        embedding: Width of the embedded time and of the embedded condition.
        modulation: How the condition enters each block: ada_norm or low_rank.
        modulation_options: Options of that modulation's config.
    """

    patch: Size = 1
    channels: Annotated[tuple[Size, ...], Field(min_length=1)] = (64, 128, 256)
    blocks: Size = 2
    kernel: Annotated[int, Field(ge=1), AfterValidator(_odd)] = 3
    embedding: Embedding = 256
    modulation: str = "ada_norm"
    modulation_options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LatentRegressionConfig:
    """What a `LatentRegression` is made of.

    Attributes:
        width: Of the hidden layers.
        depth: Hidden layers.
    """

    width: int = 512
    depth: int = 2


@dataclass(frozen=True, kw_only=True)
class LatentDiffusionConfig:
    """What a `LatentDiffusion` is made of, and how it samples unless told otherwise.

    Attributes:
        denoiser: mlp or unet.
        denoiser_options: Options of that denoiser's config, its modulation among them.
        schedule: Noise schedule: cosine.
        parameterisation: What the denoiser predicts: v, x0 or epsilon.
        solver: dpm2m or ddim.
        steps: Solver steps.
        guidance: Classifier-free guidance (Ho & Salimans 2022); 1 for the plain condition, above it
            to exaggerate what the condition changes, 0 to ignore it.
        anchor: Of the regression that diffusion is the residual of; none by default.
    """

    denoiser: str = "mlp"
    denoiser_options: dict[str, Any] = field(default_factory=dict)
    schedule: str = "cosine"
    parameterisation: str = "v"
    solver: Literal["ddim", "dpm2m"] = "dpm2m"
    steps: int = 25
    guidance: float = 1.0
    anchor: LatentRegressionConfig | None = None


@dataclass(frozen=True, kw_only=True)
class HypernetConfig:
    """How a diffusion hypernetwork is built and trained.

    Attributes:
        model: What is trained.
        optimisation: Steps, batch, learning rate, averaging and seed.
        condition_dropout: Share of rows trained without condition, for guidance and for sampling
            without.
        record_every: Steps between the rows of metrics.
        patience: Rows without a lower held-out error after which training ends, where there are
            held-out subjects; the weights with the lowest are kept.
    """

    model: LatentDiffusionConfig = field(default_factory=LatentDiffusionConfig)
    optimisation: Optimisation = field(
        default_factory=lambda: Optimisation(steps=5000, batch=64, lr=5e-4)
    )
    condition_dropout: Annotated[float, Field(ge=0, le=1)] = 0.1
    record_every: Size = 500
    patience: Size = 10
