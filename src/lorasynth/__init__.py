"""lorasynth: one reference image in, a LoRA file for a text-to-image diffusion model out."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorasynth.adapter import Adapter
    from lorasynth.core.card import Card
    from lorasynth.synthesizer import Synthesizer

__all__ = ["Adapter", "Card", "Synthesizer", "__version__"]

__version__ = "0.2.0"

_HOMES = {
    "Adapter": "lorasynth.adapter",
    "Card": "lorasynth.core.card",
    "Synthesizer": "lorasynth.synthesizer",
}


#: Libraries tell their makers of each use, or ask for news of themselves, unless these say no.
_QUIET = {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "NO_ALBUMENTATIONS_UPDATE": "1",
}
for _name, _value in _QUIET.items():
    os.environ.setdefault(_name, _value)


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: torch and diffusers take seconds to import."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
