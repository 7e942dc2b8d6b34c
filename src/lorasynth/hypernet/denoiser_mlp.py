"""The residual MLP: the denoiser of the paper's Figure 2."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from lorasynth.config import from_dict
from lorasynth.errors import ConfigError
from lorasynth.hypernet.contract import DENOISERS, MODULATIONS, Denoiser, Modulation, State
from lorasynth.hypernet.modulation import ScaleAndShift
from lorasynth.hypernet.time_embedding import TimeEmbedding


@dataclass(frozen=True, kw_only=True)
class MLPDenoiserConfig:
    """Options of `MLPDenoiser`.

    Attributes:
        width: of the residual stream.
        depth: residual blocks.
        expansion: a block's hidden width, as a multiple of `width`.
        embedding: width of the embedded time and of the embedded condition.
        dropout: share of a block's hidden numbers dropped in training.
        modulation: how the condition enters each block: `ada_norm` or `low_rank`.
        modulation_options: options of that modulation's config.
    """

    width: int = 256
    depth: int = 4
    expansion: int = 2
    embedding: int = 256
    dropout: float = 0.0
    modulation: str = "ada_norm"
    modulation_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.expansion) < 1 or self.embedding < 2:
            raise ConfigError(
                "an MLP denoiser's width, depth and expansion must be at least 1 and its embedding "
                f"at least 2, but got {self}"
            )


@DENOISERS.register("mlp")
class MLPDenoiser(Denoiser):
    """Residual blocks between two linear layers; the last is zero at first, and so the output."""

    config_class = MLPDenoiserConfig

    def __init__(self, config: MLPDenoiserConfig, latents: int, condition_width: int) -> None:
        super().__init__(config, latents, condition_width)
        self.time = TimeEmbedding(config.embedding)
        self.condition = nn.Sequential(
            nn.Linear(condition_width, config.embedding),
            nn.SiLU(),
            nn.Linear(config.embedding, config.embedding),
        )
        self.enter = nn.Linear(latents, config.width)
        blocks = [Block(config) for _ in range(config.depth)]
        self.blocks: Sequence[Block] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.norm = nn.LayerNorm(config.width, elementwise_affine=False)
        self.scale_and_shift = ScaleAndShift(config.embedding, config.width)
        self.leave = nn.Linear(config.width, latents)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    @override
    def prepare(self, condition: Float[Tensor, "b m"]) -> State:
        embedded = self.condition(condition)
        return tuple(
            tensor for block in self.blocks for tensor in block.modulation.prepare(embedded)
        )

    @override
    def denoise(
        self, x_t: Float[Tensor, "b k"], t: Float[Tensor, " b"], state: State
    ) -> Float[Tensor, "b k"]:
        time = self.time(t)
        h = self.enter(x_t)
        each = len(state) // len(self.blocks)
        for i, block in enumerate(self.blocks):
            h = block(h, time, state[i * each : (i + 1) * each])
        out: Tensor = self.leave(self.scale_and_shift(self.norm(h), time))
        return out


class Block(nn.Module):
    """h + down(silu(up(norm h))), where the modulation acts on `up`."""

    def __init__(self, config: MLPDenoiserConfig) -> None:
        super().__init__()
        hidden = config.expansion * config.width
        kind = MODULATIONS.get(config.modulation)
        self.norm = nn.LayerNorm(config.width, elementwise_affine=False)
        self.modulation: Modulation = kind(
            from_dict(kind.config_class, config.modulation_options),
            inner=config.width,
            outer=hidden,
            time_width=config.embedding,
            condition_width=config.embedding,
        )
        self.up = nn.Linear(config.width, hidden)
        self.drop = nn.Dropout(config.dropout)
        self.down = nn.Linear(hidden, config.width)

    def forward(
        self, h: Float[Tensor, "b d"], time: Float[Tensor, "b tw"], state: State
    ) -> Float[Tensor, "b d"]:
        """One residual step."""
        inner = self.modulation(self.up, self.norm(h), time, state)
        out: Tensor = h + self.down(self.drop(functional.silu(inner)))
        return out
