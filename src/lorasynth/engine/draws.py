"""The random numbers of a fleet's training, drawn from one set of streams per subject.

What subject s draws at step i depends on (seed, s, i) and the `Descent` alone: not on the other
subjects of its fleet, their order, the device, or the number of steps after i.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int64, Real
from torch import Tensor

from lorasynth.core.randomness import torch_stream
from lorasynth.engine.descent import Descent

#: Draws times of some shape from a stream, as a base model does.
DrawTimes: TypeAlias = Callable[[Sequence[int], torch.Generator], Tensor]

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
    config: Descent,
    subject_ids: Sequence[str],
    image_counts: Sequence[int],
    *,
    draw_times: DrawTimes,
    latent_shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[Draw]:
    """Yield the draws of each step of `config`, on `device`, with noise in `dtype`."""
    n, shape = len(subject_ids), (config.steps, config.images_per_step)

    def stacked(values: list[Tensor]) -> Tensor:  # (steps, n, m); one value serves all subjects
        return torch.stack(values, dim=1).expand(-1, n, -1).to(device)

    noise_paths = [("subject", name) for name in subject_ids]
    if config.noise == "shared":
        noise_paths = [("shared", "noise")]
    streams = [torch_stream(config.seed, *path, "noise") for path in noise_paths]
    times = stacked(
        [draw_times(shape, torch_stream(config.seed, *path, "timesteps")) for path in noise_paths]
    )
    images = stacked(
        [
            _rounds(count, shape, torch_stream(config.seed, "subject", name, "pictures"))
            for name, count in zip(subject_ids, image_counts, strict=True)
        ]
    )
    dropped = stacked(
        [
            torch.rand(shape, generator=torch_stream(config.seed, "subject", name, "captions"))
            < config.caption_dropout
            for name in subject_ids
        ]
    )
    for step in range(config.steps):
        if step % NOISE_CHUNK == 0:
            size = (NOISE_CHUNK, config.images_per_step, *latent_shape)
            chunk = torch.stack([torch.randn(size, generator=s) for s in streams], dim=1)
            chunk = chunk.to(device, dtype).expand(-1, n, *size[1:])
        yield Draw(images[step], times[step], chunk[step % NOISE_CHUNK], dropped[step])


def _rounds(
    count: int, shape: tuple[int, int], stream: torch.Generator
) -> Int64[Tensor, "steps m"]:
    """Indices of `count` images, shuffled anew in each round through them all."""
    rounds = -(-shape[0] * shape[1] // count)
    order = torch.rand(rounds, count, generator=stream, dtype=torch.float64).argsort(dim=1)
    return order.flatten()[: shape[0] * shape[1]].reshape(shape)
