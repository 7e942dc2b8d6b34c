"""A variational autoencoder of vectors (the paper's 3.3 and 4.2; Kingma & Welling 2014).

`vae_training` trains it; for more vectors than fit in memory there is `streamed_vae`.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from lorasynth.codec.contract import CODECS, Codec, VectorSource, gather
from lorasynth.codec.scaled import Scale, Scaled, ScaledConfig
from lorasynth.codec.span import Span
from lorasynth.codec.vae_training import InMemory, Training
from lorasynth.core.checkpoint import Checkpoint
from lorasynth.core.errors import ConfigError
from lorasynth.core.randomness import stream_seed


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Options of `VAE`.

    Attributes:
        latents: k; the paper finds 512 best (4.2) with 64,000 adapters.
        depth: linear layers in the encoder, and in the decoder; 1 (default) is the paper's 4.2,
            more its Figure 4.
        hidden: width of the first hidden layer where depth > 1; further ones fall geometrically
            towards `latents`.
        beta: weight of the KL divergence; the paper finds 1 too large (3.3).
        scale: how vectors are scaled before; `global` (default) weighs parameters by their spread,
            as squared error of the vectors does.
        epochs: passes over the training vectors, at most.
        batch: vectors per step.
        lr: peak learning rate of AdamW for a layer of one input; each layer's is this divided by
            its number of inputs (Yang et al. 2022, table 3), since D is so large that any common
            rate is too high for the first layer or too low for the rest.  Falls to zero along a
            half cosine.
        weight_decay: of AdamW.
        validation: share of the vectors held out to stop early.
        patience: epochs without a better validation loss before stopping.
        seed: of initial weights, split, order and noise.
    """

    latents: int = 512
    depth: int = 1
    hidden: int = 1024
    beta: float = 0.1
    scale: Scale = "global"
    epochs: int = 400
    batch: int = 32
    lr: float = 0.5
    weight_decay: float = 0.01
    validation: float = 0.1
    patience: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.latents, self.depth, self.hidden, self.epochs, self.batch) < 1:
            raise ConfigError(
                "a VAE's latents, depth, hidden, epochs and batch must be at least 1, but one is "
                f"not: {self}"
            )
        if not (self.lr > 0 and self.beta >= 0 and self.weight_decay >= 0):
            raise ConfigError(
                "a VAE's lr must be above 0, its beta and weight_decay at least 0, but got "
                f"lr={self.lr}, beta={self.beta}, weight_decay={self.weight_decay}"
            )
        if not 0 < self.validation < 1:
            raise ConfigError(
                f"a VAE's validation share must be between 0 and 1, but got {self.validation}"
            )


class Terms(NamedTuple):
    """The loss per parameter: reconstruction + beta * divergence is minus the ELBO (eq. 1)."""

    reconstruction: Tensor
    divergence: Tensor


@CODECS.register("vae")
class VAE(Codec):
    """q(z|x) = N(mu(x), diag(sigma^2(x))), p(x|z) = N(decoder(z), I), p(z) = N(0, I).

    `encode` gives mu.  The divergence draws the variance of each latent in use towards 1, as hard
    as `beta` says (after short training with a small beta their mean square can still be 10), and
    that of unused ones to 0; the prior N(0, I) is meant in these units, so they are not rescaled.
    On the vectors it was fitted to, depth 1 cannot have a smaller squared error than `PCA` with as
    many latents.  The report holds the loss terms per epoch, on the training and the held-out
    vectors.
    """

    config_class = VAEConfig

    def __init__(self, config: VAEConfig, width: int, latents: int) -> None:
        super().__init__(config, width, latents)
        self.scaled = Scaled(ScaledConfig(scale=config.scale), width, width)
        widths = [width, *_hidden_widths(config, latents)]
        self.encoder = _mlp([*widths, 2 * latents])
        self.decoder = _mlp([latents, *widths[::-1]])

    @override
    @classmethod
    def fit(
        cls,
        vectors: Float[Tensor, "n D"] | VectorSource,
        config: VAEConfig | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> "VAE":
        x = gather(vectors, device)
        codec = cls.untrained(config or VAEConfig(), x.shape[1], device)
        codec.scaled = Scaled.fit(x, ScaledConfig(scale=codec.config.scale), device=device)
        codec.learn(codec.scaled.encode(x))
        return codec

    @classmethod
    def untrained(cls, config: VAEConfig, width: int, device: torch.device | str) -> "VAE":
        """The weights that training starts from."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(config.seed, "vae", "weights"))
            return cls(config, width, config.latents).to(device)

    def learn(self, x: Float[Tensor, "n D"], checkpoint: Checkpoint | None = None) -> None:
        """Train on scaled vectors in memory.

        Few long ones are learned in their span, by a VAE that is as wide as they are many, with
        the same loss; its outer layers are then written in all D numbers.

        Args:
            x: scaled vectors.
            checkpoint: where to keep what there is; None for nowhere.
        """
        if 2 * len(x) > self.width or not x.any():
            Training(self, InMemory(x, self.config), checkpoint).run()
            return
        span = Span.of(x, self.config.seed)
        share = len(span.basis) / self.width
        config = replace(self.config, beta=self.config.beta * share)
        narrow = VAE.untrained(config, len(span.basis), x.device)
        Training(narrow, InMemory(span.coordinates, config), checkpoint).run()
        self._widen(narrow, span)
        for epoch in narrow.report["epochs"]:
            epoch |= {name: epoch[name] * share for name in epoch if "divergence" in name}
        self.report = narrow.report
        self.eval().requires_grad_(requires_grad=False)

    @torch.no_grad()
    def _widen(self, narrow: "VAE", span: Span) -> None:
        """Take over a VAE of coordinates in a span."""
        encoder, decoder = narrow.encoder.state_dict(), narrow.decoder.state_dict()
        encoder["0.weight"] = encoder["0.weight"] @ span.basis / span.unit
        for name in list(decoder)[-2:]:  # weight and bias of the last layer
            decoder[name] = span.unit * (span.basis.T @ decoder[name])
        self.encoder.load_state_dict(encoder)
        self.decoder.load_state_dict(decoder)

    @override
    def _encode(self, x: Float[Tensor, "n D"]) -> Float[Tensor, "n k"]:
        *inner, last = self.encoder
        assert isinstance(last, nn.Linear)
        h = nn.Sequential(*inner)(self.scaled.encode(x))
        # the other half of the last layer, at depth 1 of all, is the variance
        return functional.linear(h, last.weight[: self.latents], last.bias[: self.latents])

    @override
    def _decode(self, z: Float[Tensor, "n k"]) -> Float[Tensor, "n D"]:
        return self.scaled.decode(self.decoder(z))

    def posterior(
        self, x: Float[Tensor, "n D"]
    ) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
        """Mean and log-variance of q(z|x) for *scaled* vectors."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 10)

    def terms(self, x: Float[Tensor, "n D"], noise: Float[Tensor, "n k"]) -> Terms:
        """Loss terms of scaled vectors, with z = mu + sigma * noise (eq. 1), in nats per parameter.

        The reconstruction term is half the squared error: the negative log-likelihood of a
        Gaussian of unit variance without its constant.
        """
        mean, log_variance = self.posterior(x)
        rebuilt = self.decoder(mean + (0.5 * log_variance).exp() * noise)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        return Terms(0.5 * (rebuilt - x).square().mean(), divergence.mean() / self.width)


def _hidden_widths(config: VAEConfig, latents: int) -> list[int]:
    """Depth - 1 widths, falling geometrically from `hidden` towards `latents`."""
    ratio = latents / config.hidden
    steps = max(config.depth - 1, 1)
    return [round(config.hidden * ratio ** (i / steps)) for i in range(config.depth - 1)]


def _mlp(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inner, outer in pairwise(widths):
        layers += [nn.SiLU(), nn.Linear(inner, outer)]
    return nn.Sequential(*layers[1:])
