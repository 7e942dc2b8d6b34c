"""Operations of training an adapter on the real networks, counted, not guessed.

    python bench/scale.py

The full U-Nets of Stable Diffusion 1.5 and SDXL and the transformer of FLUX.1 are built without
memory (meta device), and torch counts the operations of a forward pass, and of a step that trains
an adapter of the given rank on attention: the gradients go through the frozen network, but no
weight of it has one.  What a GPU then needs is operations over the rate that it reaches: `--tflops`
for one that was measured, else the rows of `GPUS`, which are peaks of the makers' data sheets
(dense bf16) times `--reached`.  docs/scale.md makes plans of it.
"""

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lorasynth.adapter import Factor, Layout
from lorasynth.base import StackedAdapters

#: Peak of dense bf16 products, TFLOP/s.
GPUS = {"A100": 312.0, "H100 SXM": 989.0, "RTX 4090": 165.0}


@dataclass(frozen=True)
class Network:
    """A network without memory, and one sample's inputs."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    targets: tuple[str, ...]

    def forward(self) -> Tensor:
        return self.module(**self.inputs, return_dict=False)[0]


def networks() -> list[Network]:
    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, device="meta")

    with torch.device("meta"):
        sd = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
        sdxl = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            use_linear_projection=True,
        )
        flux = FluxTransformer2DModel(guidance_embeds=True)
    one = empty(1)
    unet_targets = ("to_q", "to_k", "to_v", "to_out.0")
    extra = {"text_embeds": empty(1, 1280), "time_ids": empty(1, 6)}
    return [
        Network(
            "SD 1.5, 512 px",
            sd,
            {
                "sample": empty(1, 4, 64, 64),
                "timestep": one,
                "encoder_hidden_states": empty(1, 77, 768),
            },
            unet_targets,
        ),
        Network(
            "SDXL, 1024 px",
            sdxl,
            {
                "sample": empty(1, 4, 128, 128),
                "timestep": one,
                "encoder_hidden_states": empty(1, 77, 2048),
                "added_cond_kwargs": extra,  # type: ignore[dict-item]
            },
            unet_targets,
        ),
        Network(
            "FLUX.1 dev, 1024 px",
            flux,
            {
                "hidden_states": empty(1, 4096, 64),
                "encoder_hidden_states": empty(1, 512, 4096),
                "pooled_projections": empty(1, 768),
                "timestep": one,
                "guidance": one,
                "img_ids": empty(4096, 3),
                "txt_ids": empty(512, 3),
            },
            unet_targets,
        ),
    ]


def adapters_of(network: Network, rank: int) -> dict[str, Factor]:
    """A stack of one adapter, B trained alone."""
    factors = {}
    for name, module in network.module.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(network.targets):
            A = torch.empty(1, rank, module.in_features, device="meta")
            B = torch.empty(1, module.out_features, rank, device="meta", requires_grad=True)
            factors[name] = Factor(A, B)
    return factors


def operations(run: Any) -> float:
    """Floating-point operations, a multiplication and an addition counted as two."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--tflops", type=float, help="a rate that a GPU was measured to reach")
    parser.add_argument("--reached", type=float, default=0.4, help="share of the peaks")
    options = parser.parse_args()
    rates = {name: options.reached * peak for name, peak in GPUS.items()}
    if options.tflops:
        rates = {"measured": options.tflops}
    table = Table(
        "network", "numbers of an adapter", "forward TFLOP", "training step TFLOP", *rates
    )
    table.title = f"one sample; rank {options.rank}; last columns: milliseconds of a training step"
    for network in networks():
        network.module.requires_grad_(False)
        forward = operations(network.forward)
        factors = adapters_of(network, options.rank)
        with StackedAdapters(network.module, factors):
            step = operations(lambda n=network: n.forward().sum().backward())
        size = Layout.from_factors(factors).size
        times = (f"{1e3 * step / (1e12 * rate):.1f}" for rate in rates.values())
        cells = (f"{size:,}", f"{forward / 1e12:.3f}", f"{step / 1e12:.3f}", *times)
        table.add_row(network.name, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
