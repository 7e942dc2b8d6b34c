"""LoRA files of others become a library, whatever is among them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lorasynth.adapter import Adapter, AdapterMetadata, Factor, Factors, cosine
from lorasynth.core.config import read_json
from lorasynth.core.errors import LibraryError
from lorasynth.library import Library
from lorasynth.library.foreign import SKIPPED, import_folder

BLOCK = "attentions.0.transformer_blocks.0"
QUERY = f"down_blocks.0.{BLOCK}.attn1.to_q"
SHAPES = {QUERY: (6, 8), f"mid_block.{BLOCK}.attn2.to_k": (5, 8)}


def factors(seed: int, rank: int = 2) -> Factors:
    stream = torch.Generator().manual_seed(seed)
    return {
        module: Factor(
            torch.randn(rank, width, generator=stream), torch.randn(out, rank, generator=stream)
        )
        for module, (width, out) in SHAPES.items()
    }


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Usable files in all formats, of mixed ranks and modules, and some that are not."""
    folder = tmp_path / "tree"
    for seed, (name, kind) in enumerate(
        {"a": "diffusers", "b/c": "kohya", "b/d": "kohya", "e": "diffusers"}.items()
    ):
        Adapter(factors(seed)).save(folder / f"{name}.safetensors", format=kind)
    Adapter(factors(4)).save(folder / "peft", format="peft")
    Adapter(factors(5, rank=1)).save(folder / "low.safetensors")
    (folder / "broken.safetensors").write_bytes(b"\x00" * 20)
    Adapter(factors(6, rank=3)).save(folder / "high.safetensors")
    other = {QUERY: factors(7)[QUERY]}
    Adapter(other).save(folder / "fewer.safetensors")
    metadata = AdapterMetadata(base_fingerprint="abc")
    Adapter(factors(8), metadata).save(folder / "other base.safetensors")
    return folder


GOOD = ["a", "b/c", "b/d", "e", "fewer", "high", "low", "peft"]


def test_good_files_are_imported_and_bad_ones_listed(tree: Path, tmp_path: Path) -> None:
    report = import_folder(tree, tmp_path / "library", workers=3, shard=4)
    library = Library.open(tmp_path / "library")
    assert library.ids == report.imported == GOOD
    assert library.check().damages == ()
    assert {slot.rank for slot in library.layout.slots} == {3}
    assert library.table["missing"].to_pylist() == [0, 0, 0, 0, 1, 0, 0, 0]
    assert report.filled == 1
    assert library.table["format"].to_pylist()[:3] == ["diffusers", "kohya", "kohya"]
    reasons = {Path(path).stem: reason for path, reason in report.skipped.items()}
    assert reasons.keys() == {"broken", "other base"}
    assert "complete safetensors" in reasons["broken"]
    assert "this one changes abc" in reasons["other base"]
    assert read_json(tmp_path / "library" / SKIPPED) == report.skipped


def test_updates_are_kept(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()  # an empty folder becomes the library
    import_folder(tree, tmp_path / "library")
    library = Library.open(tmp_path / "library")
    for row, name in enumerate(library.ids):
        path = tree / (name if name == "peft" else f"{name}.safetensors")
        stored = {m: Factor(f.A[0], f.B[0]) for m, f in library.factors([row]).items()}
        original = Adapter.load(path).factors
        assert all(not stored[m].B.any() for m in stored.keys() - original.keys())
        kept = {module: stored[module] for module in original}
        assert float(cosine(kept, original)) == pytest.approx(1, abs=1e-6)


def test_importing_again_goes_on(tree: Path, tmp_path: Path) -> None:
    import_folder(tree, tmp_path / "library")
    Adapter(factors(9)).save(tree / "new.safetensors")
    Adapter(factors(9, rank=4)).save(tree / "higher.safetensors")
    more = factors(3) | {"conv_out": Factor(torch.ones(1, 9), torch.ones(4, 1))}
    Adapter(more).save(tree / "more.safetensors")
    report = import_folder(tree, tmp_path / "library")
    assert report.imported == ["new"]
    reasons = {Path(path).stem: reason for path, reason in report.skipped.items()}
    assert len(reasons) == 4
    assert "at most the rank 3" in reasons["higher"]
    assert "this one changes conv_out too" in reasons["more"]
    assert len(Library.open(tmp_path / "library")) == 9


def test_mixed_spellings_of_one_family(tmp_path: Path) -> None:
    fused = {
        "lora_unet_double_blocks_0_img_attn_qkv": (3072, 9216),
        "lora_unet_double_blocks_0_img_mlp_0": (3072, 12288),
    }
    plain = {"transformer.transformer_blocks.0.attn.to_q": (3072, 3072)}
    sdxl = {"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (2048, 640)}
    rows = {"a": (fused, "lora_down", "lora_up"), "b": (plain, "lora_A", "lora_B")}
    rows |= {"c": (sdxl, "lora_A", "lora_B")}
    (tmp_path / "tree").mkdir()
    for name, (layers, down, up) in rows.items():
        tensors = {f"{m}.{down}.weight": torch.randn(2, width) for m, (width, _) in layers.items()}
        tensors |= {f"{m}.{up}.weight": torch.randn(out, 2) for m, (_, out) in layers.items()}
        save_file(tensors, tmp_path / "tree" / f"{name}.safetensors")
    report = import_folder(tmp_path / "tree", tmp_path / "library")
    assert report.imported == ["a", "b"]
    [reason] = report.skipped.values()
    assert "down_blocks.1" in reason
    assert Library.open(tmp_path / "library").table["missing"].to_pylist() == [0, 3]


def test_strangers_beside_a_peft_adapter_and_of_its_name(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    Adapter(factors(1)).save(tree, format="peft")
    Adapter(factors(2)).save(tree / "bob.safetensors")
    Adapter(factors(3)).save(tree / "bob", format="peft")
    report = import_folder(tree, tmp_path / "library")
    assert sorted(report.imported) == ["adapter_model", "bob", "bob/adapter_model"]
    assert import_folder(tree, tmp_path / "library").imported == []


def poison(name: str, folder: Path) -> None:
    """A file that is wrong in one way."""
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    keys = [f"{stem}.lora_down.weight", f"{stem}.lora_up.weight"]
    tensors = dict(zip(keys, (torch.ones(1, 8), torch.ones(8, 1)), strict=True))
    header = None
    if name == "float64 overflows":
        tensors = {key: tensor.double() * 1e300 for key, tensor in tensors.items()}
    elif name == "float32 overflows":
        tensors = {key: tensor * 3e38 for key, tensor in tensors.items()}
    elif name == "complex alpha":
        tensors[f"{stem}.alpha"] = torch.tensor(4 + 1j)
    elif name == "deep header":
        header = {"lorasynth.modules": "[" * 100_000}
    elif name == "one row to halve":
        stem = "lora_unet_final_layer_adaLN_modulation_1"
        tensors = {f"{stem}.lora_down.weight": torch.ones(1, 1)}
        tensors[f"{stem}.lora_up.weight"] = torch.ones(1, 1)
    if name.startswith("config"):
        texts = {"config alpha": '{"lora_alpha": %s}' % ("9" * 400), "config deep": "[" * 100_000}
        texts["config digits"] = '{"lora_alpha": %s}' % ("9" * 5000)
        folder /= "bad"
        folder.mkdir()
        (folder / "adapter_config.json").write_text(texts[name])
        peft = "base_model.model.mid_block.attentions.0.proj_in.lora_"
        tensors = {f"{peft}A.weight": torch.ones(1, 8), f"{peft}B.weight": torch.ones(8, 1)}
        save_file(tensors, folder / "adapter_model.safetensors")
        return
    save_file(tensors, folder / "m_bad.safetensors", header)


POISONS = ["float64 overflows", "float32 overflows", "complex alpha", "deep header"]
POISONS += ["one row to halve", "config alpha", "config deep", "config digits"]


@pytest.mark.parametrize("name", POISONS)
def test_one_bad_file_does_not_stop_the_others(name: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for i in range(3):
        shapes = {"mid_block.attentions.0.proj_in": Factor(torch.ones(1, 8) + i, torch.ones(8, 1))}
        Adapter(shapes).save(tree / f"good{i}.safetensors")
    poison(name, tree)
    report = import_folder(tree, tmp_path / "library")
    assert report.imported == ["good0", "good1", "good2"]
    [reason] = report.skipped.values()
    assert "\n" not in reason


def test_nothing_to_import(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="is none"):
        import_folder(tmp_path / "no", tmp_path / "library")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LibraryError, match="has none"):
        import_folder(tmp_path / "empty", tmp_path / "library")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.safetensors").write_text("hello")
    with pytest.raises(
        LibraryError, match=r"all 1 below .* were skipped, the first because: .*x\.safe"
    ):
        import_folder(tmp_path / "bad", tmp_path / "library")
    assert not (tmp_path / "library").exists()
