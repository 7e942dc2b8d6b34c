"""How many adapters fit into memory at once: measured by a trial, since no formula knows a model.

Two adapters take two steps on their real images, which allocates everything that training ever
holds.  Half of the tensors that lived at once (`plan.Tally`) counts as the memory of one adapter;
what two adapters share is counted too, so the estimate errs toward small fleets.  A fleet that does
not fit after all is halved.
"""

from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from lorasynth.base import BaseModel
from lorasynth.core.device import is_out_of_memory
from lorasynth.engine.plan import Tally

#: Larger fleets are not faster per adapter, and more is lost when a run is killed.
LARGEST_ON_CPU, LARGEST = 32, 256
#: Of the free memory, for one fleet; samples of the quality gate and other programs need some.
_SHARE = 0.7


def fitting_size(trial: Callable[[], object], base: BaseModel) -> int:
    """The largest fleet that fits into the free memory of a base model's device.

    Args:
        trial: trains two adapters of it for two steps.
        base: the base model.
    """
    largest = LARGEST_ON_CPU if base.device.type == "cpu" else LARGEST
    tally = Tally(*base._networks())
    try:
        with tally:
            trial()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return 1
    free = free_memory(base.device)
    if free is None:
        return min(largest, LARGEST_ON_CPU)
    each = max(tally.peak / 2, 1.0)
    return max(1, min(largest, int(_SHARE * free / each)))


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be allocated on a device; None if the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    if device.type != "cpu":
        return None
    stated, container = int(psutil.virtual_memory().available), _left_to_container()
    return stated if container is None else min(stated, container)


def empty_cache(device: torch.device) -> None:
    """Give back what torch keeps for later on a device."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).empty_cache()


def _left_to_container(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a control group still allows; files that it has read can be let go."""
    try:
        limit = int((folder / "memory.max").read_text())  # "max" where there is none
        used = int((folder / "memory.current").read_text())
        facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return max(limit - used + int(facts.get("inactive_file", 0)), 0)
