"""A variational autoencoder of vectors (the paper's 3.3 and 4.2; Kingma & Welling 2014)."""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from lorasynth.codec.config import Budget, ScaledConfig, VAEConfig
from lorasynth.codec.contract import CODECS, Codec
from lorasynth.codec.krylov import orthonormalise
from lorasynth.codec.scaled import Scaled
from lorasynth.codec.sources import bytes_left, moments, settled
from lorasynth.core.checkpoint import Checkpoint
from lorasynth.core.config import to_dict
from lorasynth.core.device import exact_device
from lorasynth.core.errors import ConfigError
from lorasynth.core.randomness import stream_seed, torch_stream
from lorasynth.engine.optimisation import Optimisation
from lorasynth.library.blocks import BlockSource, read_rows

#: Where training finds its vectors: in memory, as coordinates in the span of few long ones; in
#: memory as they are; or in the source, from which each batch is read when its turn comes.
Way = Literal["span", "memory", "source"]

#: Copies of the weights: with gradients, both moments of AdamW, the average, the best so far and
#: one that is written.  Of vectors in memory: as given, scaled, and while a batch is learned.
_WEIGHTS, _VECTORS, _BATCHES = 7, 4, 8

#: Bytes for what is not counted here.
_SLACK = 192 << 20

#: Directions in which all vectors together are shorter, as a share of them, are rounding errors.
_NOISE = 1e-6


class Terms(NamedTuple):
    """Loss terms in nats per parameter."""

    reconstruction: Float[Tensor, ""]
    divergence: Float[Tensor, ""]


@CODECS.register("vae")
class VAE(Codec):
    """z = mu(x), with x scaled first; encode and decode are deterministic.

    The KL divergence pulls the latents towards a standard normal distribution together; how near
    they come depends on beta.  The report holds `epochs`: loss terms of each, also of held-out
    vectors; the weights of the epoch with the lowest held-out loss are kept.
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
    def _fit(cls, source: BlockSource, config: VAEConfig, budget: Budget) -> "VAE":
        identity: dict[str, Any] = {"config": to_dict(config), "memory": budget.memory}
        identity |= {"vectors": source.fingerprint, "shape": [len(source), source.width]}
        device = torch.device(budget.device)
        way = settled(budget, identity, lambda: {"way": _way(source, config, budget)})["way"]
        identity["way"] = way
        checkpoint = Checkpoint(budget.run, identity, budget.checkpoint_seconds)
        rows = min(config.batch, len(source))
        found, _ = moments(source, rows, checkpoint, exact_device(device))
        codec = cls.untrained(config, source.width, device)
        scaling = ScaledConfig(scale=config.scale)
        codec.scaled = Scaled.of(scaling, found.mean.float(), found.variance.sqrt().float())
        codec.scaled.to(device)
        if way == "source":
            take = _Reader(source, codec.scaled)
            codec.report = _train(codec, take, len(source), budget, identity)
        else:
            x = torch.empty(len(source), source.width)
            source.read_block(0, 0, x)
            x = codec.scaled.encode(x.to(device))
            if way == "span" and x.any():
                codec._learn_in_span(x, budget, identity)
            else:
                codec.report = _train(codec, _held(x), len(x), budget, identity)
        codec.report["computation"] = {"way": way, "vectors": len(source)}
        return codec.eval().requires_grad_(requires_grad=False)

    @classmethod
    def untrained(cls, config: VAEConfig, width: int, device: torch.device | str) -> "VAE":
        """The weights that training starts from."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(config.seed, "vae", "weights"))
            return cls(config, width, config.latents).to(device)

    @torch.no_grad()
    def _learn_in_span(
        self, x: Float[Tensor, "n D"], budget: Budget, identity: Mapping[str, Any]
    ) -> None:
        """Learn few long vectors in their span, by a VAE as wide as they are many.

        Vectors outside of it are never seen, so weights of the first layer that read there would
        stay as they were drawn and add noise to whatever is encoded later.  The basis is turned at
        random, so that coordinates are alike, as the parameters of vectors are; along principal
        components, which differ by orders, Adam ends at a higher loss.
        """
        basis = orthonormalise(x.clone(), _NOISE * float(x.norm()))
        stream = torch_stream(self.config.seed, "span")
        turn = torch.randn(len(basis), len(basis), generator=stream, dtype=torch.float64)
        basis = torch.linalg.qr(turn).Q.to(basis) @ basis
        share = len(basis) / self.width
        unit = share**-0.5  # mean squares are the same of vectors and coordinates
        config = replace(self.config, beta=self.config.beta * share)
        narrow = VAE.untrained(config, len(basis), x.device)
        with torch.enable_grad():
            coordinates = _held(x @ basis.T / unit)
            self.report = _train(narrow, coordinates, len(x), budget, identity)
        for epoch in self.report["epochs"]:
            epoch |= {name: epoch[name] * share for name in epoch if "divergence" in name}
        encoder, decoder = narrow.encoder.state_dict(), narrow.decoder.state_dict()
        encoder["0.weight"] = encoder["0.weight"] @ basis / unit
        for name in list(decoder)[-2:]:  # weight and bias of the last layer
            decoder[name] = unit * (basis.T @ decoder[name])
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


#: Gives scaled vectors by their numbers; those of the next call are read ahead, if they are told.
_Take = Callable[..., Float[Tensor, "_ D"]]


def _held(x: Float[Tensor, "n D"]) -> _Take:
    """Scaled vectors in memory."""
    return lambda rows, _then=None: x[rows.to(x.device)]


class _Reader:
    """Vectors that are read and scaled when they are asked for, one batch ahead.

    Row by row: a row of 99,648 parameters is 200 to 400 KB, which a disk reads about as fast as
    anything longer, so nothing is shuffled less than it is in memory.
    """

    def __init__(self, source: BlockSource, scaled: Scaled) -> None:
        self._source, self._scaled = source, scaled
        self._thread = ThreadPoolExecutor(1)
        self._ahead: tuple[Int64[Tensor, " b"], Future[Tensor]] | None = None

    def __call__(
        self, rows: Int64[Tensor, " b"], then: Int64[Tensor, " c"] | None = None
    ) -> Float[Tensor, "b D"]:
        ahead, self._ahead = self._ahead, None
        read = ahead[1].result() if ahead and ahead[0].equal(rows) else self._read(rows)
        if then is not None:
            self._ahead = (then, self._thread.submit(self._read, then))
        return self._scaled.encode(read.to(self._scaled.mean.device))

    def _read(self, rows: Int64[Tensor, " b"]) -> Float[Tensor, "b D"]:
        block = torch.empty(len(rows), self._source.width)
        read_rows(self._source, rows, block)
        return block


class _Epochs:
    """Which vectors are held out, and which are learned from at a step."""

    def __init__(self, count: int, config: VAEConfig) -> None:
        self.config = config
        order = torch.randperm(count, generator=torch_stream(config.seed, "vae", "split"))
        held_out = min(max(round(config.validation * count), 1), count - 1)
        self.held_out, self.known = order[:held_out], order[held_out:]
        self.steps = math.ceil(len(self.known) / config.batch)  # of an epoch
        self._drawn: tuple[int, tuple[Tensor, ...]] = (-1, ())

    def rows(self, step: int) -> Int64[Tensor, " b"]:
        """The vectors of a step; every epoch has an order of its own."""
        epoch, batch = divmod(step, self.steps)
        if self._drawn[0] != epoch:
            stream = torch_stream(self.config.seed, "vae", "epoch", epoch)
            order = torch.randperm(len(self.known), generator=stream)
            self._drawn = (epoch, self.known[order].split(self.config.batch))
        return self._drawn[1][batch]


def _train(
    codec: VAE, take: _Take, count: int, budget: Budget, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """Train on scaled vectors until nothing improves; the report."""
    from lorasynth.engine.trainer import Trainer  # not needed where a codec is only loaded

    config, epochs = codec.config, _Epochs(count, codec.config)
    sample = epochs.known[: len(epochs.held_out)]

    def loss(model: Any, step: int) -> tuple[Tensor, str]:
        x = take(epochs.rows(step), epochs.rows(step + 1))
        stream = torch_stream(config.seed, "vae", "noise", step)
        noise = torch.randn(len(x), model.latents, generator=stream)
        terms = model.terms(x, noise.to(x))
        return terms.reconstruction + config.beta * terms.divergence, ""

    def figures(model: Any, _step: int) -> dict[str, float]:
        """At z = mu, without the latents' noise, so that epochs compare."""
        found: dict[str, float] = {}
        for prefix, rows in (("", sample), ("held_out_", epochs.held_out)):
            parts = rows.split(config.batch)
            terms = [model.terms(x := take(p), x.new_zeros(len(x), model.latents)) for p in parts]
            weights = torch.tensor([len(part) / len(rows) for part in parts])
            means = [float(torch.stack(one).cpu() @ weights) for one in zip(*terms, strict=True)]
            found |= {f"{prefix}reconstruction": means[0], f"{prefix}divergence": means[1]}
        loss = found["held_out_reconstruction"] + config.beta * found["held_out_divergence"]
        return {"held_out_loss": loss, **found}

    optimisation = Optimisation(
        steps=config.epochs * epochs.steps,
        batch=config.batch,
        lr=config.lr,
        warmup=0,
        weight_decay=config.weight_decay,
        ema=0.0,
        clip=1e30,
        checkpoint_seconds=10 * budget.checkpoint_seconds,  # a state may have gigabytes
    )
    rates = {
        f"{part}.{index}.{name}": 1 / layer.in_features
        for part in ("encoder", "decoder")
        for index, layer in getattr(codec, part).named_children()
        if isinstance(layer, nn.Linear)
        for name in ("weight", "bias")
    }
    path = None if budget.run is None else budget.run / "training.safetensors"
    device = codec.scaled.mean.device
    trainer = Trainer(codec, optimisation, path, device, identity)
    trainer.autocast = False
    trainer.scale_rates(rates)
    trainer.record(epochs.steps, figures, lowest="held_out_loss", patience=config.patience)
    trainer.run("VAE", loss)
    return {"epochs": [dict(row) for row in trainer.history]}


def _way(source: BlockSource, config: VAEConfig, budget: Budget) -> Way:
    with torch.device("meta"):
        codec = VAE(config, source.width, config.latents)
    weights = 4 * sum(parameter.numel() for parameter in codec.parameters())
    return _choose(len(source), source.width, config.batch, weights, bytes_left(budget))


def _choose(n: int, d: int, batch: int, weights: int, left: int) -> Way:
    """Vectors in memory where they fit, else read; weights and `left` are in bytes.

    Raises:
        ConfigError: neither fits.
    """
    span = 2 * weights + 4 * (_VECTORS + 2) * n * d + _SLACK
    memory = _WEIGHTS * weights + 4 * _VECTORS * n * d + _SLACK
    streamed = _WEIGHTS * weights + 4 * _BATCHES * min(n, batch) * d + _SLACK
    if 2 * n <= d and span <= left:
        return "span"
    if memory <= left:
        return "memory"
    if streamed <= left:
        return "source"
    raise ConfigError(
        f"a VAE of {n} vectors of width {d} with {weights // 4} weights takes at least "
        f"{min(memory, streamed) / 1e9:.2f} GB beside the program's own, but "
        f"{max(left, 0) / 1e9:.2f} GB are left: give it more memory, or ask for fewer latents"
    )


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
