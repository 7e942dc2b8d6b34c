"""What a hypernetwork must do: conditions in, latents out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorasynth.core.config import from_dict, read_json, to_dict
from lorasynth.core.errors import LayoutError
from lorasynth.core.randomness import torch_stream
from lorasynth.core.registry import Registry
from lorasynth.core.weights import CONFIG_FILE, described, load_module, save_module

WEIGHTS_FILE = "hypernet.safetensors"


class Hypernetwork(nn.Module, ABC):
    """Makes latents of conditions; each row depends on its own condition and noise alone.

    Args:
        config: an instance of the class's `config_class`.
        latents: k, the width of a latent.
        condition_width: m, the width of a condition.

    Attributes:
        history: the figures of the training curve, one row per measurement.
    """

    config_class: ClassVar[type[Any]]

    def __init__(self, config: Any, latents: int, condition_width: int) -> None:
        super().__init__()
        self.config = config
        self.latents = latents
        self.condition_width = condition_width
        self.history: list[dict[str, float]] = []

    @abstractmethod
    def _sample(
        self,
        condition: Float[Tensor, "n m"] | None,
        noise: Float[Tensor, "n k"],
        steps: int | None,
        guidance: float | None,
    ) -> Float[Tensor, "n k"]: ...

    def sample(
        self,
        condition: Float[Tensor, "n m"] | None,
        noise: Float[Tensor, "n k"],
        *,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Float[Tensor, "n k"]:
        """Make latents, in the codec's units.

        Args:
            condition: one per row; None to do without.
            noise: as from `draw_noise`; equal noise and condition give equal latents.
            steps: solver steps; None for the config's.
            guidance: 1 for the plain condition, above it to exaggerate what the condition changes,
                0 to ignore it; None for the config's.

        Raises:
            LayoutError: condition or noise has another width or number of rows.
            ConfigError: a number of steps that this hypernetwork cannot take.
        """
        if noise.shape[1] != self.latents:
            raise LayoutError(
                f"noise for this hypernetwork must have {self.latents} columns, but got "
                f"{noise.shape[1]}: use draw_noise"
            )
        if condition is not None and condition.shape != (len(noise), self.condition_width):
            raise LayoutError(
                f"a condition for this hypernetwork must have shape ({len(noise)}, "
                f"{self.condition_width}), but got {tuple(condition.shape)}: use the encoder that "
                "it was trained with, one row per sample"
            )
        return self._sample(condition, noise, steps, guidance)

    def draw_noise(self, seed: int, names: Sequence[str | int]) -> Float[Tensor, "n k"]:
        """One row of noise per name, each from its own stream: a subject's row is always the same.

        Args:
            seed: of all streams.
            names: one per sample, such as subject names, or (subject, 0), (subject, 1) joined.
        """
        rows = [
            torch.randn(self.latents, generator=torch_stream(seed, "latent noise", name))
            for name in names
        ]
        return torch.stack(rows).to(next(self.parameters()).device)

    def save(self, folder: Path | str, *, half: bool = False) -> None:
        """Write the model as a folder; `half` stores its matrices as fp16.

        Raises:
            LorasynthError: the folder cannot be written, or a value does not fit into fp16.
        """
        description = {
            "format": 2,
            "hypernetwork": HYPERNETWORKS.name_of(type(self)),
            "latents": self.latents,
            "condition_width": self.condition_width,
            "config": to_dict(self.config),
            "history": self.history,
        }
        save_module(folder, self, WEIGHTS_FILE, description, half=half)


HYPERNETWORKS: Registry[type[Hypernetwork]] = Registry(
    "hypernetwork",
    "lorasynth.hypernetworks",
    "lorasynth.hypernet.latent_diffusion",
    "lorasynth.hypernet.regression",
)


def load_hypernet(folder: Path | str, device: torch.device | str = "cpu") -> Hypernetwork:
    """Read a hypernetwork of any kind that `Hypernetwork.save` wrote, ready to sample.

    Raises:
        BundleError: the folder is damaged or incomplete.
        ConfigError: its config cannot be read, or names a plug-in that is not installed.
    """
    folder = Path(folder)
    description = read_json(folder / CONFIG_FILE)
    with described(folder, "a hypernetwork"):
        kind = HYPERNETWORKS.get(description["hypernetwork"])
        config = from_dict(kind.config_class, description["config"])
        widths = int(description["latents"]), int(description["condition_width"])
        model = load_module(lambda: kind(config, *widths), folder / WEIGHTS_FILE, device)
        model.history = list(description.get("history", []))
    return model
