"""The judge: reads the discrete attributes of an avatar off its image.

It answers two questions about generated images: is what the prompt asked for there, and are the
subject's hair, facial hair and glasses there?  It is trained on drawn images only and is never
used to choose anything during training.
"""

from pathlib import Path

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional

from lorasynth.avatars.config import JudgeConfig
from lorasynth.avatars.pool import LABELS, Pool
from lorasynth.condition.trunks import TRUNKS, augment, unit_batches
from lorasynth.core import config as configs
from lorasynth.core.errors import BundleError, ConfigError
from lorasynth.core.places import local
from lorasynth.core.randomness import stream_seed
from lorasynth.core.weights import described, load_module, save_module
from lorasynth.engine.trainer import Trainer
from lorasynth.images.files import to_unit_range


class AttributeJudge(nn.Module):
    """One classifier per attribute of `LABELS`, on a shared trunk."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = TRUNKS[config.trunk](config.image_size, config.features)
        self.norm = nn.BatchNorm1d(config.features)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(config.features, len(values)) for name, values in LABELS.items()}
        )

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, "b _"]]:
        """Logits of each attribute's values."""
        features = functional.relu(self.norm(self.trunk(images)))
        return {name: head(features).float() for name, head in self.heads.items()}

    def feature_maps(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b ..."]]:
        """What the trunk's layers see, one map for each resolution; gradients flow to images."""
        maps: list[Tensor] = []
        seen = images
        for layer in self.trunk:
            seen = layer(seen)
            if seen.dim() != 4:
                break
            if maps and maps[-1].shape[2:] == seen.shape[2:]:
                maps[-1] = seen
            else:
                maps.append(seen)
        return maps

    @torch.no_grad()
    def features(self, images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b f"]:
        """What the heads see of each image, for distances between images."""
        device = self.norm.weight.device
        units = unit_batches(images, self.config.image_size, device)
        return torch.cat([self.trunk(unit).cpu() for unit in units])

    @torch.no_grad()
    def labels(self, images: UInt8[Tensor, "b h w 3"]) -> Int64[Tensor, "b attributes"]:
        """The most likely value of each attribute, in the order of `LABELS`."""
        device = self.norm.weight.device
        parts = []
        for unit in unit_batches(images, self.config.image_size, device):
            logits = self(unit)
            parts.append(torch.stack([logits[name].argmax(1) for name in LABELS], dim=1).cpu())
        return torch.cat(parts)

    def save(self, folder: Path) -> None:
        """Write config and weights (fp16) to a folder."""
        stated = configs.to_dict(self.config)
        save_module(folder, self, "model.safetensors", stated, half=True)

    @classmethod
    def load(cls, folder: Path) -> "AttributeJudge":
        """Read a judge from a folder.

        Raises:
            BundleError: the folder is not a whole judge.
        """
        folder = local(folder)
        try:
            config = configs.from_dict(JudgeConfig, configs.read_json(folder / "config.json"))
        except ConfigError as error:
            raise BundleError(f"{folder} must hold a judge, but does not: {error}") from error
        with described(folder, "a judge"):
            return load_module(lambda: cls(config), folder / "model.safetensors")


def train_judge(
    pool: Pool, config: JudgeConfig, checkpoint: Path, device: torch.device
) -> AttributeJudge:
    """Train the judge on a pool of drawn images; resumes from `checkpoint`."""
    options = config.optimisation
    torch.manual_seed(stream_seed(options.seed, "judge"))
    images, labels = pool.images.to(device), pool.labels.to(device)

    def loss(model: nn.Module, step: int) -> tuple[Tensor, str]:
        generator = torch.Generator(device).manual_seed(stream_seed(options.seed, "judge", step))
        rows = torch.randint(len(images), (options.batch,), generator=generator, device=device)
        logits = model(augment(to_unit_range(images[rows]), generator))
        losses = [
            functional.cross_entropy(logits[name], labels[rows, i]) for i, name in enumerate(LABELS)
        ]
        total = torch.stack(losses).sum()
        return total, f"loss {total.item():.3f}"

    judge = AttributeJudge(config)
    settings = configs.to_dict(config) | {"images": len(pool)}
    Trainer(judge, options, checkpoint, device, settings).run("judge", loss)
    return judge.eval()
