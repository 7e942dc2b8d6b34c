"""A process's share of the global batch: several processes learn what one would.

Each process draws the whole batch from the step's stream and keeps its own rows, so what is drawn
does not depend on how many there are.  As every share has equally many rows, the mean over
processes of gradients and losses that are means over rows is that of the whole batch.
"""

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from lorasynth.core.errors import ConfigError

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class Share:
    """Rows of process `index`, counted from 0, of `count` processes."""

    index: int
    count: int

    def require_even(self, batch: int) -> None:
        """Refuse a batch of which the processes would have unequal shares.

        Raises:
            ConfigError: the batch is no multiple of the number of processes.
        """
        if batch % self.count:
            raise ConfigError(
                f"optimisation.batch must be a multiple of the number of processes, but {batch} "
                f"rows are to be shared by {self.count}: use, for example, "
                f"{-(-batch // self.count) * self.count}"
            )

    def of(self, whole: Tensor) -> Tensor:
        """This process's rows of a tensor whose first axis is the batch."""
        rows = len(whole) // self.count
        return whole[self.index * rows : (self.index + 1) * rows]


class SharedDropout(nn.Dropout):
    """Dropout that draws for the whole batch, as one process would, and uses its own rows."""

    def __init__(self, p: float, share: Share) -> None:
        super().__init__(p)
        self.share = share

    @override
    def forward(self, input: Tensor) -> Tensor:
        """Drop numbers of this process's rows, in training."""
        if not self.training:
            return input
        whole = torch.ones_like(input).repeat(self.share.count, *[1] * (input.dim() - 1))
        return input * self.share.of(functional.dropout(whole, self.p))


def share_dropout(module: ModuleT, share: Share) -> ModuleT:
    """Exchange every `nn.Dropout` in a module where there is more than one process."""
    if share.count > 1:
        for parent in list(module.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Dropout:
                    setattr(parent, name, SharedDropout(child.p, share))
    return module
