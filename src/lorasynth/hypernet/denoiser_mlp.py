"""The residual MLP: the denoiser of the paper's Figure 2."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from lorasynth.hypernet.config import MLPDenoiserConfig
from lorasynth.hypernet.contract import DENOISERS, Denoiser, Layer, State, modulation_of
from lorasynth.hypernet.modulation import ScaleAndShift
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
        time = self.time(t)
        h = self.enter(x_t)
        for block, part in zip(self.blocks, self._parts(state), strict=True):
            h = block(h, time, part)
        out: Tensor = self.leave(self.scale_and_shift(self.norm(h), time))
        return out

    @override
    def trajectory(self, times: Sequence[float], state: State, rows: int) -> Iterator[Layer]:
        """Half of the weights serve time and condition alone, and are read once for all steps."""
        if rows > _MOST_ROWS:
            yield from super().trajectory(times, state, rows)
            return
        time = self.time(self.null_condition.new_tensor(times))
        settled = [
            block.modulation.at_times(time, part, rows)
            for block, part in zip(self.blocks, self._parts(state), strict=True)
        ]
        scales, shifts = self.scale_and_shift.factors(time[:, None])
        for i in range(len(times)):
            blocks = [tuple(part[i] for part in parts) for parts in settled]
            yield partial(self._denoise_settled, blocks, (scales[i], shifts[i]))

    def _denoise_settled(
        self, blocks: Sequence[State], last: State, x_t: Float[Tensor, "b k"]
    ) -> Float[Tensor, "b k"]:
        h = self.enter(x_t)
        for block, settled in zip(self.blocks, blocks, strict=True):
            h = block.settled(h, settled)
        scale, shift = last
        out: Tensor = self.leave(torch.addcmul(shift, self.norm(h), scale))
        return out

    def _parts(self, state: State) -> list[State]:
        """What of a prepared condition belongs to each block."""
        each = len(state) // len(self.blocks)
        return [state[i * each : (i + 1) * each] for i in range(len(self.blocks))]


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

    def forward(
        self, h: Float[Tensor, "b d"], time: Float[Tensor, "b tw"], state: State
    ) -> Float[Tensor, "b d"]:
        """One residual step."""
        return self._add(h, self.modulation(self.up, self.norm(h), time, state))

    def settled(self, h: Float[Tensor, "b d"], settled: State) -> Float[Tensor, "b d"]:
        """The same, with what `Modulation.at_times` gave for one time."""
        return self._add(h, self.modulation.modulate(self.up, self.norm(h), settled))

    def _add(self, h: Float[Tensor, "b d"], inner: Float[Tensor, "b i"]) -> Float[Tensor, "b d"]:
        out: Tensor = h + self.down(self.drop(functional.silu(inner)))
        return out
