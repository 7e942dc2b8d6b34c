"""FLUX's fused layers in kohya files: ΔW of each of our modules survives, and ours come back."""

import pytest
import torch

from lorasynth.adapter import Adapter, Factor
from lorasynth.adapter.files.fused import fuse, separate
from lorasynth.core.errors import FileFormatError

HIDDEN = 8
DOUBLE, SINGLE = "transformer_blocks.0", "single_transformer_blocks.3"


def factor(rank: int, out: int = HIDDEN, seed: int = 0) -> Factor:
    stream = torch.Generator().manual_seed(seed)
    return Factor(
        torch.randn(rank, HIDDEN, generator=stream), torch.randn(out, rank, generator=stream)
    )


def update(one: Factor | None) -> torch.Tensor:
    return torch.zeros(HIDDEN, HIDDEN) if one is None else one.B @ one.A


PARTS = {
    "one rank": [factor(2, seed=1), factor(2, seed=2), factor(2, seed=3)],
    "other ranks": [factor(1, seed=1), factor(3, seed=2), factor(2, seed=3)],
    "one is missing": [factor(2, seed=1), None, factor(2, seed=3)],
    "a shared A": [Factor(factor(2).A, factor(2, seed=s).B) for s in (1, 2, 3)],
}


@pytest.mark.parametrize("case", PARTS)
def test_parts_that_were_fused_come_back(case: str) -> None:
    parts = PARTS[case]
    fused = fuse(parts, [HIDDEN] * 3)
    assert fused.rank == (2 if case == "a shared A" else sum(p.rank for p in parts if p))
    expected = torch.cat([update(part) for part in parts])
    torch.testing.assert_close(fused.B @ fused.A, expected, rtol=1e-6, atol=1e-6)
    for part, again in zip(parts, separate(fused, [HIDDEN] * 3), strict=True):
        assert (part is None) == (again is None)
        if part is not None:
            assert torch.equal(again.A, part.A)
            assert torch.equal(again.B, part.B)


def test_an_update_of_zero_stays_one() -> None:
    zero = Factor(torch.ones(2, HIDDEN), torch.zeros(3 * HIDDEN, 2))
    assert [part.B.shape for part in separate(zero, [HIDDEN] * 3)] == [(HIDDEN, 2)] * 3


@pytest.fixture
def flux() -> Adapter:
    return Adapter(
        {
            f"{DOUBLE}.attn.to_q": factor(2, seed=1),
            f"{DOUBLE}.attn.to_v": factor(2, seed=2),
            f"{DOUBLE}.attn.add_k_proj": factor(2, seed=3),
            f"{DOUBLE}.ff.net.0.proj": factor(2, 4 * HIDDEN, seed=4),
            f"{SINGLE}.attn.to_k": factor(2, seed=5),
            f"{SINGLE}.proj_mlp": factor(2, 4 * HIDDEN, seed=6),
            "norm_out.linear": factor(2, 2 * HIDDEN, seed=7),
            "x_embedder": factor(2, seed=8),
        }
    )


def test_a_flux_adapter_comes_back_from_kohya(flux: Adapter, tmp_path) -> None:
    again = Adapter.load(flux.save(tmp_path / "flux.safetensors", format="kohya"))
    assert again.layout == flux.layout
    assert torch.equal(again.to_vector(), flux.to_vector())


def test_a_fused_layer_of_another_height_is_told(flux: Adapter, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    path = flux.save(tmp_path / "flux.safetensors", format="kohya")
    tensors = load_file(path)
    key = "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"
    save_file({**tensors, key: tensors[key][:-1].clone()}, path)
    with pytest.raises(FileFormatError, match=r"cannot be shared out \(23 of .*img_attn_qkv"):
        Adapter.load(path)
