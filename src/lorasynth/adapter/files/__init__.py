"""LoRA files: one format per module behind one contract, found by the keys in a file."""

from lorasynth.adapter.files.contract import LoraFormat
from lorasynth.adapter.files.registry import detect, formats, get_format

__all__ = ["LoraFormat", "detect", "formats", "get_format"]
