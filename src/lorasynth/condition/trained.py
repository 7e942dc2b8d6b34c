"""An encoder that was trained here on images of subjects (`lorasynth encoders train`)."""

from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from lorasynth.condition.config import TrainedConfig
from lorasynth.condition.contract import ENCODERS, ConditionEncoder, saved_config
from lorasynth.condition.trunks import TRUNKS, unit_batches
from lorasynth.core import config as configs
from lorasynth.core.weights import fingerprint, load_module, save_module

_WEIGHTS = "model.safetensors"


class TrainedEncoder(ConditionEncoder, nn.Module):
    """Embeds images of subjects, and says whether an image shows one."""

    advice = (
        "for images of another domain train a synthesizer on them (`lorasynth pretrain`, see "
        "docs/quickstart.md)"
    )

    def __init__(self, config: TrainedConfig) -> None:
        super().__init__()
        self.config = config
        self.name, self.domain, self.licence = config.name, config.domain, config.licence
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
        """Unit embeddings, and the logit of there being a subject."""
        features = self.trunk(images)
        embedding = functional.normalize(self.embedding(features).float(), dim=1)
        return embedding, self.detector(features).float().squeeze(1)

    @override
    @torch.no_grad()
    def embed(self, images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b m"]:
        """Embed images as unit vectors on the CPU, in batches."""
        return torch.cat([self(part)[0].cpu() for part in self._batches(images)])

    @override
    @torch.no_grad()
    def presence(self, images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, " b"]:
        return torch.cat([self(part)[1].sigmoid().cpu() for part in self._batches(images)])

    @override
    @torch.no_grad()
    def look(
        self, images: UInt8[Tensor, "b h w 3"]
    ) -> tuple[Float[Tensor, "b m"], Float[Tensor, " b"]]:
        embeddings, logits = zip(*(self(part) for part in self._batches(images)), strict=True)
        return torch.cat(embeddings).cpu(), torch.cat(logits).sigmoid().cpu()

    def _batches(
        self, images: UInt8[Tensor, "b h w 3"]
    ) -> Iterator[Float[Tensor, "part 3 side side"]]:
        return unit_batches(images, self.image_size, self.detector.weight.device)

    @override
    def save(self, folder: Path) -> None:
        """Write config and weights (fp16) to a folder."""
        stated = {"kind": "trained", **configs.to_dict(self.config)}
        save_module(folder, self, _WEIGHTS, stated, half=True)

    @classmethod
    def load(
        cls, folder: Path, device: torch.device, defaults: TrainedConfig | None = None
    ) -> "TrainedEncoder":
        """Read an encoder from a folder, ready for use on a device.

        Args:
            folder: with its config and its weights.
            device: where it computes.
            defaults: what a config does not say.

        Raises:
            BundleError: its weights are not those of a trained encoder.
            ConfigError: its config is not that of one.
        """
        stated = configs.to_dict(defaults or TrainedConfig()) | saved_config(folder)
        config = configs.from_dict(TrainedConfig, stated)
        return load_module(lambda: cls(config), folder / _WEIGHTS).to(device)


ENCODERS.register("trained")(TrainedEncoder.load)
