"""Several processes that train one model, as `accelerate launch` and torchrun start them.

Each holds the whole model, draws the whole batch from the step's stream and keeps its own rows, so
what is drawn does not depend on how many there are.  All have equally many rows, so the mean of
their gradients is the gradient of the whole batch.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lorasynth.core.device import launched
from lorasynth.core.errors import ConfigError


@dataclass(frozen=True)
class Processes:
    """Process `index`, counted from 0, of `count`."""

    index: int = 0
    count: int = 1

    @classmethod
    def here(cls, device: torch.device) -> "Processes":
        """Those of the launcher that started this process; one, where none did."""
        if launched() == 1:
            return cls()
        from accelerate import PartialState  # takes seconds

        state = PartialState(cpu=device.type == "cpu")
        return cls(state.process_index, state.num_processes)

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.index == 0

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

    def share(self, whole: Tensor) -> Tensor:
        """This process's rows of a tensor whose first axis is the batch."""
        rows = len(whole) // self.count
        return whole[self.index * rows : (self.index + 1) * rows]

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.count > 1:
            torch.distributed.barrier()

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Put the mean over all processes in place of tensors, in one exchange."""
        kept = list(tensors)
        if self.count == 1 or not kept:
            return
        flat = torch.cat([tensor.flatten() for tensor in kept])
        torch.distributed.all_reduce(flat)
        flat /= self.count
        for tensor, mean in zip(kept, flat.split([t.numel() for t in kept]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def end_of_launched() -> None:
    """Let go of the other processes, when the work that they share is done."""
    if launched() > 1:
        torch.distributed.destroy_process_group()
