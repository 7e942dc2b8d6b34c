"""Any adapter, through any pair of formats: ΔW, names and kernels survive."""

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorasynth.adapter import Adapter, Factor

ATTENTION = "{}.attentions.1.transformer_blocks.0.{}"
LINEAR = [
    ATTENTION.format(block, layer)
    for block in ("down_blocks.2", "mid_block", "up_blocks.1")
    for layer in ("attn1.to_q", "attn2.to_k", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2")
]
CONVOLUTIONS = [
    "conv_in",
    "down_blocks.0.resnets.1.conv1",
    "up_blocks.1.resnets.2.conv_shortcut",
    "down_blocks.0.downsamplers.0.conv",
]
TEXT = [f"text_encoder.text_model.encoder.layers.3.{x}" for x in ("self_attn.k_proj", "mlp.fc1")]

widths = st.integers(1, 5)
ranks = st.integers(1, 3)


@st.composite
def adapters(draw: st.DrawFn) -> Adapter:
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    names = draw(st.sets(st.sampled_from([*LINEAR, *CONVOLUTIONS]), min_size=1, max_size=5))
    text = draw(st.sets(st.sampled_from(TEXT)))
    stream = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    kernels = {
        name: draw(st.sampled_from([(1, 1), (3, 3), (1, 3)]))
        for name in sorted(names & set(CONVOLUTIONS))
    }
    factors = {}
    for name in sorted(names | text):
        height, width = kernels.get(name, (1, 1))
        rank, inside, out = draw(ranks), draw(widths) * height * width, draw(widths)
        factors[name] = Factor(
            torch.randn(rank, inside, generator=stream).to(dtype),
            torch.randn(out, rank, generator=stream).to(dtype),
        )
    return Adapter(factors, kernels=kernels)


def target(name: str, folder: Path) -> Path:
    return folder / (name if name == "peft" else f"{name}.safetensors")


@pytest.mark.parametrize(
    ("first", "second"), itertools.product(("kohya", "diffusers", "comfyui", "peft"), repeat=2)
)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(adapter=adapters())
def test_updates_survive(first: str, second: str, adapter: Adapter, tmp_path: Path) -> None:
    if "peft" in (first, second):  # a PEFT folder is for one model
        unet = {m: f for m, f in adapter.factors.items() if not m.startswith("text_encoder")}
        adapter = Adapter(unet, kernels=adapter.kernels)
    once = Adapter.load(adapter.save(target(first, tmp_path / "1"), format=first))
    twice = Adapter.load(once.save(target(second, tmp_path / "2"), format=second))
    assert twice.factors.keys() == adapter.factors.keys()
    assert twice.kernels == adapter.kernels
    for module, factor in adapter.factors.items():
        again = twice.factors[module]
        assert again.A.dtype == factor.A.dtype
        expected = factor.B.double() @ factor.A.double()
        assert torch.equal(again.B.double() @ again.A.double(), expected)
