"""Which device to compute on, in which precision, and whether its memory ran out."""

import os
from concurrent.futures import ProcessPoolExecutor

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lorasynth.core.errors import ConfigError, reason_of

#: In the messages of errors of a class that says nothing: of a CPU, and of Apple's MPS.
_NO_MEMORY = ("DefaultCPUAllocator", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch has an error of its own for that on CUDA alone."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bf16 matrix products are faster than fp32 ones, rather than emulated."""
    if device.type == "cpu":  # builds for other processors than x86 may lack these operators
        return (
            torch.backends.mkldnn.is_available()
            and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
            and bool(torch.cpu._is_avx512_bf16_supported())
        )
    return device.type == "cuda"


def exact_device(device: torch.device) -> torch.device:
    """Where to compute in float64 for a device: there, or on the CPU beside MPS, which has none."""
    return torch.device("cpu") if device.type == "mps" else device


def exact(x: Float[Tensor, "..."]) -> Float64[Tensor, "..."]:
    """A tensor in float64, where that can be had."""
    return x.to(exact_device(x.device), torch.float64)


def pick_device(name: str = "auto") -> torch.device:
    """Resolve `auto` to CUDA, then Apple's MPS, then CPU; pass other names to torch.

    Of several processes of a launcher, `auto` is each one's own GPU, or what the launcher wants.

    Raises:
        ConfigError: torch does not know the device, or it is not present.
    """
    if name == "auto":
        if launched() > 1:
            from accelerate import PartialState  # takes seconds

            own: torch.device = PartialState().device
            return own
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = reason_of(error)
        raise ConfigError(
            f"--device must be auto, cpu, mps or cuda[:N] and present here, but {name!r} is not "
            f"usable ({reason})"
        ) from error
    return device


def launched() -> int:
    """How many processes a launcher, such as accelerate's, started together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def worker_processes(count: int) -> ProcessPoolExecutor:
    """A pool of `count` processes, each with one thread of torch's.

    More than one would wait for ever: a forked process lacks the threads that its parent began.
    """
    return ProcessPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
