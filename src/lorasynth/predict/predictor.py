"""A feed-forward network from a condition to an adapter.

It writes an adapter as a mean and `latents` directions, mixed by what a small network reads in the
condition.  A is frozen and shared, as in the default recipe, so only B is predicted, and ΔW is
linear in it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorasynth.adapter import Factor, Factors, Layout
from lorasynth.config import from_dict, read_json, to_dict
from lorasynth.errors import BundleError
from lorasynth.weights import CONFIG_FILE, load_module, save_module

WEIGHTS_FILE = "predictor.safetensors"


@dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """What a `Predictor` is made of.

    Attributes:
        width: of the hidden layers.
        depth: hidden layers.
        latents: k, the number of directions that adapters are mixed of.
    """

    width: int = 512
    depth: int = 2
    latents: int = 128


class Predictor(nn.Module):
    """Conditions in, stacked adapters out.

    Args:
        config: see there.
        layout: of the adapters.
        condition_width: m, the width of a condition.

    Attributes:
        shared: the frozen A of all modules, as the A part of a flat vector.
    """

    shared: Tensor

    def __init__(self, config: PredictorConfig, layout: Layout, condition_width: int) -> None:
        super().__init__()
        self.config = config
        self.layout = layout
        self.condition_width = condition_width
        layers: list[nn.Module] = []
        width = condition_width
        for _ in range(config.depth):
            layers += [nn.Linear(width, config.width), nn.LayerNorm(config.width), nn.SiLU()]
            width = config.width
        self.trunk = nn.Sequential(*layers, nn.Linear(width, config.latents))
        shared = sum(slot.rank * slot.in_features for slot in layout.slots)
        self.directions = nn.Linear(config.latents, layout.size - shared)
        nn.init.zeros_(self.directions.weight)
        nn.init.zeros_(self.directions.bias)
        self.register_buffer("shared", torch.zeros(shared))

    def share(self, factors: Factors) -> None:
        """Take over the A of adapters (with an axis n of 1) as the frozen one."""
        self.layout.require(factors)
        self.shared = torch.cat([factors[m].A[0].flatten() for m in self.layout.modules]).float()

    def forward(self, conditions: Float[Tensor, "n m"]) -> Factors:
        """Predict n stacked adapters; A is one expanded tensor."""
        # unit vectors of width m have entries of size 1/sqrt(m)
        latents = self.trunk(conditions * self.condition_width**0.5)
        slots = self.layout.slots
        read = self.shared.split([slot.rank * slot.in_features for slot in slots])
        written = self.directions(latents).split(
            [slot.rank * slot.out_features for slot in slots], dim=1
        )
        factors = {}
        for slot, a, b in zip(slots, read, written, strict=True):
            A = a.view(1, slot.rank, slot.in_features).expand(len(conditions), -1, -1)
            factors[slot.module] = Factor(A, b.view(-1, slot.out_features, slot.rank))
        return factors

    def save(self, folder: Path | str, *, half: bool = False) -> None:
        """Write the predictor as a folder; `half` stores its matrices as fp16.

        Raises:
            LorasynthError: the folder cannot be written, or a value does not fit into fp16.
        """
        description = {
            "format": 1,
            "condition_width": self.condition_width,
            "config": to_dict(self.config),
            "layout": self.layout.to_dict(),
        }
        save_module(folder, self, WEIGHTS_FILE, description, half=half)

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu") -> "Predictor":
        """Read what `save` wrote, ready to predict.

        Raises:
            BundleError: the folder is damaged or incomplete.
            ConfigError: its config cannot be read.
        """
        folder = Path(folder)
        description = read_json(folder / CONFIG_FILE)
        try:
            config = from_dict(PredictorConfig, description["config"])
            layout = Layout.from_dict(description["layout"])
            width = int(description["condition_width"])
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"{folder / CONFIG_FILE} must describe a predictor, but lacks or garbles {error}: "
                "train it again"
            ) from error
        return load_module(lambda: cls(config, layout, width), folder / WEIGHTS_FILE, device)
