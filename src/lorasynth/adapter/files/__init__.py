"""LoRA files: one format per module behind one contract, found by the keys in a file."""

from lorasynth.adapter.files.contract import FORMATS, LoraFile, LoraFormat
from lorasynth.adapter.files.registry import detect, get_format

__all__ = ["FORMATS", "LoraFile", "LoraFormat", "detect", "get_format"]
