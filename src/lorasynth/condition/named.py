"""Encoders by name: `dlib`, `onnx:FILE`, `clip:MODEL`, beside the folders that `save` writes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorasynth.condition.contract import ENCODERS, ConditionEncoder
from lorasynth.condition.packages import is_installed
from lorasynth.core.config import read_json
from lorasynth.core.errors import BundleError, ConfigError
from lorasynth.core.places import local
from lorasynth.core.registry import Registry
from lorasynth.core.weights import CONFIG_FILE, described


@dataclass(frozen=True, kw_only=True)
class NamedEncoder:
    """An encoder that comes trained; all but the two functions is for a reader.

    Attributes:
        configure: the config of what follows the name and a colon.
        build: an encoder of a config, on a device.
        spelling: how it is written, as `insightface:PACK`.
        embeds: what it knows, from how many pixels to how many numbers, in words.
        licence: of the weights.
        packages: what it imports.
        extra: of lorasynth, which installs them; None: lorasynth itself.
        needs: in words, what must be there beside lorasynth itself.
    """

    configure: Callable[[str], Any]
    build: Callable[[Any, torch.device], ConditionEncoder]
    spelling: str
    embeds: str
    licence: str
    packages: tuple[str, ...]
    extra: str | None
    needs: str

    @property
    def missing(self) -> list[str]:
        """The packages that are not installed."""
        return [package for package in self.packages if not is_installed(package)]


#: Encoders by what stands before the colon.
NAMED: Registry[NamedEncoder] = Registry(
    "condition encoder", "lorasynth.named_encoders", "lorasynth.condition.catalogue"
)


def load_encoder(source: Path | str, device: torch.device | str = "cpu") -> ConditionEncoder:
    """Load an encoder: from a folder of any kind that `save` wrote, or by name.

    Args:
        source: the folder, or the name.
        device: where it computes, if it can there; embeddings are on the CPU.

    Raises:
        BundleError: it is neither a whole encoder's folder nor a name, or something that it needs
            is missing.
        ConfigError: what follows the name is not what that kind of encoder takes.
    """
    folder, device = local(source), torch.device(device)
    if (folder / CONFIG_FILE).exists() or not is_name(source):
        return _from_folder(folder, device)
    named, argument = by_name(source)
    return named.build(named.configure(argument), device)


def as_word(text: str) -> str:
    """A text as an encoder's name: letters, digits and hyphens."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text)


def is_name(source: Path | str) -> bool:
    """Whether a source begins with the name of an encoder."""
    return str(source).partition(":")[0] in NAMED.names()


def by_name(source: Path | str) -> tuple[NamedEncoder, str]:
    """A named encoder, and what follows its name.

    Raises:
        ConfigError: no encoder has that name.
    """
    name, _, argument = str(source).partition(":")
    return NAMED.get(name), argument


def _from_folder(folder: Path, device: torch.device) -> ConditionEncoder:
    try:
        load = ENCODERS.get(str(read_json(folder / CONFIG_FILE).get("kind")))
        with described(folder, "a condition encoder"):
            return load(folder, device)
    except ConfigError as error:
        raise BundleError(
            f"{folder} must hold a condition encoder (or be one of the names that `lorasynth "
            f"conditions` lists), but does not: {error}"
        ) from error
