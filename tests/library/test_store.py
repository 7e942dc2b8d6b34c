import json
import subprocess
import sys
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from safetensors import safe_open

from lorasynth.adapter import GAUGES, Layout, Slot, canonicalise, choose_reference
from lorasynth.core.errors import ConfigError, LayoutError, LibraryError
from lorasynth.library import Library


def test_vectors_are_the_canonical_form_of_the_raw_factors(fill, make_factors, tmp_path) -> None:
    library = fill(tmp_path / "lib", 3, 7)
    raw = make_factors(0, 7)
    reference = choose_reference(raw, "procrustes")
    expected = library.layout.flatten(canonicalise(raw, "procrustes", reference))
    torch.testing.assert_close(library.all_vectors(), expected)
    kept = library.factors(range(7))
    for module, factor in raw.items():
        assert torch.equal(kept[module].A, factor.A)
        assert torch.equal(kept[module].B, factor.B)


@pytest.mark.parametrize("gauge", GAUGES.names())
def test_appending_gives_the_same_vectors_as_building_at_once(
    fill, shared_a, make_subjects, tmp_path, gauge: str
) -> None:
    built = []
    for name, ends in (("once", [6]), ("parts", [1, 2, 6])):
        fill(tmp_path / name, gauge=gauge)
        for start, stop in zip([0, *ends], ends, strict=False):
            library = Library.open(tmp_path / name)
            library.append(shared_a(start, stop), make_subjects(start, stop))
        built.append(Library.open(tmp_path / name))
    once, parts = built
    torch.testing.assert_close(once.all_vectors(), parts.all_vectors(), rtol=1e-5, atol=1e-6)
    assert once.info.reference_hash == parts.info.reference_hash
    assert once.table == parts.table
    assert torch.isfinite(once.all_vectors()).all()


def test_reopened_library_reads_the_same(fill, tmp_path) -> None:
    written = fill(tmp_path / "lib", 2, 5)
    read = Library.open(tmp_path / "lib")
    assert len(read) == 5
    assert read.width == read.layout.size == written.layout.size
    assert read.ids == [f"s{row}" for row in range(5)]
    assert read.table["hair"].to_pylist() == ["black", "red", "black", "red", "black"]
    assert read.info.base_fingerprint == "base"
    assert read.info.recipe == {"lr": 0.1}
    assert torch.equal(read.all_vectors(), written.all_vectors())


def test_rows_come_in_the_order_asked_for(fill, tmp_path) -> None:
    library = fill(tmp_path / "lib", 2, 3, 6)
    rows = [5, 0, 2, 5, 1]
    assert torch.equal(library.select(rows).all_vectors(), library.all_vectors()[rows])
    every = library.layout.flatten(library.factors(range(6)))
    assert torch.equal(library.layout.flatten(library.factors(rows)), every[rows])
    assert library.select([]).all_vectors().shape == (0, library.width)
    with pytest.raises(LibraryError, match="rows must be from 0 to 5, but got -1 to 2"):
        library.select([-1, 2])


def test_views_are_parts_of_the_library(fill, tmp_path) -> None:
    library = fill(tmp_path / "lib", 2, 5)
    library.attach("embedding", np.arange(10.0).reshape(5, 2))
    red = library.where("hair", "red")
    assert red.ids == ["s1", "s3"]
    assert torch.equal(red.all_vectors(), library.all_vectors()[[1, 3]])
    assert red.column("embedding").tolist() == [[2, 3], [6, 7]]
    assert red.table["id"].to_pylist() == red.ids
    assert library.select(library.rows_of(["s4", "s0"])).ids == ["s4", "s0"]
    assert torch.equal(red.factors()["c"].A, library.factors([1, 3])["c"].A)
    assert red.select([1]).ids == ["s3"]
    assert red.whole is library
    with pytest.raises(LibraryError, match="not a selection"):
        red.attach("embedding", np.zeros(2))
    with pytest.raises(LibraryError, match="'s9' is not"):
        library.rows_of(["s9"])
    with pytest.raises(LibraryError, match="must be one of id, hair, but got 'age'"):
        library.where("age", 3)


def test_a_shared_a_is_stored_once(fill, shared_a, make_subjects, tmp_path: Path) -> None:
    library = fill(tmp_path / "lib", gauge="shared")
    library.append(shared_a(0, 4), make_subjects(0, 4))
    with safe_open(tmp_path / "lib/shards/000000/factors.safetensors", "pt") as file:
        assert file.get_slice("a.to_q.A").get_shape() == [1, 2, 5]
        assert file.get_slice("a.to_q.B").get_shape() == [4, 4, 2]
    assert torch.equal(library.factors([2, 0])["a.to_q"].A, shared_a(0, 2)["a.to_q"].A)


def test_half_precision_vectors(fill, make_factors, make_subjects, tmp_path: Path) -> None:
    half, full = fill(tmp_path / "half", 3, dtype="float16"), fill(tmp_path / "full", 3)
    assert half.all_vectors().dtype == torch.float32
    assert torch.equal(half.factors([1])["c"].B, full.factors([1])["c"].B)
    huge = {m: f._replace(B=f.B * 1e12) for m, f in make_factors(3, 4).items()}
    with pytest.raises(LibraryError, match="must fit into float16"):
        half.append(huge, make_subjects(3, 4))


def test_columns(fill, make_factors, make_subjects, tmp_path: Path) -> None:
    library = fill(tmp_path / "lib", 2, 3)
    library.attach("loss", torch.tensor([1.0, 2.0, 3.0]))
    library.attach("loss", torch.tensor([4.0, 5.0, 6.0]).half())
    assert Library.open(tmp_path / "lib").column("loss").tolist() == [4, 5, 6]
    with pytest.raises(LibraryError, match="one entry for each of the 3 adapters"):
        library.attach("loss", torch.zeros(2))
    with pytest.raises(LibraryError, match="plain word"):
        library.attach("../loss", torch.zeros(3))
    with pytest.raises(LibraryError, match="must be attached before"):
        library.column("embedding")
    library.append(make_factors(3, 4), make_subjects(3, 4))
    with pytest.raises(LibraryError, match=r"must cover all 4 adapters, but .* covers 3"):
        library.column("loss")


def test_subjects_may_have_different_columns(fill, make_factors, tmp_path: Path) -> None:
    library = fill(tmp_path / "lib", 1)
    library.append(make_factors(1, 3), [{"id": "x", "age": 3}, {"id": "y", "hair": "grey"}])
    library.append(make_factors(3, 4), [{"id": "z", "age": 4.5}])
    assert library.table["age"].to_pylist() == [None, 3, None, 4.5]
    with pytest.raises(LibraryError, match="one type in the whole library"):
        library.append(make_factors(4, 5), [{"id": "w", "age": "old"}])
    assert len(Library.open(tmp_path / "lib")) == 4


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "s0"}, {"id": "new"}], "'s0' occurs again"),
        ([{"id": "new"}, {"id": "new"}], "'new' occurs again"),
        ([{"id": "new"}, {"hair": "red"}], "a text as id, but got None"),
        ([{"id": "new"}, {"id": 7}], "a text as id, but got 7"),
        ([{"id": "new"}], "got 2 adapters and 1 subjects"),
    ],
)
def test_wrong_subjects_are_refused(fill, make_factors, tmp_path, rows, message: str) -> None:
    library = fill(tmp_path / "lib", 1)
    with pytest.raises(LibraryError, match=message):
        library.append(make_factors(1, 3), rows)
    assert library.ids == Library.open(tmp_path / "lib").ids == ["s0"]


def test_wrong_adapters_are_refused(fill, make_factors, make_subjects, tmp_path: Path) -> None:
    library = fill(tmp_path / "lib", 1)
    partial = make_factors(1, 2)
    del partial["c"]
    with pytest.raises(LayoutError, match="c is missing"):
        library.append(partial, make_subjects(1, 2))
    broken = {m: f._replace(B=f.B * torch.nan) for m, f in make_factors(1, 2).items()}
    with pytest.raises(LayoutError, match="NaN"):
        library.append(broken, make_subjects(1, 2))
    assert len(library) == 1


def test_a_second_writer_is_told_at_once(fill, make_factors, make_subjects, tmp_path) -> None:
    library, second = fill(tmp_path / "lib", 1), Library.open(tmp_path / "lib")
    with second.locked():
        with pytest.raises(LibraryError, match="one writer at a time"):
            library.append(make_factors(1, 2), make_subjects(1, 2))
        second.append(make_factors(1, 2), make_subjects(1, 2))
        assert len(library.all_vectors()) == 1, "a reader needs no lock"
    library.refresh()
    assert library.ids == ["s0", "s1"]
    library.append(make_factors(2, 3), make_subjects(2, 3))
    assert not filelock.FileLock(tmp_path / "lib/.lock").is_locked


HOLDER = """
import sys
from lorasynth.library import Library

with Library.open(sys.argv[1]).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_the_one_writer(fill, make_factors, make_subjects, tmp_path) -> None:
    library = fill(tmp_path / "lib", 1)
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "lib")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as holder:
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(LibraryError, match=r"another process is writing .*: wait for it"):
            library.append(make_factors(1, 2), make_subjects(1, 2))
        assert len(library.all_vectors()) == 1, "a reader needs no lock"
        holder.communicate()
    library.append(make_factors(1, 2), make_subjects(1, 2))
    assert library.ids == ["s0", "s1"]


def test_a_writer_sees_what_others_appended(fill, make_factors, make_subjects, tmp_path) -> None:
    first, second = fill(tmp_path / "lib", 1), Library.open(tmp_path / "lib")
    first.append(make_factors(1, 2), make_subjects(1, 2))
    with pytest.raises(LibraryError, match="'s1' occurs again"):
        second.append(make_factors(1, 2), make_subjects(1, 2))
    second.append(make_factors(2, 3), make_subjects(2, 3))
    assert Library.open(tmp_path / "lib").ids == ["s0", "s1", "s2"]


def test_what_is_no_library_is_refused(fill, layout: Layout, tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match=r"must be a library, but is not: .*does not exist"):
        Library.open(tmp_path)
    fill(tmp_path / "lib", 1)
    with pytest.raises(LibraryError, match="needs a path of its own"):
        Library.create(tmp_path / "lib", layout)
    with pytest.raises(ConfigError, match="a gauge must be one of"):
        Library.create(tmp_path / "other", layout, gauge="mine")
    assert not (tmp_path / "other").exists()
    info = tmp_path / "lib/library.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "version": 99}))
    with pytest.raises(LibraryError, match=r"must have version 1, but .* has 99"):
        Library.open(tmp_path / "lib")


def test_a_given_reference_is_frozen(fill, make_factors, layout: Layout, tmp_path) -> None:
    reference = choose_reference(make_factors(50, 51), "procrustes")
    library = fill(tmp_path / "given")
    library.freeze(reference)
    library.append(make_factors(0, 3), [{"id": f"s{row}"} for row in range(3)])
    assert torch.equal(layout.flatten(library.reference), layout.flatten(reference))
    expected = canonicalise(make_factors(0, 3), "procrustes", reference)
    torch.testing.assert_close(library.all_vectors(), layout.flatten(expected))
    other = Layout((*layout.slots, Slot("d", 2, 2, 1)))
    with pytest.raises(LayoutError, match="is missing"):
        Library.create(tmp_path / "bad", other).freeze(reference)


def test_an_empty_library(fill, tmp_path: Path) -> None:
    library = fill(tmp_path / "lib")
    assert len(library) == 0
    assert library.ids == []
    assert library.all_vectors().shape == (0, library.width)
    assert library.check().damages == ()
    with pytest.raises(LibraryError, match="at least one row"):
        library.factors([])


def test_a_library_of_an_earlier_release_is_read_by_the_names_of_today(
    fill, make_factors, tmp_path: Path
) -> None:
    library = fill(tmp_path / "lib")
    library.append(make_factors(0, 1), [{"id": "s0", "pictures": 4, "seconds": 0.5}])
    info = tmp_path / "lib/library.json"
    earlier = {"pictures_per_step": 4, "anchor": "abc", "prior": {"pictures": 2}}
    info.write_text(json.dumps({**json.loads(info.read_text()), "recipe": earlier}))
    read = Library.open(tmp_path / "lib")
    assert read.info.recipe == {"images_per_step": 4, "init_from": "abc", "prior": {"images": 2}}
    assert read.table["images"].to_pylist() == [4]
    read.append(make_factors(1, 2), [{"id": "s1", "images": 3}])
    assert read.table["images"].to_pylist() == [4, 3]
