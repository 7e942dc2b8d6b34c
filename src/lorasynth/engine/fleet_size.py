"""How many adapters fit into memory at once: measured by a trial, since no formula knows a model.

Two adapters take two steps on their real images, which allocates everything that training ever
holds.  Half of what that needed beyond what was in use before counts as the memory of one adapter;
what two adapters share is counted too, so the estimate errs toward small fleets.  A fleet that does
not fit after all is halved.
"""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from lorasynth.core.device import is_out_of_memory

#: Larger fleets are not faster per adapter, and more is lost when a run is killed.
LARGEST_ON_CPU, LARGEST = 32, 256
#: Of the free memory, for one fleet; samples of the quality gate and other programs need some.
_SHARE = 0.7


def fitting_size(trial: Callable[[], object], device: torch.device) -> int:
    """The largest fleet that fits into the free memory of a device.

    Args:
        trial: trains two adapters for two steps.
        device: where it trains.
    """
    largest = LARGEST_ON_CPU if device.type == "cpu" else LARGEST
    try:
        needed = peak_memory(trial, device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return 1
    free = free_memory(device)
    if needed is None or free is None:
        return min(largest, LARGEST_ON_CPU)
    each = max(needed / 2, 1.0)
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


def peak_memory(action: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that an action needed at its peak, beyond what was in use; None if not known."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return torch.cuda.max_memory_allocated(device) - before
    if device.type == "mps":  # which keeps what is freed for later, so that it counts too
        empty_cache(device)
        before = torch.mps.driver_allocated_memory()
        action()
        return torch.mps.driver_allocated_memory() - before
    measurable = device.type == "cpu" and _forget_peak()
    status = Path("/proc/self/status")
    before = _kibibytes(status, "VmRSS") or 0
    action()
    peak = _kibibytes(status, "VmHWM")
    return max(peak - before, 0) if measurable and peak is not None else None


def empty_cache(device: torch.device) -> None:
    """Give back what torch keeps for later on a device."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).empty_cache()


def _forget_peak() -> bool:
    """Let the largest resident size of this process count from now; whether that can be done.

    Memory that was freed, but is kept for later by the C library, is given back first: it would not
    be counted when it is used again.  So is what only cycles hold, which Python may free meanwhile.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError, TypeError):
        # another system (`CDLL(None)` is a TypeError on Windows), C library, or not allowed
        return False
    return True


def _kibibytes(path: Path, name: str) -> int | None:
    """Bytes in a line such as `MemAvailable:  1234 kB`."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found[0]) * 1024 if found else None


def _left_to_container(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a control group still allows; files that it has read can be let go."""
    try:
        limit = int((folder / "memory.max").read_text())  # "max" where there is none
        used = int((folder / "memory.current").read_text())
        facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return max(limit - used + int(facts.get("inactive_file", 0)), 0)
