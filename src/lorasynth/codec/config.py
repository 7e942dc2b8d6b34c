"""What codecs are made of, and what fitting one may take; imports no torch."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

#: What one unit is: each parameter's own standard deviation, one for all (the root mean square of
#: them), or 1 without removing the mean.
Scale = Literal["parameter", "global", "none"]

Size = Annotated[int, Field(ge=1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """What fitting a codec may take, and where.

    Attributes:
        memory: bytes that the process may have, all that it has already included; None for half of
            the machine's.
        device: where to compute, and where the codec is left.
        run: folder for checkpoints; None for none, so that a killed fit begins anew.
        tolerance: share of the variance that k components could capture which they may miss where
            they cannot be exact; 0.001 is far below what k itself leaves out.
        checkpoint_seconds: how often a pass over the vectors is saved.
    """

    memory: int | None = None
    device: str = "cpu"
    run: Path | None = None
    tolerance: float = 1e-3
    checkpoint_seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class ScaledConfig:
    """How vectors are scaled.

    Attributes:
        scale: parameter (each by its own standard deviation, as weights2weights), global (all by
            one) or none.
    """

    scale: Scale = "parameter"


@dataclass(frozen=True, kw_only=True)
class PCAConfig:
    """Options of `PCA`.

    Attributes:
        latents: k, the number of components; None for all that the vectors have, which is at most
            n - 1.
        scale: How vectors are scaled before; global leaves plain PCA.
        whiten: Scale each latent to standard deviation 1, rather than keep the proportions of the
            spectrum, with a mean square of 1 over all latents together.
    """

    latents: int | None = None
    scale: Scale = "global"
    whiten: bool = False


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Options of `VAE`.

    Attributes:
        latents: k; the paper finds 512 best (4.2) with 64,000 adapters.
        depth: Linear layers in the encoder, and in the decoder; 1 is the paper's 4.2, more its
            Figure 4.
        hidden: Width of the first hidden layer where depth > 1; further ones fall geometrically
            towards the latents.
        beta: Weight of the KL divergence; the paper finds 1 too large (3.3).
        scale: How vectors are scaled before; global weighs parameters by their standard deviation,
            as squared error of the vectors does.
        epochs: Passes over the training vectors, at most.
        batch: Vectors per step.
        lr: Peak learning rate of AdamW for a layer of one input; each layer's is this divided by
            its number of inputs (Yang et al. 2022, table 3), since vectors are so long that any
            common rate is too high for the first layer or too low for the rest.
        weight_decay: Of AdamW.
        validation: Share of the vectors held out to stop early.
        patience: Epochs without a lower held-out loss before stopping.
        seed: Of initial weights, split, order and noise.
    """

    latents: Size = 512
    depth: Size = 1
    hidden: Size = 1024
    beta: Annotated[float, Field(ge=0)] = 0.1
    scale: Scale = "global"
    epochs: Size = 400
    batch: Size = 32
    lr: Annotated[float, Field(gt=0)] = 0.5
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    patience: Size = 40
    seed: int = 0


#: This package's kinds, by the names under which `CODECS` has them.
CONFIGS: dict[str, type] = {"pca": PCAConfig, "vae": VAEConfig, "scaled": ScaledConfig}
