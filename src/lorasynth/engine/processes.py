"""Several processes that train one model, as `accelerate launch` and torchrun start them.

Each holds the whole model, draws the whole batch from the step's stream and keeps its own rows, so
what is drawn does not depend on how many there are.  All have equally many rows, so the mean of
their gradients is the gradient of the whole batch.  With `accelerate launch --use_fsdp` each holds
only its part of the weights, gradients, moments and averages (FSDP2).
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorasynth.core.device import launched
from lorasynth.core.errors import ConfigError


@dataclass(frozen=True)
class Processes:
    """Process `index`, counted from 0, of `count`; `sharded`: with parts of the weights each."""

    index: int = 0
    count: int = 1
    sharded: bool = False

    @classmethod
    def here(cls, device: torch.device) -> "Processes":
        """Those of the launcher that started this process; one, where none did.

        Raises:
            ConfigError: FSDP is asked for, and not its version 2.
        """
        if launched() == 1:
            return cls()
        sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        if sharded and (version := os.environ.get("FSDP_VERSION", "1")) != "2":
            raise ConfigError(
                f"weights are shared out by FSDP2, but version {version} is asked for: launch with "
                "--use_fsdp --fsdp_version 2"
            )
        from accelerate import PartialState  # takes seconds

        state = PartialState(cpu=device.type == "cpu")
        return cls(state.process_index, state.num_processes, sharded)

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

    def agree(self, device: torch.device, *, wanted: bool) -> bool:
        """Whether it is to be done; where all must do it together, whether any of them wants it."""
        if not self.sharded:
            return wanted
        votes = torch.tensor(float(wanted), device=device)
        torch.distributed.all_reduce(votes)
        return bool(votes)

    def shard(self, model: nn.Module, device: torch.device) -> None:
        """Leave each process a part of a model's parameters, which `forward` alone gathers."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        fully_shard(model, mesh=init_device_mesh(device.type, (self.count,)))


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is in parts, gathered, for which all processes must ask; another as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def as_parts(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor in the parts and on the device of `like`."""
    tensor, mesh = tensor.to(like.device), getattr(like, "device_mesh", None)
    if mesh is None:
        return tensor
    from torch.distributed.tensor import distribute_tensor  # takes half a second

    places = getattr(like, "placements", None)
    return distribute_tensor(tensor, mesh, places, src_data_rank=None)


def end_of_launched() -> None:
    """Let go of the other processes, when the work that they share is done."""
    if launched() > 1:
        torch.distributed.destroy_process_group()
