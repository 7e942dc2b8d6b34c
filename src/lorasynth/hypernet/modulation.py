"""How a condition enters a denoiser's layers: `AdaNorm`, and the paper's AdaLoRA layer.

AdaNorm (Perez et al. 2018, FiLM) scales and shifts each hidden unit; the paper's 3.4 compares its
own layer with it.  That layer (3.4, 4.5; not PEFT's AdaLoRA, hence `LowRankModulation`) maps the
condition to a pair of low-rank matrices that act on the hidden states.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from lorasynth.hypernet.config import AdaNormConfig, LowRankModulationConfig
from lorasynth.hypernet.contract import MODULATIONS, Layer, Modulation, State, Widths


class ScaleAndShift(nn.Module):
    """h * (1 + scale) + shift, both linear in the activated embedding; the identity at first."""

    def __init__(self, embedding_width: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(embedding_width, 2 * width)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(
        self, h: Float[Tensor, "b *tokens d"], embedding: Float[Tensor, "b e"]
    ) -> Float[Tensor, "b *tokens d"]:
        """Scale and shift the last axis of h."""
        return scaled_and_shifted(h, *self.factors(embedding))

    def factors(
        self, embedding: Float[Tensor, "*n e"]
    ) -> tuple[Float[Tensor, "*n d"], Float[Tensor, "*n d"]]:
        """What to multiply by, and what to add."""
        scale, shift = self.project(functional.silu(embedding)).chunk(2, dim=-1)
        return 1 + scale, shift


def scaled_and_shifted(
    h: Float[Tensor, "b *tokens d"], scale: Float[Tensor, "_ d"], shift: Float[Tensor, "_ d"]
) -> Float[Tensor, "b *tokens d"]:
    """H * scale + shift, the same for all axes between the batch and the last."""
    shape = (len(scale), *[1] * (h.dim() - 2), -1)
    return torch.addcmul(shift.reshape(shape), h, scale.reshape(shape))


@MODULATIONS.register("ada_norm")
class AdaNorm(Modulation):
    """The embedded condition joins the embedded time; their sum scales and shifts the input."""

    config_class = AdaNormConfig

    @override
    def __init__(self, config: AdaNormConfig, widths: Widths) -> None:
        super().__init__(config, widths)
        self.join = nn.Linear(widths.condition, widths.time)
        self.scale_and_shift = ScaleAndShift(widths.time, widths.inner)

    @override
    def prepare(self, condition: Float[Tensor, "b c"]) -> State:
        return (self.join(condition),)

    @override
    def settle(self, time: Float[Tensor, "*s b tw"], state: State) -> State:
        (joined,) = state
        return self.scale_and_shift.factors(time + joined)

    @override
    def modulate(
        self, layer: Layer, h: Float[Tensor, "b *tokens inner"], settled: State
    ) -> Float[Tensor, "b *tokens outer"]:
        return layer(scaled_and_shifted(h, *settled))


@MODULATIONS.register("low_rank")
class LowRankModulation(Modulation):
    """A = f(y) and B = g(y) from the embedded condition y alone; time enters by AdaNorm.

    f and g are linear in y, which is itself the output of a small network that the layers share.
    At first B is zero, as in LoRA (Hu et al. 2022), so that training starts from the layer alone;
    for `product`, which would then pass nothing, it is random.
    """

    config_class = LowRankModulationConfig

    @override
    def __init__(self, config: LowRankModulationConfig, widths: Widths) -> None:
        super().__init__(config, widths)
        inner, condition = widths.inner, widths.condition
        self.form = config.form
        self.rank = config.rank
        target = widths.outer if config.form == "layer" else inner
        self.f = nn.Linear(condition, config.rank * inner)
        self.g = nn.Linear(condition, target * config.rank)
        self.scale_and_shift = ScaleAndShift(widths.time, inner)
        nn.init.normal_(self.f.bias, std=1 / math.sqrt(inner))
        nn.init.normal_(self.f.weight, std=1 / math.sqrt(inner * condition))
        if config.form == "product":
            nn.init.normal_(self.g.bias, std=1 / math.sqrt(config.rank))
            nn.init.normal_(self.g.weight, std=1 / math.sqrt(config.rank * condition))
        else:
            nn.init.zeros_(self.g.weight)
            nn.init.zeros_(self.g.bias)

    @override
    def prepare(self, condition: Float[Tensor, "b c"]) -> State:
        """A (b, r, inner) and B (b, outer or inner, r)."""
        A = self.f(condition).unflatten(1, (self.rank, -1))
        B = self.g(condition).unflatten(1, (-1, self.rank))
        return A, B

    @override
    def settle(self, time: Float[Tensor, "*s b tw"], state: State) -> State:
        pair = (part.expand(*time.shape[:-2], *part.shape) for part in state)
        return (*self.scale_and_shift.factors(time), *pair)

    @override
    def modulate(
        self, layer: Layer, h: Float[Tensor, "b *tokens inner"], settled: State
    ) -> Float[Tensor, "b *tokens outer"]:
        scale, shift, *pair = settled
        h = scaled_and_shifted(h, scale, shift)
        low_rank = _apply(tuple(pair), h)
        if self.form == "layer":
            return layer(h) + low_rank
        return layer(low_rank if self.form == "product" else h + low_rank)


def _apply(pair: State, h: Float[Tensor, "b *tokens inner"]) -> Float[Tensor, "b *tokens out"]:
    """B A h, each row of the batch with its own pair."""
    A, B = pair
    rows = h.reshape(len(h), -1, h.shape[-1])
    out = torch.bmm(torch.bmm(rows, A.mT), B.mT)
    return out.reshape(*h.shape[:-1], -1)
