"""Image encoders of transformers (CLIP, SigLIP, DINO): conditions that are not faces."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from lorasynth.condition.contract import ENCODERS, ConditionEncoder, as_word, saved_config
from lorasynth.condition.trunks import unit_batches
from lorasynth.core import config as configs
from lorasynth.core.errors import BundleError, ConfigError, reason_of
from lorasynth.core.places import HUB, pretrained, public_name
from lorasynth.core.weights import fingerprint, load_weights, save_module

_Colour = tuple[float, float, float]
_WEIGHTS = "model.safetensors"
#: Images that the network sees at once.
_BATCH = 64
#: By the beginning of a name on the hub.
_LICENCES = {
    "openai/clip": "MIT",
    "laion/CLIP": "MIT",
    "facebook/dinov2": "Apache-2.0",
    "google/siglip": "Apache-2.0",
}


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """What an image encoder is.  None: what the model itself says.

    Attributes:
        name: written into files that depend on it.
        model: a folder, or hub:owner/name, that transformers loads.
        licence: of the weights.
        image_size: in pixels.
        mean: of red, green and blue (0 to 1), which is subtracted.
        std: what they are then divided by.
        width: of an embedding.
        architecture: the model's own config; None until it was loaded.
    """

    name: str
    model: str
    licence: str = "that of its model card"
    image_size: int | None = None
    mean: _Colour | None = None
    std: _Colour | None = None
    width: int | None = None
    architecture: dict[str, Any] | None = None


class VisionEncoder(ConditionEncoder, nn.Module):
    """Embeds images of anything.

    Args:
        config: whole, as `resolved` makes it.
        network: what it names, from transformers.

    Raises:
        ConfigError: the network does not embed images.
        BundleError: its embeddings have another width.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(self, config: VisionConfig, network: nn.Module) -> None:
        super().__init__()
        assert config.image_size
        assert config.mean
        assert config.std
        self.name = config.name
        self.licence = config.licence
        self.image_size = config.image_size
        self.network = network
        self.register_buffer("_mean", torch.tensor(config.mean)[:, None, None], persistent=False)
        self.register_buffer("_std", torch.tensor(config.std)[:, None, None], persistent=False)
        self.width = self._width(config.model)
        if config.width not in (None, self.width):
            raise BundleError(
                f"the encoder {config.name!r} must have the width {config.width}, but has "
                f"{self.width}: its config and its weights come from different models"
            )
        self.config = replace(config, width=self.width)

    def _width(self, model: str) -> int:
        grey = torch.zeros(1, 3, self.image_size, self.image_size)
        try:
            found = self.eval()(grey)
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise ConfigError(
                f"an image encoder embeds images, but {model!r} cannot "
                f"({reason_of(error)}): give the name of a CLIP, SigLIP or DINO model"
            ) from error
        return int(found.shape[1])

    @override
    def _fingerprint(self) -> str:
        """Of the weights, and how images are prepared for them."""
        parts = (fingerprint(self), self.image_size, self.config.mean, self.config.std)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b m"]:
        """Unit embeddings of images from -1 to 1: CLIP's projection, else the class token."""
        found = self.network(pixel_values=((images + 1) / 2 - self._mean) / self._std)
        embedding: Tensor | None = getattr(found, "image_embeds", None)
        if embedding is None and type(self.network).__name__ == "SiglipVisionModel":
            embedding = found.pooler_output  # SigLIP has no class token
        if embedding is None:
            embedding = found.last_hidden_state[:, 0]
        return functional.normalize(embedding.float(), dim=1)

    @override
    def embed(self, images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b m"]:
        """Embed images as unit vectors on the CPU, in batches."""
        parts = unit_batches(images, self.image_size, self._mean.device, _BATCH)
        return torch.cat([self(part).cpu() for part in parts])

    @override
    def save(self, folder: Path) -> None:
        """Write config and weights (fp16) to a folder, which then needs no hub."""
        kind = {"kind": "vision", **configs.to_dict(self.config)}
        save_module(folder, self, _WEIGHTS, kind, half=True)

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> "VisionEncoder":
        """Read an encoder from a folder, ready for use on a device.

        Raises:
            BundleError: its weights are not those of its config.
            ConfigError: its config is not that of an image encoder.
        """
        config = configs.from_dict(VisionConfig, saved_config(folder))
        encoder = cls(config, _built(config))
        load_weights(encoder, folder / _WEIGHTS)
        return encoder.eval().to(device)

    @classmethod
    def fetch(cls, config: VisionConfig, device: torch.device) -> "VisionEncoder":
        """Load a model from a folder or the Hugging Face hub, ready for use on a device.

        Raises:
            BundleError: it is neither here nor there, or lacks weights.
            ConfigError: it does not embed images.
        """
        network, processing = _fetched(config.model)
        whole = _resolved(config, network.config, processing)
        return cls(whole, network).eval().to(device)


def named(model: str) -> VisionConfig:
    """The config of a model by its name.

    Raises:
        ConfigError: there is no name.
    """
    if not model:
        raise ConfigError(
            "an image encoder needs the name or folder of a model: as in "
            "clip:hub:openai/clip-vit-large-patch14 or dino:hub:facebook/dinov2-base"
        )
    name = model.removeprefix(HUB)
    licences = [value for start, value in _LICENCES.items() if name.startswith(start)]
    config = VisionConfig(name=as_word(model.rstrip("/").split("/")[-1]), model=model)
    return replace(config, licence=licences[0]) if licences else config


def _class_of(kind: str) -> tuple[Any, dict[str, bool]]:
    """What holds the image half of a model, with CLIP's projection; the Auto class runs no code."""
    import transformers

    if kind == "clip_vision_model":
        return transformers.CLIPVisionModelWithProjection, {}
    return transformers.AutoModel, {"trust_remote_code": False}


def _built(config: VisionConfig) -> nn.Module:
    """A network with the config's architecture, and weights that mean nothing yet."""
    import transformers

    stated = dict(config.architecture or {})
    if "auto_map" in stated:
        raise ConfigError(
            f"an encoder's own code is never run, but the architecture of {config.name!r} has "
            "auto_map: use a model that transformers knows"
        )
    kind = str(stated.pop("model_type", None))
    try:
        architecture = transformers.AutoConfig.for_model(kind, **stated)
        build, own_code = _class_of(kind)
        make = build.from_config if own_code else build
        network: nn.Module = make(architecture, **own_code)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"an image encoder needs an architecture that transformers knows, but {config.name!r} "
            f"has {kind!r} ({reason_of(error)})"
        ) from error
    return network.eval().requires_grad_(requires_grad=False)


def _fetched(model: str) -> tuple[Any, dict[str, Any]]:
    """The network, and how its images are prepared (empty where that is not said)."""
    import transformers
    from transformers.image_processing_base import ImageProcessingMixin

    model, local = pretrained(model, "an image encoder", BundleError)
    try:
        stated = transformers.AutoConfig.from_pretrained(model, trust_remote_code=False, **local)
        own = getattr(stated, "vision_config", stated)
        if hasattr(stated, "projection_dim"):
            own.projection_dim = stated.projection_dim
        kind, own_code = _class_of(own.model_type)
        network, report = kind.from_pretrained(
            model,
            config=own,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
            **local,
            **own_code,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise BundleError(
            "an image encoder must be a folder or hub:owner/name of transformers with weights in "
            f"safetensors, but {model!r} is none ({reason_of(error)})"
        ) from error
    if missing := sorted(key for key in report["missing_keys"] if "pooler" not in key):
        raise BundleError(
            f"an image encoder must have all its weights, but {model!r} lacks {len(missing)}, the "
            f"first {missing[0]}: it is another kind of model"
        )
    try:
        processing, _ = ImageProcessingMixin.get_image_processor_dict(model, **local)
    except OSError:
        processing = {}
    return network.requires_grad_(requires_grad=False), dict(processing)


def _resolved(config: VisionConfig, own: Any, processing: dict[str, Any]) -> VisionConfig:
    """The config with what the model says in place of each None."""
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    crop = processing.get("crop_size") or processing.get("size") or {}
    side = crop if isinstance(crop, int) else crop.get("height") or crop.get("shortest_edge")
    size = config.image_size or side or getattr(own, "image_size", None)
    if not isinstance(size, int):
        raise ConfigError(
            f"an image encoder needs the size of its images, but {config.model!r} does not say "
            "it: give a CLIP, SigLIP or DINO model, or say --image-size 224 to encoders make"
        )
    return replace(
        config,
        image_size=size,
        mean=config.mean or tuple(processing.get("image_mean") or IMAGENET_DEFAULT_MEAN),
        std=config.std or tuple(processing.get("image_std") or IMAGENET_DEFAULT_STD),
        architecture={k: v for k, v in own.to_dict().items() if k != "_name_or_path"},
        model=public_name(config.model),
    )


ENCODERS.register("vision")(VisionEncoder.load)
