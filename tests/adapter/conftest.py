import gc
from collections.abc import Callable, Iterator, Mapping

import architectures
import pytest
import torch

from lorasynth.adapter import Factor, Factors

#: Module -> (in, out): two of equal shape, and two others.
SHAPES = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (6, 8),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (5, 8),
    "mid_block.attentions.0.proj_in": (6, 8),
    "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj": (7, 4),
}

MakeFactors = Callable[..., Factors]


@pytest.fixture(scope="module", autouse=True)
def _no_networks_are_kept() -> Iterator[None]:
    """Beside gigabytes of addresses, though nothing touches them, no process can be forked."""
    yield
    architectures.network.cache_clear()
    gc.collect()


@pytest.fixture
def make_factors() -> MakeFactors:
    """Random stacked factors; without axis n if n is None."""

    def make(
        n: int | None = 3,
        rank: int = 2,
        seed: int = 0,
        shapes: Mapping[str, tuple[int, int]] = SHAPES,
        dtype: torch.dtype = torch.float32,
    ) -> Factors:
        generator = torch.Generator().manual_seed(seed)
        batch = () if n is None else (n,)
        return {
            module: Factor(
                torch.randn(*batch, rank, width, generator=generator).to(dtype),
                torch.randn(*batch, out, rank, generator=generator).to(dtype),
            )
            for module, (width, out) in shapes.items()
        }

    return make


@pytest.fixture
def dense() -> Callable[[Factors], torch.Tensor]:
    """All ΔW in float64, flattened and joined."""

    def make(factors: Factors) -> torch.Tensor:
        deltas = [
            (factors[module].B.double() @ factors[module].A.double()).flatten(-2)
            for module in sorted(factors)
        ]
        return torch.cat(deltas, dim=-1)

    return make
