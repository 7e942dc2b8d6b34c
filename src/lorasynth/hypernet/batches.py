"""Training batches: what is drawn at a step depends on nothing but the seed and the step."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lorasynth.core.errors import LibraryError


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Latents of N adapters and P conditions of each (embeddings of different images).

    Attributes:
        latents: in the codec's units.
        conditions: S must be N; None to train without.
    """

    latents: Float[Tensor, "N k"]
    conditions: Float[Tensor, "S P m"] | None = None

    def __post_init__(self) -> None:
        conditions = self.latents[:, None] if self.conditions is None else self.conditions
        if len(self.latents) < 2 or len(conditions) != len(self.latents):
            raise LibraryError(
                "a hypernetwork is trained on two or more adapters with conditions for each, but "
                f"got {len(self.latents)} latents and {len(conditions)} rows of conditions"
            )
        if not (self.latents.isfinite().all() and conditions.isfinite().all()):
            raise LibraryError(
                "a hypernetwork is trained on finite numbers, but latents or conditions hold NaN "
                "or infinity: check the library and the encoder"
            )

    def to(self, device: torch.device) -> "TrainingSet":
        """The same on a device, in float32."""
        conditions = self.conditions
        return TrainingSet(
            latents=self.latents.to(device, torch.float32),
            conditions=None if conditions is None else conditions.to(device, torch.float32),
        )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's data and noise.

    Attributes:
        latents: in the codec's units.
        condition: in the encoder's units; None to train without.
        keep: rows whose condition is not dropped.
        t: times, one in each of b equal parts of the range (Kingma et al. 2021, app. I.1).
        eps: the noise on the latents.
        condition_noise: white noise for the condition, unit variance.
        subjects: rows of the training set; of a mixture, its first.
    """

    latents: Float[Tensor, "b k"]
    condition: Float[Tensor, "b m"] | None
    keep: Bool[Tensor, " b"]
    t: Float[Tensor, " b"]
    eps: Float[Tensor, "b k"]
    condition_noise: Float[Tensor, "b m"] | None
    subjects: Int[Tensor, " b"]

    def map(self, rows: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch of some rows: `rows` picks them from each of its tensors."""
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        return replace(self, **{k: rows(part) for k, part in parts.items() if part is not None})


def draw_batch(
    data: TrainingSet, size: int, stream: torch.Generator, *, dropout: float, mixing: float
) -> Batch:
    """Draw subjects, one condition of each, mixtures, dropped conditions, times and noise.

    Args:
        data: what to draw from.
        size: b.
        stream: a generator on the CPU, so that draws are the same on any device.
        dropout: share of rows without condition.
        mixing: share of rows that are convex mixtures of two subjects, in latent and condition.

    Returns:
        A batch on the data's device, with `t` uniform in [0, 1).
    """
    device = data.latents.device
    rows = torch.randint(len(data.latents), (2, size), generator=stream).to(device)
    weight = torch.rand(size, generator=stream)
    mixed = torch.rand(size, generator=stream) < mixing
    weight = torch.where(mixed, weight, 1.0).to(device)[:, None]
    keep = torch.rand(size, generator=stream) >= dropout
    t = (torch.arange(size) + torch.rand(size, generator=stream)) / size
    eps = torch.randn(size, data.latents.shape[1], generator=stream)
    first, second = data.latents[rows]
    condition = condition_noise = None
    if data.conditions is not None:
        pick = torch.randint(data.conditions.shape[1], (2, size), generator=stream).to(device)
        one, other = data.conditions[rows, pick]
        condition = _mix_conditions(one, other, weight)
        condition_noise = torch.randn(condition.shape, generator=stream).to(device)
    return Batch(
        latents=weight * first + (1 - weight) * second,
        condition=condition,
        keep=keep.to(device),
        t=t.to(device),
        eps=eps.to(device),
        condition_noise=condition_noise,
        subjects=rows[0],
    )


def _mix_conditions(
    first: Float[Tensor, "b m"], second: Float[Tensor, "b m"], weight: Float[Tensor, "b 1"]
) -> Float[Tensor, "b m"]:
    """A mixture whose length is the mixture of the lengths: unit embeddings stay on the sphere."""
    mixture = weight * first + (1 - weight) * second
    length = weight * first.norm(dim=1, keepdim=True)
    length = length + (1 - weight) * second.norm(dim=1, keepdim=True)
    scale = length / mixture.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return torch.where(weight == 1, first, mixture * scale)
