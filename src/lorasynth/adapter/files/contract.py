"""What a LoRA file format must do, and the register of formats."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lorasynth.adapter.adapter import Adapter
from lorasynth.errors import FileFormatError
from lorasynth.registry import Registry


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """What a file holds beside its adapter.

    Attributes:
        adapter: with every scale folded in.
        alphas: alpha of each layer of the file, under its name there.
        header: entries of the safetensors header.
    """

    adapter: Adapter
    alphas: Mapping[str, float]
    header: Mapping[str, str]


class LoraFormat(ABC):
    """Reads and writes adapters in one key naming.

    Every format folds alpha/r into B when it reads and writes alpha = rank, so that no loader can
    lose the scale; ΔW, the metadata and the floating-point type survive a round trip.
    """

    #: Ending of the names of what it writes; empty where that is a folder.
    suffix: ClassVar[str] = ".safetensors"

    @abstractmethod
    def recognises(self, keys: Collection[str]) -> bool:
        """Whether some keys of a safetensors file are named as this format names them."""

    @abstractmethod
    def open(self, path: Path) -> LoraFile:
        """Read a file.

        Raises:
            FileFormatError: the file is damaged, contradicts itself or has unknown keys.
        """

    def read(self, path: Path) -> Adapter:
        """Read an adapter; raises what `open` does."""
        return self.open(path).adapter

    def target(self, path: Path) -> Path:
        """The file or folder that `write` writes, known before there is an adapter.

        Raises:
            FileFormatError: the name is that of something else.
        """
        if path.suffix != self.suffix:
            raise FileFormatError(
                f"a {FORMATS.name_of(type(self))} file must be named *{self.suffix}, but got {path}"
            )
        return path

    @abstractmethod
    def write(self, adapter: Adapter, path: Path) -> Path:
        """Write an adapter atomically and return its `target`."""


FORMATS: Registry[type[LoraFormat]] = Registry("LoRA format", "lorasynth.formats")
