"""Parts of a collection, joined, are the library of one process."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from collecting import collect
from colours import Colours

from lorasynth.collect.embedding import embed_library
from lorasynth.collect.failures import Failures
from lorasynth.collect.shards import Part, begin_part, join
from lorasynth.core.errors import CollectionError, ConfigError, ImageError, LibraryError
from lorasynth.engine.recipe import Recipe
from lorasynth.library import Library

RECIPE = Recipe(steps=3, rank=2, targets=("to_q", "to_v"), images_per_step=2, trained="both")


def collect_part(base, source, out, number, count=2, recipe=RECIPE):
    source, path = begin_part(source, out, Part(number, count))
    report = collect(base, source, path, recipe, fleet=2)
    return report, source, path


def assert_same_library(left: Path, right: Path) -> None:
    """Equal in everything."""
    one, other = Library.open(left), Library.open(right)
    assert not one.check().damages
    assert one.ids == other.ids
    for mine, theirs in zip(one.table.to_pylist(), other.table.to_pylist(), strict=True):
        assert mine.pop("losses") == pytest.approx(theirs.pop("losses"))
        assert mine == pytest.approx(theirs)
    assert one.columns == other.columns
    torch.testing.assert_close(one.all_vectors(), other.all_vectors(), rtol=1e-5, atol=1e-7)
    for name in one.columns:
        torch.testing.assert_close(one.column(name), other.column(name))


@dataclass(frozen=True)
class Uneven:
    """Subjects of unequal numbers of images, one of which cannot be read."""

    source: object
    broken: str = "subject-001"
    loads: list = field(default_factory=list)

    @property
    def ids(self):
        return self.source.ids

    def load(self, subject_id):
        if subject_id == self.broken:
            raise ImageError("an image must be whole, but one is cut off")
        subject = self.source.load(subject_id)
        few = 2 if subject_id == "subject-003" else 3
        return replace(subject, photos=subject.images[:few], captions=subject.captions[:few])


def test_joined_parts_are_what_one_process_collects(tmp_path, base, source):
    uneven = Uneven(source)
    collect(base, uneven, tmp_path / "whole", RECIPE, fleet=3)
    embed_library(Library.open(tmp_path / "whole"), uneven, Colours())
    for number in (2, 1):
        _, some, path = collect_part(base, uneven, tmp_path / "lib", number)
        embed_library(Library.open(path), some, Colours())
    report = join(tmp_path / "lib")
    assert (report.adapters, report.joined, report.failed) == (4, 4, 1)
    assert report.columns == ["mean_colour_0123"]
    assert_same_library(tmp_path / "lib", tmp_path / "whole")
    assert Failures(tmp_path / "lib").found == Failures(tmp_path / "whole").found
    assert join(tmp_path / "lib").joined == 0
    assert collect(base, uneven, tmp_path / "lib", RECIPE).collected == []


def test_a_join_goes_on_where_it_was_killed(tmp_path, base, source, monkeypatch):
    collect(base, source, tmp_path / "whole", RECIPE, fleet=3)
    for number in (1, 2):
        collect_part(base, source, tmp_path / "lib", number)
    monkeypatch.setattr("lorasynth.collect.shards._ROWS", 2)
    append, calls = Library.append, []

    def killed(self, *arguments):
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        append(self, *arguments)

    monkeypatch.setattr(Library, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        join(tmp_path / "lib")
    assert Library.open(tmp_path / "lib").ids == source.ids[:2]
    parts = [tmp_path / "lib" / "parts" / name for name in ("2-of-2", "1-of-2")]
    assert join(tmp_path / "lib", parts).joined == 3
    assert_same_library(tmp_path / "lib", tmp_path / "whole")


def test_parts_that_are_missing_unfinished_or_strange_are_refused(tmp_path, base, source):
    with pytest.raises(CollectionError, match="holds none"):
        join(tmp_path / "lib")
    collect_part(base, source, tmp_path / "lib", 1)
    with pytest.raises(CollectionError, match="each of 2 parts once, but got 1"):
        join(tmp_path / "lib")
    _, some, path = collect_part(base, replace(source, count=2), tmp_path / "other", 2)
    with pytest.raises(CollectionError, match="differs from"):
        join(tmp_path / "lib", [tmp_path / "lib/parts/1-of-2", path])
    with pytest.raises(CollectionError, match="begun with other subjects"):
        begin_part(source, tmp_path / "other", Part(2, 2))
    some, path = begin_part(source, tmp_path / "lib", Part(2, 2))
    collect(base, replace_chosen(some, 1), path, RECIPE)
    with pytest.raises(CollectionError, match="part 2 of 2 lacks 1 subjects, the first 'subject-0"):
        join(tmp_path / "lib")
    collect(base, some, path, RECIPE)
    collect(base, source, tmp_path / "taken", replace(RECIPE, seed=1))
    parts = sorted((tmp_path / "lib/parts").glob("*-of-2"))
    with pytest.raises(LibraryError, match="must have one recipe"):
        join(tmp_path / "taken", parts)
    assert join(tmp_path / "lib").adapters == 5


def replace_chosen(source, count):
    return replace(source, chosen=source.chosen[:count])


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "-1/2", "1/0"])
def test_a_part_is_i_of_n(text):
    with pytest.raises(ConfigError, match="i/n"):
        Part.parse(text)


def test_parts_are_every_subject_once():
    ids = [f"{number}" for number in range(11)]
    parts = [Part.parse(f"{number}/4").of(ids) for number in range(1, 5)]
    assert sorted(name for part in parts for name in part) == sorted(ids)
    assert parts[1] == ["1", "5", "9"]


def test_more_parts_than_subjects_are_refused(tmp_path, source):
    with pytest.raises(CollectionError, match="use fewer parts"):
        begin_part(source, tmp_path / "lib", Part(6, 6))


def test_failures_of_a_joined_library_that_was_deleted_are_forgotten(tmp_path, base, source):
    out = tmp_path / "lib"
    for number in (1, 2):
        collect_part(base, replace(source, count=2), out, number)
    (tmp_path / "lib.failures.json").write_text('{"somebody": {"reason": "old"}}')
    join(out)
    assert Failures(out).ids == []
    (tmp_path / "file").touch()
    with pytest.raises(LibraryError, match="file is a file"):
        join(tmp_path / "file", [out / "parts" / "1-of-2", out / "parts" / "2-of-2"])
