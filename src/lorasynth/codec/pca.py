"""Principal components (the paper's 4.1); `fit` is exact and in memory.

For more vectors than fit in memory there is `out_of_core`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from lorasynth.codec.contract import CODECS, Codec, VectorSource, gather
from lorasynth.codec.scaled import Scale, Scaled, ScaledConfig
from lorasynth.core.device import exact
from lorasynth.core.errors import ConfigError

#: Components whose variance is a smaller share of the largest are rounding errors: the eigenvalues
#: come from a product in float64, whose own error is about 1e-14 of the largest.
RANK_TOLERANCE = 1e-12

#: Components whose signs are fixed at a time.
_SIGN_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class PCAConfig:
    """Options of `PCA`.

    Attributes:
        latents: k, the number of components; None (default) for all that the vectors have, which
            is at most n - 1.
        scale: how vectors are scaled before; `global` (default) leaves plain PCA.
        whiten: False (default) keeps the proportions of the spectrum, with a mean square of 1 over
            all latents together; True scales each latent to standard deviation 1.
    """

    latents: int | None = None
    scale: Scale = "global"
    whiten: bool = False


@CODECS.register("pca")
class PCA(Codec):
    """z = V^T (x - mean) / unit, with V the leading eigenvectors of the covariance.

    Latents are uncorrelated over the fitted vectors, in falling order of variance; their mean
    square is 1 over all of them (`whiten=False`) or each (`whiten=True`).  The report holds
    `explained_variance`, the cumulative share of variance per component (Figure 3).
    """

    config_class = PCAConfig
    components: Tensor
    unit: Tensor

    def __init__(self, config: PCAConfig, width: int, latents: int) -> None:
        super().__init__(config, width, latents)
        self.scaled = Scaled(ScaledConfig(scale=config.scale), width, width)
        self.register_buffer("components", torch.zeros(latents, width))
        self.register_buffer("unit", torch.ones(latents))

    @override
    @classmethod
    def fit(
        cls,
        vectors: Float[Tensor, "n D"] | VectorSource,
        config: PCAConfig | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> "PCA":
        x = gather(vectors, device)
        config = config or PCAConfig()
        scaled = Scaled.fit(x, ScaledConfig(scale=config.scale), device=device)
        components, variances = principal_components(scaled.encode(x))
        latents = config.latents if config.latents is not None else len(variances)
        require_latents(latents, len(variances), len(x))
        codec = cls.of(config, scaled, components[:latents], variances[:latents])
        codec.report = {
            "explained_variance": (variances[:latents].cumsum(0) / variances.sum()).tolist()
        }
        return codec

    @classmethod
    def of(
        cls,
        config: PCAConfig,
        scaled: Scaled,
        components: Float[Tensor, "k D"],
        variances: Float[Tensor, " k"],
    ) -> "PCA":
        """A codec of orthonormal components of scaled vectors, and the variances along them."""
        latents, width = components.shape
        like = scaled.mean
        with torch.device("meta"):  # a second matrix of components may not fit into memory
            codec = cls(config, width, latents)
        codec.scaled = scaled
        codec.components = components.to(like)
        unit = variances if config.whiten else variances.mean().expand(latents)
        codec.unit = unit.sqrt().to(like)
        return codec

    @override
    def _encode(self, x: Float[Tensor, "n D"]) -> Float[Tensor, "n k"]:
        return self.scaled.encode(x) @ self.components.T / self.unit

    @override
    def _decode(self, z: Float[Tensor, "n k"]) -> Float[Tensor, "n D"]:
        return self.scaled.decode((z * self.unit) @ self.components)


def principal_components(
    x: Float[Tensor, "n D"],
) -> tuple[Float[Tensor, "r D"], Float[Tensor, " r"]]:
    """All r components of non-zero variance, orthonormal, and their variances, falling.

    Through the smaller of the n x n Gram matrix and the D x D covariance, in float64.  Signs are
    fixed: the largest entry of each component is positive.

    Args:
        x: vectors; their mean is removed here.
    """
    x = exact(x)
    x = x - x.mean(0)
    n, width = x.shape
    if n <= width:
        values, vectors = torch.linalg.eigh(x @ x.T / n)
        keep = substantial(values)
        components = (x.T @ vectors[:, keep]) / (values[keep] * n).sqrt()
    else:
        values, vectors = torch.linalg.eigh(x.T @ x / n)
        keep = substantial(values)
        components = vectors[:, keep]
    components = components.T.contiguous()
    fix_signs(components)
    return components, values[keep]


def require_latents(latents: int, rank: int, vectors: int) -> None:
    """Refuse more components than there are.

    Raises:
        ConfigError: says how many there are.
    """
    if not 1 <= latents <= rank:
        raise ConfigError(
            f"PCA of these {vectors} vectors has from 1 to {rank} components, but got "
            f"latents={latents}: ask for fewer, or for all by None (null on the command line)"
        )


def fix_signs(components: Float[Tensor, "k D"]) -> None:
    """Make the largest entry of each component positive, in place."""
    for rows in components.split(_SIGN_ROWS):
        largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
        rows *= largest.sign()


def substantial(values: Float[Tensor, " m"]) -> Int[Tensor, " r"]:
    """Indices of the eigenvalues that are not rounding errors, largest first."""
    order = values.argsort(descending=True)
    return order[values[order] > RANK_TOLERANCE * values.max().clamp(min=0)]
