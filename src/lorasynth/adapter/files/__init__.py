"""LoRA files: one reader for every spelling, and the formats that are written."""

from lorasynth.adapter.files.container import is_lora
from lorasynth.adapter.files.formats import (
    FORMATS,
    PROGRAMS,
    LoraFormat,
    format_for,
    get_format,
    universal,
)
from lorasynth.adapter.files.reader import LoraFile, read
from lorasynth.adapter.files.stencil import write_many

__all__ = [
    "FORMATS",
    "PROGRAMS",
    "LoraFile",
    "LoraFormat",
    "format_for",
    "get_format",
    "is_lora",
    "read",
    "universal",
    "write_many",
]
