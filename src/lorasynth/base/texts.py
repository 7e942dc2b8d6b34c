"""Prompts as a base model's denoiser takes them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor


@dataclass(frozen=True)
class Texts:
    """b encoded prompts.

    A Stable Diffusion model takes one tensor, others take several; whoever carries prompts from
    where they are encoded to where they are used needs to know the number of prompts alone.

    Attributes:
        parts: what the denoiser takes, by the names of its arguments; the first axis of each
            tensor runs over the prompts.
    """

    parts: Mapping[str, Tensor]

    def __len__(self) -> int:
        """The number of prompts."""
        return len(next(iter(self.parts.values())))

    def __getitem__(self, rows: slice | Int64[Tensor, " n"]) -> "Texts":
        """Some of the prompts."""
        return self.map(lambda part: part[rows])

    @classmethod
    def cat(cls, several: Sequence["Texts"]) -> "Texts":
        """The prompts of at least one `Texts`, one after another."""
        names = several[0].parts
        return cls({name: torch.cat([one.parts[name] for one in several]) for name in names})

    def map(self, change: Callable[[Tensor], Tensor]) -> "Texts":
        """The same change of every tensor."""
        return Texts({name: change(part) for name, part in self.parts.items()})

    def replaced(self, rows: Bool[Tensor, " b"], other: "Texts") -> "Texts":
        """These prompts, but those `rows` taken from `other`, which holds one or as many."""
        return Texts(
            {
                name: torch.where(rows.view(-1, *[1] * (part.dim() - 1)), other.parts[name], part)
                for name, part in self.parts.items()
            }
        )

    def interleaved(self, other: "Texts", count: int) -> "Texts":
        """Each of `count` blocks of these prompts, followed by that of `other`."""
        names = self.parts
        return Texts({n: interleave(self.parts[n], other.parts[n], count) for n in names})


def interleave(first: Tensor, second: Tensor, count: int) -> Tensor:
    """Put each of `count` blocks of `first` (b ...) before that of `second`: (b + b' ...)."""
    blocks = [part.unflatten(0, (count, -1)) for part in (first, second)]
    return torch.cat(blocks, dim=1).flatten(0, 1)


def separate(both: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The inverse of `interleave` of two tensors of one size."""
    first, second = both.unflatten(0, (count, -1)).chunk(2, dim=1)
    return first.flatten(0, 1), second.flatten(0, 1)
