"""What a denoiser, a modulation and a measurement during training must do.

A *denoiser* predicts from a noisy latent, a time and a condition.  A *modulation* is how the
condition enters one of its layers; time always enters by AdaNorm, so that modulations compare.
Everything that depends on the condition alone is computed by `prepare`, once per sample, and used
at every solver step.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lorasynth.core.config import from_dict
from lorasynth.core.registry import Registry
from lorasynth.hypernet.config import MLPDenoiserConfig, UNetDenoiserConfig

if TYPE_CHECKING:
    from lorasynth.hypernet.latent_diffusion import LatentDiffusion

#: What a modulation keeps of a condition between solver steps: tensors with a leading batch axis.
State = tuple[Tensor, ...]
#: A layer on the last axis.
Layer = Callable[[Tensor], Tensor]


class Widths(NamedTuple):
    """Of a modulated layer's input and output, and of the embedded time and condition."""

    inner: int
    outer: int
    time: int
    condition: int


class Modulation(nn.Module, ABC):
    """How a condition enters one layer; built from an instance of `config_class` and widths."""

    config_class: ClassVar[type[Any]]

    @abstractmethod
    def __init__(self, config: Any, widths: Widths) -> None:
        super().__init__()

    @abstractmethod
    def prepare(self, condition: Float[Tensor, "b c"]) -> State:
        """What depends on the embedded condition alone."""

    @abstractmethod
    def settle(self, time: Float[Tensor, "*s b tw"], state: State) -> State:
        """What times and a prepared condition make of the layer; it depends on no hidden state.

        Args:
            time: embedded times; one of a batch stands for all, and further axes may come first.
            state: the prepared condition.
        """

    @abstractmethod
    def modulate(
        self, layer: Layer, h: Float[Tensor, "b *tokens inner"], settled: State
    ) -> Float[Tensor, "b *tokens outer"]:
        """Apply `layer` to the normalised hidden states `h` as `settle` gave for one time of each.

        Axes between the batch and the last (positions of a U-Net, tokens of a transformer) share
        the condition.
        """

    def forward(
        self,
        layer: Layer,
        h: Float[Tensor, "b *tokens inner"],
        time: Float[Tensor, "b tw"],
        state: State,
    ) -> Float[Tensor, "b *tokens outer"]:
        """Apply `layer` to the normalised hidden states `h` under time and condition."""
        out: Tensor = self.modulate(layer, h, self.settle(time, state))
        return out


class Denoiser(nn.Module, ABC):
    """Predicts, in the training's parameterisation, from a noisy latent, a time and a condition.

    Args:
        config: an instance of the class's `config_class`.
        latents: k, the width of a latent.
        condition_width: m, the width of a condition; the net then learns what stands for none.
    """

    config_class: ClassVar[type[Any]]

    def __init__(self, config: Any, latents: int, condition_width: int) -> None:
        super().__init__()
        self.config = config
        self.latents = latents
        self.condition_width = condition_width
        self.null_condition = nn.Parameter(torch.zeros(condition_width))

    @abstractmethod
    def prepare(self, condition: Float[Tensor, "b m"]) -> State:
        """What depends on the condition alone, for all layers; computed once per sample."""

    @abstractmethod
    def denoise(
        self, x_t: Float[Tensor, "b k"], t: Float[Tensor, " b"], state: State
    ) -> Float[Tensor, "b k"]:
        """Predict at times t in [0, 1] under a prepared condition."""

    def trajectory(self, times: Sequence[float], state: State, rows: int) -> Iterator[Layer]:
        """`denoise` at each of the times that a solver takes, which are the same for all rows.

        Args:
            times: one for each solver step.
            state: the prepared condition.
            rows: of the batch.
        """
        for time in times:
            t = self.null_condition.new_full((rows,), time)
            yield partial(self.denoise, t=t, state=state)

    def forward(
        self,
        x_t: Float[Tensor, "b k"],
        t: Float[Tensor, " b"],
        condition: Float[Tensor, "b m"] | None = None,
        keep: Bool[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b k"]:
        """Predict at times t in [0, 1].

        Args:
            x_t: noisy latents.
            t: their times.
            condition: None for no condition in any row.
            keep: rows whose condition counts; None for all.
        """
        return self.denoise(x_t, t, self.prepare(self.fill(condition, len(x_t), keep)))

    def fill(
        self,
        condition: Float[Tensor, "b m"] | None,
        rows: int,
        keep: Bool[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b m"]:
        """Conditions with the learned null condition where there is none."""
        null = self.null_condition.expand(rows, -1)
        if condition is None:
            return null
        return condition if keep is None else torch.where(keep[:, None], condition, null)


#: A measurement during training, such as an error on held-out subjects: from the step and the
#: model with its averaged weights to named figures for the curve.
Probe = Callable[[int, "LatentDiffusion"], Mapping[str, float]]


def modulation_of(
    config: MLPDenoiserConfig | UNetDenoiserConfig, inner: int, outer: int
) -> Modulation:
    """The modulation that a denoiser's config names, for one of its layers."""
    kind = MODULATIONS.get(config.modulation)
    options = from_dict(kind.config_class, config.modulation_options)
    return kind(options, Widths(inner, outer, config.embedding, config.embedding))


DENOISERS: Registry[type[Denoiser]] = Registry(
    "denoiser",
    "lorasynth.denoisers",
    "lorasynth.hypernet.denoiser_mlp",
    "lorasynth.hypernet.denoiser_unet",
)
MODULATIONS: Registry[type[Modulation]] = Registry(
    "modulation",
    "lorasynth.modulations",
    "lorasynth.hypernet.modulation",
)
