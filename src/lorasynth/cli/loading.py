"""Load a base model without the chatter and progress bars of its libraries."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorasynth.base import BaseModel


def quiet() -> None:
    """Let diffusers and transformers report errors only; call before they are imported."""
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")


def load_base(name: Path, device: str) -> "BaseModel":
    """Load a base model to a device by its name.

    Raises:
        BaseModelError: see `BaseModel.load`.
        ConfigError: see `pick_device`.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from lorasynth.base import BaseModel
    from lorasynth.device import pick_device

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    return BaseModel.load(name, pick_device(device))
