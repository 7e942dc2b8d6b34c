"""The 1-D U-Net of the paper's 4.3: residual blocks at falling resolutions, and back up."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from lorasynth.hypernet.config import UNetDenoiserConfig
from lorasynth.hypernet.contract import DENOISERS, Denoiser, State, modulation_of
from lorasynth.hypernet.modulation import ScaleAndShift
from lorasynth.hypernet.time_embedding import TimeEmbedding


@DENOISERS.register("unet")
class UNetDenoiser(Denoiser):
    """Convolutions over the positions of a latent; what goes down joins what comes up.

    The latent is padded by zeros to whole positions at every resolution.  Unlike an image's, its
    positions differ in kind, so each has a learned vector of its own: random at first, since from
    zero it takes hundreds of steps until a condition acts on positions differently.  The last layer
    is zero at first, and so the output.
    """

    config_class = UNetDenoiserConfig

    def __init__(self, config: UNetDenoiserConfig, latents: int, condition_width: int) -> None:
        super().__init__(config, latents, condition_width)
        channels, kernel = config.channels, config.kernel
        self.time = TimeEmbedding(config.embedding)
        self.condition = nn.Sequential(
            nn.Linear(condition_width, config.embedding),
            nn.SiLU(),
            nn.Linear(config.embedding, config.embedding),
        )
        self.enter = Convolution(config.patch, channels[0], kernel)
        # What halves evenly at every resolution.
        self.whole = config.patch << (len(channels) - 1)
        self.places = nn.Parameter(
            torch.randn(-(-latents // self.whole) * self.whole // config.patch, channels[0])
        )
        self.down = _stages(config, channels)
        self.coarser = nn.ModuleList(
            Convolution(fine, coarse, kernel, stride=2) for fine, coarse in pairwise(channels)
        )
        self.bottleneck = _stages(config, channels[-1:])
        self.finer = nn.ModuleList(
            Convolution(coarse, fine, kernel) for fine, coarse in pairwise(channels)
        )
        self.join = nn.ModuleList(nn.Linear(2 * width, width) for width in channels)
        self.up = _stages(config, channels)
        self.norm = nn.LayerNorm(channels[0], elementwise_affine=False)
        self.scale_and_shift = ScaleAndShift(config.embedding, channels[0])
        self.leave = nn.Linear(channels[0], config.patch)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    @override
    def prepare(self, condition: Float[Tensor, "b m"]) -> State:
        embedded = self.condition(condition)
        return tuple(
            tensor for block in self._blocks() for tensor in block.modulation.prepare(embedded)
        )

    @override
    def denoise(
        self, x_t: Float[Tensor, "b k"], t: Float[Tensor, " b"], state: State
    ) -> Float[Tensor, "b k"]:
        time = self.time(t)
        each = len(state) // sum(1 for _ in self._blocks())
        parts = iter([state[i : i + each] for i in range(0, len(state), each)])

        def run(stage: nn.Module, h: Tensor) -> Tensor:
            for block in stage.children():
                h = block(h, time, next(parts))
            return h

        padded = functional.pad(x_t, (0, -x_t.shape[1] % self.whole))
        h = self.enter(padded.unflatten(1, (-1, self.config.patch))) + self.places
        passed: list[Tensor] = []
        for level, stage in enumerate(self.down):
            h = run(stage, h if level == 0 else self.coarser[level - 1](h))
            passed.append(h)
        h = run(self.bottleneck[0], h)
        for level in reversed(range(len(passed))):
            if level < len(passed) - 1:
                h = self.finer[level](h.repeat_interleave(2, dim=1))
            h = run(self.up[level], self.join[level](torch.cat([h, passed[level]], dim=-1)))
        out: Tensor = self.leave(self.scale_and_shift(self.norm(h), time))
        return out.flatten(1)[:, : self.latents]

    def _blocks(self) -> "Iterator[Block]":
        """All residual blocks, in the order in which they run."""
        for stage in (*self.down, self.bottleneck[0], *reversed(self.up)):
            for block in stage.children():
                assert isinstance(block, Block)
                yield block


class Convolution(nn.Conv1d):
    """Over positions, with channels last, as modulations and norms take them."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inner, outer, kernel, stride=stride, padding=kernel // 2)

    @override
    def forward(self, input: Float[Tensor, "b positions inner"]) -> Tensor:
        return super().forward(input.mT).mT


class Block(nn.Module):
    """h + second(silu(first(norm h))), where the modulation acts on `first`."""

    def __init__(self, config: UNetDenoiserConfig, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = modulation_of(config, width, width)
        self.first = Convolution(width, width, config.kernel)
        self.second = Convolution(width, width, config.kernel)

    def forward(
        self, h: Float[Tensor, "b positions d"], time: Float[Tensor, "b tw"], state: State
    ) -> Float[Tensor, "b positions d"]:
        """One residual step."""
        inner = self.modulation(self.first, self.norm(h), time, state)
        out: Tensor = h + self.second(functional.silu(inner))
        return out


def _stages(config: UNetDenoiserConfig, channels: Sequence[int]) -> nn.ModuleList:
    """A stage of residual blocks for each resolution."""
    return nn.ModuleList(
        nn.ModuleList(Block(config, width) for _ in range(config.blocks)) for width in channels
    )
