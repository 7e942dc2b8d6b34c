"""LoRA files: one format per module behind one contract, found by the keys in a file."""

from lorasynth.adapter.files._safetensors import is_lora
from lorasynth.adapter.files.contract import FORMATS, LoraFile, LoraFormat
from lorasynth.adapter.files.registry import detect, get_format
from lorasynth.adapter.files.stencil import write_many

__all__ = ["FORMATS", "LoraFile", "LoraFormat", "detect", "get_format", "is_lora", "write_many"]
