"""AdaNorm: the condition scales and shifts each hidden number.

Perez et al. 2018 (FiLM); what the paper's 3.4 compares its own layer with.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from lorasynth.hypernet.contract import MODULATIONS, Layer, Modulation, State


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
        both = self.project(functional.silu(embedding))
        scale, shift = both.reshape(len(h), *[1] * (h.dim() - 2), -1).chunk(2, dim=-1)
        out: Tensor = h * (1 + scale) + shift
        return out

    def factors(
        self, embedding: Float[Tensor, "*n e"]
    ) -> tuple[Float[Tensor, "*n d"], Float[Tensor, "*n d"]]:
        """What to multiply by, and what to add."""
        scale, shift = self.project(functional.silu(embedding)).chunk(2, dim=-1)
        return 1 + scale, shift


@dataclass(frozen=True, kw_only=True)
class AdaNormConfig:
    """AdaNorm has no options."""


@MODULATIONS.register("ada_norm")
class AdaNorm(Modulation):
    """The embedded condition joins the embedded time; their sum scales and shifts the input."""

    config_class = AdaNormConfig

    @override
    def __init__(
        self,
        config: AdaNormConfig,
        *,
        inner: int,
        outer: int,
        time_width: int,
        condition_width: int,
    ) -> None:
        super().__init__(
            config, inner=inner, outer=outer, time_width=time_width, condition_width=condition_width
        )
        self.join = nn.Linear(condition_width, time_width)
        self.scale_and_shift = ScaleAndShift(time_width, inner)

    @override
    def prepare(self, condition: Float[Tensor, "b c"]) -> State:
        return (self.join(condition),)

    @override
    def forward(
        self,
        layer: Layer,
        h: Float[Tensor, "b *tokens inner"],
        time: Float[Tensor, "b tw"],
        state: State,
    ) -> Float[Tensor, "b *tokens outer"]:
        (joined,) = state
        return layer(self.scale_and_shift(h, time + joined))

    @override
    def at_times(self, time: Float[Tensor, "s tw"], state: State, rows: int) -> State:
        (joined,) = state
        return self.scale_and_shift.factors(time[:, None] + joined)

    @override
    def modulate(
        self, layer: Layer, h: Float[Tensor, "b inner"], settled: State
    ) -> Float[Tensor, "b outer"]:
        scale, shift = settled
        return layer(torch.addcmul(shift, h, scale))
