"""The residual MLP: the denoiser of the paper's Figure 2."""

from collections.abc import Iterator, Sequence
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from lorasynth.hypernet.config import MLPDenoiserConfig
from lorasynth.hypernet.contract import DENOISERS, Denoiser, Layer, State, modulation_of
from lorasynth.hypernet.modulation import ScaleAndShift, scaled_and_shifted
from lorasynth.hypernet.time_embedding import TimeEmbedding

#: Rows up to which all times are prepared at once: more are bound by operations, not by reading
#: weights, and would take memory for nothing.
_MOST_ROWS = 256


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
        return self._denoised(*self._settled(self.time(t), state), x_t)

    @override
    def trajectory(self, times: Sequence[float], state: State, rows: int) -> Iterator[Layer]:
        """Half of the weights serve time and condition alone, and are read once for all steps."""
        if rows > _MOST_ROWS:
            yield from super().trajectory(times, state, rows)
            return
        time = self.time(self.null_condition.new_tensor(times))
        blocks, last = self._settled(time[:, None], state)
        for i in range(len(times)):
            own = [tuple(part[i] for part in parts) for parts in blocks]
            yield partial(self._denoised, own, tuple(part[i] for part in last))

    def _settled(self, time: Float[Tensor, "*s b tw"], state: State) -> tuple[list[State], State]:
        """What times and condition make of each block, and of the last layer."""
        each = len(state) // len(self.blocks)
        parts = (state[i : i + each] for i in range(0, len(state), each))
        blocks = [
            block.modulation.settle(time, part)
            for block, part in zip(self.blocks, parts, strict=True)
        ]
        return blocks, self.scale_and_shift.factors(time)

    def _denoised(
        self, blocks: Sequence[State], last: State, x_t: Float[Tensor, "b k"]
    ) -> Float[Tensor, "b k"]:
        h = self.enter(x_t)
        for block, settled in zip(self.blocks, blocks, strict=True):
            h = block(h, settled)
        out: Tensor = self.leave(scaled_and_shifted(self.norm(h), *last))
        return out


class Block(nn.Module):
    """h + down(silu(up(norm h))), where the modulation acts on `up`."""

    def __init__(self, config: MLPDenoiserConfig) -> None:
        super().__init__()
        hidden = config.expansion * config.width
        self.norm = nn.LayerNorm(config.width, elementwise_affine=False)
        self.modulation = modulation_of(config, config.width, hidden)
        self.up = nn.Linear(config.width, hidden)
        self.drop = nn.Dropout(config.dropout)
        self.down = nn.Linear(hidden, config.width)

    def forward(self, h: Float[Tensor, "b d"], settled: State) -> Float[Tensor, "b d"]:
        """One residual step, with what the modulation settled."""
        inner = self.modulation.modulate(self.up, self.norm(h), settled)
        out: Tensor = h + self.down(self.drop(functional.silu(inner)))
        return out
