"""The named encoders that come with lorasynth, as `lorasynth conditions` lists them."""

from pathlib import Path

from lorasynth.condition.faces import FaceConfig, FaceEncoder
from lorasynth.condition.faces.insightface import LICENCE
from lorasynth.condition.named import NAMED, NamedEncoder, as_word
from lorasynth.condition.vision import VisionEncoder, named
from lorasynth.core.errors import ConfigError


def _dlib(argument: str) -> FaceConfig:
    if argument:
        raise ConfigError(f"the encoder dlib takes nothing after its name, but got {argument!r}")
    return FaceConfig(name="dlib")


def _insightface(pack: str) -> FaceConfig:
    folder = Path(pack).expanduser()
    spec = f"insightface:{folder.absolute() if pack and folder.is_dir() else pack}"
    return FaceConfig(name=as_word(f"insightface-{Path(pack).name}"), detector=spec, network=spec)


def _onnx(file: str) -> FaceConfig:
    if not file:
        raise ConfigError("the encoder onnx needs an ONNX file: as in onnx:arcface.onnx")
    path = Path(file).expanduser().absolute()
    return FaceConfig(name=as_word(path.stem), network=f"onnx:{path}")


NAMED.register("dlib")(
    NamedEncoder(
        configure=_dlib,
        build=FaceEncoder,
        spelling="dlib",
        embeds="faces, 150 pixels to 128",
        licence="CC0-1.0",
        packages=("dlib", "face_recognition_models"),
        extra="face",
        needs="extra face",
    )
)
NAMED.register("insightface")(
    NamedEncoder(
        configure=_insightface,
        build=FaceEncoder,
        spelling="insightface:PACK",
        embeds="faces, 112 pixels to 512",
        licence=LICENCE,
        packages=("insightface", "onnx", "onnxruntime"),
        extra="insightface",
        needs="extra insightface; the pack, fetched on first use",
    )
)
NAMED.register("onnx")(
    NamedEncoder(
        configure=_onnx,
        build=FaceEncoder,
        spelling="onnx:FILE",
        embeds="faces; the file says the sizes",
        licence="its own",
        packages=("onnx", "onnxruntime", "dlib", "face_recognition_models"),
        extra="face",
        needs="extra face; an ArcFace file",
    )
)
for _name, _example in (("clip", "MIT for OpenAI's"), ("dino", "Apache-2.0 for DINOv2")):
    NAMED.register(_name)(
        NamedEncoder(
            configure=named,
            build=VisionEncoder.fetch,
            spelling=f"{_name}:MODEL",
            embeds="anything; the model says the sizes",
            licence=f"its own: {_example}",
            packages=("transformers",),
            extra=None,
            needs="the model, fetched on first use",
        )
    )
