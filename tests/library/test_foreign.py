"""LoRA files of others become a library, whatever is among them."""

from pathlib import Path

import pytest
import torch

from lorasynth.adapter import Adapter, AdapterMetadata, Factor, Factors, cosine
from lorasynth.config import read_json
from lorasynth.errors import LibraryError
from lorasynth.library import Library
from lorasynth.library.foreign import SKIPPED, import_folder

SHAPES = {"down_blocks.0.to_q": (6, 8), "mid_block.to_k": (5, 8)}


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
    """Six usable files in all formats, and some that are not."""
    folder = tmp_path / "tree"
    for seed, (name, kind) in enumerate(
        {"a": "diffusers", "b/c": "kohya", "b/d": "kohya", "e": "diffusers"}.items()
    ):
        Adapter(factors(seed)).save(folder / f"{name}.safetensors", format=kind)
    Adapter(factors(4)).save(folder / "peft", format="peft")
    Adapter(factors(5, rank=1)).save(folder / "low.safetensors")
    (folder / "broken.safetensors").write_bytes(b"\x00" * 20)
    Adapter(factors(6, rank=3)).save(folder / "high.safetensors")
    other = {"down_blocks.0.to_q": factors(7)["down_blocks.0.to_q"]}
    Adapter(other).save(folder / "fewer.safetensors")
    metadata = AdapterMetadata(base_fingerprint="abc")
    Adapter(factors(8), metadata).save(folder / "other base.safetensors")
    return folder


def test_good_files_are_imported_and_bad_ones_listed(tree: Path, tmp_path: Path) -> None:
    report = import_folder(tree, tmp_path / "library", workers=3, shard=4)
    library = Library.open(tmp_path / "library")
    assert library.ids == report.imported == ["a", "b/c", "b/d", "e", "low", "peft"]
    assert library.check().damages == ()
    assert library.table["format"].to_pylist() == [
        "diffusers", "kohya", "kohya", "diffusers", "kohya", "peft"
    ]  # fmt: skip
    reasons = {Path(path).stem: reason for path, reason in report.skipped.items()}
    assert reasons.keys() == {"broken", "high", "fewer", "other base"}
    assert "complete safetensors" in reasons["broken"]
    assert "at most the rank 2" in reasons["high"]
    assert "mid_block.to_k is missing" in reasons["fewer"]
    assert "this one changes abc" in reasons["other base"]
    assert read_json(tmp_path / "library" / SKIPPED) == report.skipped


def test_updates_are_kept(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()  # an empty folder becomes the library
    import_folder(tree, tmp_path / "library")
    library = Library.open(tmp_path / "library")
    for row, name in enumerate(library.ids):
        path = tree / (name if name == "peft" else f"{name}.safetensors")
        stored = {m: Factor(f.A[0], f.B[0]) for m, f in library.factors([row]).items()}
        assert float(cosine(stored, Adapter.load(path).factors)) == pytest.approx(1, abs=1e-6)


def test_importing_again_goes_on(tree: Path, tmp_path: Path) -> None:
    import_folder(tree, tmp_path / "library")
    Adapter(factors(9)).save(tree / "new.safetensors")
    report = import_folder(tree, tmp_path / "library")
    assert report.imported == ["new"]
    assert len(report.skipped) == 4
    assert len(Library.open(tmp_path / "library")) == 7


def test_nothing_to_import(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="is none"):
        import_folder(tmp_path / "no", tmp_path / "library")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LibraryError, match="has none"):
        import_folder(tmp_path / "empty", tmp_path / "library")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.safetensors").write_text("hello")
    with pytest.raises(LibraryError, match=r"all 1 below .* were skipped, the first, .*x\.safe"):
        import_folder(tmp_path / "bad", tmp_path / "library")
    assert not (tmp_path / "library").exists()
