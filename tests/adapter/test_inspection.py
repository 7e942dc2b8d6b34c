"""What `inspect` says of files that are known."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorasynth.adapter import Adapter, AdapterMetadata, Factor, canonicalise, norm, unstack
from lorasynth.adapter.inspection import block_norms, inspect_file, module_sizes

PATH = "{}.attentions.0.transformer_blocks.0.{}"
SHAPES = {
    PATH.format("down_blocks.1", "attn2.to_k"): (768, 8),
    PATH.format("down_blocks.2", "attn1.to_q"): (8, 8),
    PATH.format("mid_block", "attn1.to_q"): (8, 8),
    PATH.format("up_blocks.1", "ff.net.2"): (32, 8),
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
    assert (found.faults, found.warnings, found.sound) == ((), (), True)


def test_blocks_come_as_data_passes_them_and_make_up_the_whole(adapter: Adapter) -> None:
    norms = block_norms(module_sizes(adapter))
    assert list(norms) == [
        "text_encoder", "down_blocks.1", "down_blocks.2", "mid_block", "up_blocks.1"
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


def loses(path: Path) -> dict[str, str]:
    """Program -> what it loses of a file; nothing of what it reads whole."""
    return {one.program: one.lost for one in inspect_file(path).programs if not one.whole}


def test_each_program_has_a_row(make_factors, tmp_path: Path) -> None:
    unet = Adapter(make_factors(None, shapes={k: v for k, v in SHAPES.items() if "text" not in k}))
    kohya = unet.save(tmp_path / "k.safetensors", format="kohya")
    assert loses(kohya).keys() == {"PEFT"}
    diffusers = unet.save(tmp_path / "d.safetensors", format="diffusers")
    assert loses(diffusers).keys() == {"ComfyUI", "A1111, Forge", "kohya", "PEFT"}
    assert [r.modules for r in inspect_file(diffusers).programs] == [4, 1, 0, 0, 0]
    peft = unet.save(tmp_path / "peft", format="peft")
    assert loses(peft).keys() == {"diffusers 0.42", "ComfyUI", "A1111, Forge", "kohya"}
    assert "loads nothing from a PEFT folder" in " ".join(inspect_file(peft).warnings)


def test_a_scale_that_some_program_forgets_is_said(make_factors, tmp_path: Path) -> None:
    unet = Adapter(make_factors(None))
    bare = unet.save(tmp_path / "bare.safetensors", format="diffusers")
    with safe_open(bare, "pt") as file:
        header = file.metadata()
    config = json.loads(header["lora_adapter_metadata"]) | {"unet.lora_alpha": 27}
    save_file(load_file(bare), bare, {"lora_adapter_metadata": json.dumps(config)})
    assert "alpha in the header" in loses(bare)["ComfyUI"]
    save_file(load_file(bare), bare)
    assert "states no alpha" in inspect_file(bare).warnings[0]
    mixed = unet.save(tmp_path / "mixed.safetensors", format="kohya")
    tensors = load_file(mixed)
    tensors[next(key for key in tensors if key.endswith(".alpha"))] = torch.tensor(1.0)
    save_file(tensors, mixed)
    assert "alphas" in loses(mixed)["diffusers 0.42"]


@pytest.mark.parametrize("value", [1e20, 1e300])
def test_numbers_whose_products_overflow_are_described(value: float, tmp_path: Path) -> None:
    dtype = torch.float64 if value > 1e38 else torch.float32
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {f"{stem}.lora_down.weight": torch.full((1, 8), value, dtype=dtype)}
    tensors[f"{stem}.lora_up.weight"] = torch.full((8, 1), value, dtype=dtype)
    save_file(tensors, tmp_path / "x.safetensors")
    found = inspect_file(tmp_path / "x.safetensors")
    [norm] = found.norms.values()
    assert norm == pytest.approx(8 * value**2 if value < 1e150 else float("inf"))
    assert any("not finite" in one for one in found.warnings) == (value > 1e150)
    assert found.sound


def test_broken_updates_are_faults(make_factors, tmp_path: Path) -> None:
    factors = dict(make_factors(None))
    first, second, *_ = factors
    factors[first] = Factor(factors[first].A, torch.zeros_like(factors[first].B))
    factors[second] = Factor(factors[second].A, factors[second].B * 1e5)
    found = inspect_file(Adapter(factors).save(tmp_path / "x.safetensors"))
    assert not found.sound
    assert [first in found.faults[0], second in found.faults[1]] == [True, True]


@pytest.mark.parametrize(
    "tags", ['{"a": {"b": Infinity}}', '{"a": {"b": "x"}}', '{"a": 1}', "[", "[]"]
)
def test_tags_of_odd_counts_are_passed_over(tags: str, make_factors, tmp_path: Path) -> None:
    metadata = AdapterMetadata(header={"ss_tag_frequency": tags})
    path = Adapter(make_factors(None), metadata).save(tmp_path / "x.safetensors")
    assert "tags" not in inspect_file(path).training
