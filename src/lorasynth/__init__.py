"""lorasynth: one reference picture in, a LoRA file for a text-to-image diffusion model out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorasynth.adapter import Adapter
    from lorasynth.synthesizer import Synthesizer

__all__ = ["Adapter", "Synthesizer", "__version__"]

__version__ = "0.1.0"

_HOMES = {"Adapter": "lorasynth.adapter", "Synthesizer": "lorasynth.synthesizer"}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: torch and diffusers take seconds to import."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
