"""A subject that is removed leaves nothing in the library."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorasynth.library import Library
from lorasynth.library.forgetting import forget


def traces(path: Path, name: str, numbers: torch.Tensor) -> list[Path]:
    """The files below a path that hold a name or the numbers."""
    marks = [name.encode(), *(row.numpy().tobytes() for row in numbers.unbind(0)[:8])]
    files = (file for file in path.rglob("*") if file.is_file())
    return [file for file in files if any(mark in file.read_bytes() for mark in marks)]


@pytest.fixture
def library(fill, tmp_path: Path) -> Library:
    library = fill(tmp_path / "lib", 2, 3, 6)
    library.attach("seen", torch.arange(6.0)[:, None] + 0.25)
    for place in (".seen/00000000-6.safetensors", "latents/0123.safetensors", "parts/a/mine.txt"):
        (library.path / place).parent.mkdir(parents=True)
        (library.path / place).write_text("precious")
    return library


@pytest.mark.parametrize("gone", [["s0"], ["s2"], ["s5", "s3"], ["s0", "s1", "s2"], ["s1", "none"]])
def test_the_others_stay_and_nothing_of_the_subject_does(library: Library, gone: list[str]) -> None:
    kept = [row for row in range(6) if f"s{row}" not in gone]
    raw, before = library.factors(kept), library.select(kept).all_vectors()
    lost = library.factors([row for row in range(6) if row not in kept])
    numbers = lost["a.to_q"].A[0]
    assert forget(library.path, gone) == sorted(set(gone) - {"none"})
    left = Library.open(library.path)
    assert left.check().damages == ()
    assert left.ids == [f"s{row}" for row in kept]
    assert left.column("seen")[:, 0].tolist() == [row + 0.25 for row in kept]
    assert left.table["hair"].to_pylist() == ["red" if row % 2 else "black" for row in kept]
    for module, factor in left.factors(range(len(kept))).items():
        assert factor.A.equal(raw[module].A)
        assert factor.B.equal(raw[module].B)
    if "s0" not in gone:
        torch.testing.assert_close(left.all_vectors(), before)
    assert left.info.recipe == library.info.recipe
    for name in gone:
        assert traces(library.path, name, numbers) == []
    assert not (library.path / "latents").exists()
    assert not (library.path / ".seen").exists()
    assert (library.path / "parts/a/mine.txt").read_text() == "precious"


def test_the_reference_is_chosen_again_if_it_was_made_of_the_subject(library: Library) -> None:
    old = load_file(library.path / "reference.safetensors")["vector"]
    forget(library.path, ["s1"])
    assert load_file(library.path / "reference.safetensors")["vector"].equal(old)
    forget(library.path, ["s0"])
    left = Library.open(library.path)
    assert not load_file(library.path / "reference.safetensors")["vector"].equal(old)
    assert left.check().damages == ()


def test_all_may_be_removed_and_others_appended(
    library: Library, make_factors, make_subjects
) -> None:
    forget(library.path, library.ids)
    left = Library.open(library.path)
    assert (len(left), left.ids, left.check().damages) == (0, [], ())
    left.append(make_factors(0, 2), make_subjects(0, 2))
    assert left.ids == ["s0", "s1"]


def test_who_is_not_there_changes_nothing(library: Library) -> None:
    before = {path: path.read_bytes() for path in library.path.rglob("*") if path.is_file()}
    assert forget(library.path, ["none"]) == []
    assert {p: p.read_bytes() for p in library.path.rglob("*") if p.is_file()} == before
