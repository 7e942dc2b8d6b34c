"""The random numbers of a fleet's training, drawn from one set of streams per subject.

What subject s draws at step i depends on (seed, s, i) and the optimiser's config alone: not on the
other subjects of its fleet, their order, the device, or the number of steps after i.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, Real
from torch import Tensor

from lorasynth.base import BaseModel
from lorasynth.core.randomness import torch_stream
from lorasynth.engine.recipe import OptimizerConfig

#: Steps whose noise is drawn in one call per subject.  Part of the streams: the vectorised
#: generator gives other numbers for other lengths, so a change makes other adapters.
NOISE_CHUNK = 16


class Draw(NamedTuple):
    """The draws of one step for n subjects with m samples each.

    Attributes:
        images: index among the subject's own images.
        times: to denoise at, as the base model counts them.
        noise: standard normal.
        dropped: whether the caption is replaced by the empty one.
    """

    images: Int64[Tensor, "n m"]
    times: Real[Tensor, "n m"]
    noise: Float[Tensor, "n m c h w"]
    dropped: Bool[Tensor, "n m"]


def draw_steps(
    base: BaseModel,
    config: OptimizerConfig,
    subject_ids: Sequence[str],
    image_counts: Sequence[int],
) -> Iterator[Draw]:
    """Yield the draws of each step of `config`, on the base model's device and in its precision."""
    n, shape = len(subject_ids), (config.steps, config.images_per_step)
    names = [("subject", name) for name in subject_ids]
    noisy = names if config.noise == "own" else [("shared", "noise")]

    def stacked(values: list[Tensor]) -> Tensor:  # (steps, n, m); one value serves all subjects
        return torch.stack(values, dim=1).expand(-1, n, -1).to(base.device)

    def stream(path: Sequence[str], what: str) -> torch.Generator:
        return torch_stream(config.seed, *path, what)

    streams = [stream(path, "noise") for path in noisy]
    times = stacked([base.draw_times(shape, stream(path, "timesteps")) for path in noisy])
    images = stacked(
        [
            _rounds(count, shape, stream(name, "pictures"))
            for name, count in zip(names, image_counts, strict=True)
        ]
    )
    dropped = stacked(
        [
            torch.rand(shape, generator=stream(name, "captions")) < config.caption_dropout
            for name in names
        ]
    )
    for step in range(config.steps):
        if step % NOISE_CHUNK == 0:
            size = (NOISE_CHUNK, config.images_per_step, *base.latent_shape)
            chunk = torch.stack([torch.randn(size, generator=s) for s in streams], dim=1)
            chunk = chunk.to(base.device, base.dtype).expand(-1, n, *size[1:])
        yield Draw(images[step], times[step], chunk[step % NOISE_CHUNK], dropped[step])


def _rounds(
    count: int, shape: tuple[int, int], stream: torch.Generator
) -> Int64[Tensor, "steps m"]:
    """Indices of `count` images, shuffled anew in each round through them all."""
    rounds = -(-shape[0] * shape[1] // count)
    order = torch.rand(rounds, count, generator=stream, dtype=torch.float64).argsort(dim=1)
    return order.flatten()[: shape[0] * shape[1]].reshape(shape)
