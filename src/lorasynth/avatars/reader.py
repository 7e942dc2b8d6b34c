"""A condition of what can be read off an image: the probability of each value of attributes."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from lorasynth.avatars.config import JudgeConfig
from lorasynth.avatars.judge import AttributeJudge
from lorasynth.avatars.pool import IDENTITY_LABELS
from lorasynth.condition import ConditionEncoder, NamedEncoder
from lorasynth.condition.contract import saved_config
from lorasynth.condition.trunks import unit_batches
from lorasynth.core import config as configs
from lorasynth.core.weights import fingerprint, load_weights, save_module

_NAME, _WEIGHTS = "reader", "model.safetensors"


class AttributeReader(ConditionEncoder):
    """What a trained network reads of hair, facial hair and glasses, as a unit vector.

    Use another network than the judge that measures.
    """

    licence = "Apache-2.0"

    def __init__(self, network: AttributeJudge, name: str = _NAME) -> None:
        self.network = network.eval()
        self.name = name
        self.image_size = network.config.image_size
        self.width = sum(map(len, IDENTITY_LABELS.values()))

    @override
    def _fingerprint(self) -> str:
        return fingerprint(self.network)

    @override
    @torch.no_grad()
    def embed(self, images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b m"]:
        """The probabilities of all values, in the order of `IDENTITY_LABELS`, of unit length."""
        device, rows = self.network.norm.weight.device, []
        for unit in unit_batches(images, self.image_size, device):
            logits = self.network(unit)
            read = torch.cat([logits[name].softmax(dim=1) for name in IDENTITY_LABELS], dim=1)
            rows.append(functional.normalize(read, dim=1).cpu())
        return torch.cat(rows)

    @override
    def save(self, folder: Path) -> None:
        """Write config and weights (fp16) to a folder."""
        stated = {"kind": "reader", "name": self.name, **configs.to_dict(self.network.config)}
        save_module(folder, self.network, _WEIGHTS, stated, half=True)

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> "AttributeReader":
        """Read a reader from a folder, ready for use on a device.

        Raises:
            BundleError: its weights are not those of a reader.
            ConfigError: its config is not that of one.
        """
        stored = saved_config(folder)
        name = str(stored.pop("name", _NAME))
        network = AttributeJudge(configs.from_dict(JudgeConfig, stored))
        load_weights(network, folder / _WEIGHTS)
        return cls(network.requires_grad_(requires_grad=False).to(device), name)


@dataclass(frozen=True, kw_only=True)
class _Network:
    """Where a reader's network is, and what the reader is called."""

    network: Path
    name: str = _NAME


#: `reader:NETWORK`, of the folder of a network that `lorasynth avatars judge` trained.
READER = NamedEncoder(
    configure=lambda folder: _Network(network=Path(folder)),
    build=lambda it, device: AttributeReader(AttributeJudge.load(it.network).to(device), it.name),
    spelling="reader:NETWORK",
    licence="Apache-2.0",
    packages=(),
    needs="avatars; a network of `lorasynth avatars judge`; not the one that measures",
)
