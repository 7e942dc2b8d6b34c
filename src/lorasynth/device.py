"""Which device to compute on."""

import torch

from lorasynth.errors import ConfigError


def pick_device(name: str = "auto") -> torch.device:
    """Resolve `auto` to CUDA, then Apple's MPS, then CPU; pass other names to torch.

    Raises:
        ConfigError: torch does not know the device, or it is not present.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"--device must be auto, cpu, mps or cuda[:N] and present here, but {name!r} is not "
            f"usable ({reason})"
        ) from error
    return device
