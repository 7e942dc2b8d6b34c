"""What `inspect` says of files that are known."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorasynth.adapter import Adapter, AdapterMetadata, Factor, canonicalise, norm, unstack
from lorasynth.adapter.inspection import block_norms, inspect_file

PATH = "{}.attentions.0.transformer_blocks.0.{}"
SHAPES = {
    PATH.format("down_blocks.1", "attn2.to_k"): (768, 8),
    PATH.format("down_blocks.10", "attn1.to_q"): (8, 8),
    PATH.format("mid_block", "attn1.to_q"): (8, 8),
    PATH.format("up_blocks.0", "ff.net.2"): (32, 8),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (6, 6),
}


@pytest.fixture
def adapter(make_factors) -> Adapter:
    metadata = AdapterMetadata(trigger_phrase="sks", synthesised=True)
    return Adapter(make_factors(None, shapes=SHAPES), metadata)


def test_a_kohya_file(adapter: Adapter, tmp_path: Path) -> None:
    found = inspect_file(adapter.save(tmp_path / "me.safetensors", format="kohya"))
    assert (found.format, found.family) == ("kohya", "Stable Diffusion 1")
    assert (found.ranks, found.alphas) == ({2: 5}, {2.0: 5})
    assert (found.modules, found.parameters) == (5, adapter.layout.size)
    assert (found.dtype, found.metadata) == ("float32", adapter.metadata)
    assert not found.canonical
    assert found.warnings == ()


def test_blocks_come_as_data_passes_them_and_make_up_the_whole(adapter: Adapter) -> None:
    norms = block_norms(adapter)
    assert list(norms) == [
        "text_encoder", "down_blocks.1", "down_blocks.10", "mid_block", "up_blocks.0"
    ]  # fmt: skip
    total = sum(value**2 for value in norms.values()) ** 0.5
    assert total == pytest.approx(float(norm(adapter.factors)), rel=1e-5)


def test_canonical_is_told(make_factors, tmp_path: Path) -> None:
    [factors] = unstack(canonicalise(make_factors(1)))
    path = Adapter(factors).save(tmp_path / "canonical.safetensors")
    assert inspect_file(path).canonical
    rotation = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
    turned = {m: Factor(rotation.T @ f.A, f.B @ rotation) for m, f in factors.items()}
    path = Adapter(turned).save(tmp_path / "turned.safetensors")
    assert not inspect_file(path).canonical, "the same update in another gauge"


def test_what_loaders_lose_is_said(adapter: Adapter, make_factors, tmp_path: Path) -> None:
    unet = Adapter(make_factors(None))
    peft = unet.save(tmp_path / "peft", format="peft")
    said = " ".join(inspect_file(peft).warnings)
    assert "loads nothing from a PEFT folder" in said
    assert "loses its alpha" not in said
    config = peft / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "lora_alpha": 27}))
    assert "loses its alpha" in " ".join(inspect_file(peft).warnings)
    bare = unet.save(tmp_path / "bare.safetensors", format="diffusers")
    assert inspect_file(bare).warnings == ("ComfyUI loads nothing of its attention layers",)
    save_file(load_file(bare), bare)
    assert "states no alpha" in inspect_file(bare).warnings[0]
    mixed = unet.save(tmp_path / "mixed.safetensors", format="kohya")
    tensors = load_file(mixed)
    tensors[next(key for key in tensors if key.endswith(".alpha"))] = torch.tensor(1.0)
    save_file(tensors, mixed)
    assert "alphas" in inspect_file(mixed).warnings[0]
