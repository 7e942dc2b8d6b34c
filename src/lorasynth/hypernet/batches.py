"""Training batches: what is drawn at a step depends on nothing but the seed and the step."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lorasynth.core.errors import LibraryError


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Latents of N adapters and P conditions of each (embeddings of different images).

    Attributes:
        latents: in the codec's units.
        conditions: S must be N.
        held_out: of subjects that are not trained on, whose error says when to stop; None: there
            are none.

    Raises:
        LibraryError: there are fewer than two, or a value is not finite.
    """

    latents: Float[Tensor, "N k"]
    conditions: Float[Tensor, "S P m"]
    held_out: "TrainingSet | None" = None

    def __post_init__(self) -> None:
        latents, conditions = self.latents, self.conditions
        if len(latents) < 2 or len(conditions) != len(latents):
            raise LibraryError(
                "a hypernetwork is trained on two or more adapters with conditions for each, but "
                f"got {len(latents)} latents and {len(conditions)} rows of conditions"
            )
        if not (latents.isfinite().all() and conditions.isfinite().all()):
            raise LibraryError(
                "a hypernetwork is trained on finite numbers, but latents or conditions hold NaN "
                "or infinity: check the library and the encoder"
            )

    def to(self, device: torch.device) -> "TrainingSet":
        """The same on a device, in float32."""
        return replace(
            self,
            latents=self.latents.to(device, torch.float32),
            conditions=self.conditions.to(device, torch.float32),
        )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's data and noise.

    Attributes:
        latents: in the codec's units.
        condition: in the encoder's units.
        keep: rows whose condition is not dropped.
        t: times, one in each of b equal parts of [0, 1) (Kingma et al. 2021, app. I.1).
        eps: the noise on the latents.
    """

    latents: Float[Tensor, "b k"]
    condition: Float[Tensor, "b m"]
    keep: Bool[Tensor, " b"]
    t: Float[Tensor, " b"]
    eps: Float[Tensor, "b k"]

    def map(self, rows: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch of some rows: `rows` picks them from each of its tensors."""
        return replace(self, **{one.name: rows(getattr(self, one.name)) for one in fields(self)})


def draw_batch(data: TrainingSet, size: int, stream: torch.Generator, *, dropout: float) -> Batch:
    """Draw subjects, one condition of each, dropped conditions, times and noise.

    Args:
        data: what to draw from; the batch is on its device.
        size: b.
        stream: a generator on the CPU, so that draws are the same on any device.
        dropout: share of rows without condition.
    """
    device = data.latents.device
    subjects = torch.randint(len(data.latents), (size,), generator=stream).to(device)
    keep = torch.rand(size, generator=stream) >= dropout
    t = (torch.arange(size) + torch.rand(size, generator=stream)) / size
    eps = torch.randn(size, data.latents.shape[1], generator=stream)
    image = torch.randint(data.conditions.shape[1], (size,), generator=stream).to(device)
    return Batch(
        latents=data.latents[subjects],
        condition=data.conditions[subjects, image],
        keep=keep.to(device),
        t=t.to(device),
        eps=eps.to(device),
    )
