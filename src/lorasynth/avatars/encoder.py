"""The avatar encoder: a small network trained with the ArcFace loss that plays ArcFace's part."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from lorasynth.avatars.trunks import TRUNKS, unit_batches
from lorasynth.condition.contract import ConditionEncoder, saved_config
from lorasynth.core import config as configs
from lorasynth.core.weights import fingerprint, load_module, save_module


@dataclass(frozen=True, kw_only=True)
class AvatarEncoderConfig:
    """What an avatar encoder is.

    Attributes:
        name: written into files that depend on it.
        trunk: the architecture, by name.
        image_size: in pixels.
        width: of the embedding.
        features: of the last hidden layer, which the embedding and the face detector share.
    """

    name: str = "avatar"
    trunk: Literal["residual", "separable"] = "residual"
    image_size: int = 64
    width: int = 128
    features: int = 256


class AvatarEncoder(ConditionEncoder, nn.Module):
    """Embeds avatars, and says whether an image is one."""

    licence = "Apache-2.0"
    domain = "drawn avatars"
    advice = (
        "for other images train a synthesizer on such (`lorasynth pretrain`, docs/quickstart.md)"
    )

    def __init__(self, config: AvatarEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.name = config.name
        self.image_size = config.image_size
        self.width = config.width
        self.trunk = TRUNKS[config.trunk](config.image_size, config.features)
        self.embedding = nn.Sequential(
            nn.BatchNorm1d(config.features), nn.Linear(config.features, config.width)
        )
        self.detector = nn.Linear(config.features, 1)

    @override
    def _fingerprint(self) -> str:
        return fingerprint(self)

    def forward(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b m"], Float[Tensor, " b"]]:
        """Unit embeddings, and the logit of there being a face."""
        features = self.trunk(images)
        embedding = functional.normalize(self.embedding(features).float(), dim=1)
        return embedding, self.detector(features).float().squeeze(1)

    @override
    @torch.no_grad()
    def embed(self, images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b m"]:
        """Embed images as unit vectors on the CPU, in batches of 256."""
        return torch.cat([self(part)[0].cpu() for part in self._batches(images)])

    @override
    @torch.no_grad()
    def presence(self, images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, " b"]:
        """The probability that each image is a portrait."""
        return torch.cat([self(part)[1].sigmoid().cpu() for part in self._batches(images)])

    def _batches(
        self, images: UInt8[Tensor, "b h w 3"]
    ) -> Iterator[Float[Tensor, "part 3 side side"]]:
        return unit_batches(images, self.image_size, self.detector.weight.device)

    @override
    def save(self, folder: Path) -> None:
        """Write config and weights (fp16) to a folder."""
        kind = {"kind": "avatar", **configs.to_dict(self.config)}
        save_module(folder, self, "model.safetensors", kind, half=True)

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> "AvatarEncoder":
        """Read an encoder from a folder, ready for use on a device.

        Raises:
            BundleError: its weights are not those of an avatar encoder.
            ConfigError: its config is not that of one.
        """
        config = configs.from_dict(AvatarEncoderConfig, saved_config(folder))
        return load_module(lambda: cls(config), folder / "model.safetensors").to(device)
