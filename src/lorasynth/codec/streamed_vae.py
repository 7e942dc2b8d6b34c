"""`VAE` of more vectors than fit in memory: read while it trains, within a given amount of memory.

Each epoch reads the vectors in a new random order, row by row: a row of 99,648 numbers is 200 to
400 KB, which a disk reads about as fast as anything longer, and a batch of them takes a hundred
times longer to learn from than to read.  So nothing is shuffled less than it is in memory.

Vectors that do fit are trained on as ever.  Either way a run that is killed goes on from its
checkpoint and ends with the same bits (on the same machine and number of threads).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from lorasynth.codec import passes
from lorasynth.codec.contract import gather, require_several
from lorasynth.codec.out_of_core import Source
from lorasynth.codec.plan import bytes_left
from lorasynth.codec.scaled import Scaled, ScaledConfig
from lorasynth.codec.vae import VAE, VAEConfig
from lorasynth.codec.vae_training import Training, split
from lorasynth.core.checkpoint import Checkpoint
from lorasynth.core.config import to_dict
from lorasynth.core.device import exact_device
from lorasynth.core.errors import ConfigError
from lorasynth.library.blocks import read_ahead, read_rows

Way = Literal["memory", "streamed"]

#: Copies of the weights: with gradients and both moments of AdamW; and the best so far, of which
#: there may be one more while a better one replaces it.
_TRAINED, _BEST = 4, 2

#: Copies of a batch at a time: two that are read, and those that the loss and its gradient take.
_BATCHES = 8

#: Copies of vectors in memory: as they were given, scaled, in order, and while all are evaluated.
_COPIES = 6

#: Bytes for what is not counted here.
_SLACK = 192 << 20


@dataclass(frozen=True, kw_only=True)
class StreamingConfig:
    """Within what a VAE is trained.

    Attributes:
        memory: bytes that the process may have, all that it has already included.
        checkpoint_seconds: how often training is saved; a state of 512 latents of 99,648 numbers
            has 1.8 GB, so rarely.
    """

    memory: int
    checkpoint_seconds: float = 600.0


class OnDisk:
    """Scaled vectors that are read when they are asked for.

    As many as are held out describe an epoch: all would cost a third of the epoch.
    """

    def __init__(self, source: Source, scaled: Scaled, config: VAEConfig) -> None:
        self._source = source
        self._mean, self._unit = scaled.mean.cpu(), scaled.unit.cpu()
        self._device = scaled.mean.device
        self._train, self._held_out = split(len(source), config)
        self._batch = min(config.batch, len(source))
        # apart, so that writing to one does not count as a change of the other to autograd
        self._buffers = [torch.empty(self._batch, source.width) for _ in range(2)]

    def __len__(self) -> int:
        """Number of vectors to train on."""
        return len(self._train)

    def batches(self, groups: Sequence[Int64[Tensor, "_"]]) -> Iterator[Float[Tensor, "_ D"]]:
        """Vectors to train on, by their numbers."""
        return self._read([self._train[group] for group in groups])

    def sample(self) -> Iterator[Float[Tensor, "_ D"]]:
        """As many of those to train on as are held out."""
        return self._read(self._train[: len(self._held_out)].split(self._batch))

    def held_out(self) -> Iterator[Float[Tensor, "_ D"]]:
        """Those that judge."""
        return self._read(self._held_out.split(self._batch))

    def _read(self, groups: Sequence[Int64[Tensor, "_"]]) -> Iterator[Float32[Tensor, "_ D"]]:
        def read(number: int) -> Tensor:
            block = self._buffers[number % 2][: len(groups[number])]
            read_rows(self._source, groups[number], block, self._mean)
            return block.div_(self._unit)

        return (block.to(self._device) for block in read_ahead(len(groups), read))


def fit_streamed(
    source: Source,
    config: VAEConfig,
    how: StreamingConfig,
    *,
    run: Path | None = None,
    device: torch.device | str = "cpu",
) -> VAE:
    """Fit `VAE` to vectors on disk.

    Args:
        source: a library, a view of one, or a `VectorFile`.
        config: what is fitted.
        how: within which memory.
        run: folder of checkpoints; None for none, so that a killed run begins anew.
        device: where to compute, and where the codec is left.

    Raises:
        LibraryError: fewer than two vectors, a value that is not finite, or a damaged shard.
        ConfigError: it does not fit into the memory, training diverged, or the folder holds the
            checkpoint of another run.
        BundleError: the checkpoint is damaged.
    """
    require_several(source)
    identity = {
        "config": to_dict(config),
        "memory": how.memory,
        "vectors": source.fingerprint,
        "shape": [len(source), source.width],
    }
    device = torch.device(device)
    way = _way(source, config, how, device, Checkpoint(run, {"way of": identity}, 0.0))
    checkpoint = Checkpoint(run, {**identity, "way": way}, how.checkpoint_seconds)
    codec = VAE.untrained(config, source.width, device)
    scaling = ScaledConfig(scale=config.scale)
    if way == "memory":
        x = gather(source, device)
        codec.scaled = Scaled.fit(x, scaling, device=device)
        codec.learn(codec.scaled.encode(x), checkpoint)
    else:
        home, rows = exact_device(device), min(config.batch, len(source))
        found, _ = passes.moments(source, rows, checkpoint, home)
        scaled = Scaled.of(scaling, found.mean.float(), found.variance.sqrt().float())
        codec.scaled = scaled.to(device)
        Training(codec, OnDisk(source, codec.scaled, config), checkpoint, large=True).run()
    codec.report["computation"] = {"way": way, "vectors": len(source)}
    return codec


def _way(
    source: Source, config: VAEConfig, how: StreamingConfig, device: torch.device, kept: Checkpoint
) -> Way:
    """The way of the run's first start, or the one that fits what the process has by now."""
    saved = kept.load("way")
    if saved is not None:
        found: Way = saved.facts["way"]
        return found
    with torch.device("meta"):
        codec = VAE(config, source.width, config.latents)
    way = choose_way(
        len(source),
        source.width,
        config.batch,
        4 * sum(parameter.numel() for parameter in codec.parameters()),
        bytes_left(how.memory, device),
        spill=kept.folder is not None,
    )
    kept.save("way", {}, way=way)
    return way


def choose_way(n: int, d: int, batch: int, weights: int, budget: int, *, spill: bool) -> Way:
    """All vectors in memory where that fits, else streamed.

    Args:
        n: number of vectors.
        d: their width.
        batch: vectors of a step.
        weights: bytes of the weights.
        budget: bytes that may be added to what the process has.
        spill: whether there is a folder for the best weights.

    Raises:
        ConfigError: neither fits.
    """
    in_memory = (_TRAINED + _BEST) * weights + 4 * _COPIES * n * d + _SLACK
    copies = _TRAINED if spill else _TRAINED + _BEST
    streamed = copies * weights + 4 * _BATCHES * min(n, batch) * d + _SLACK
    if in_memory <= budget:
        return "memory"
    if streamed <= budget:
        return "streamed"
    raise ConfigError(
        f"a VAE of {n} vectors of width {d} with {weights // 4} weights takes at least "
        f"{min(in_memory, streamed) / 1e9:.2f} GB beside the program's own, but "
        f"{max(budget, 0) / 1e9:.2f} GB are left: give it more memory, or ask for fewer latents"
    )
