"""Every source of subjects keeps the contract; one row each."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lorasynth.avatars.drawing import AvatarSubjects
from lorasynth.images import FolderSubjects, Subject, SubjectSource, subjects_in
from lorasynth.images.parquet import ParquetSubjects
from lorasynth.images.tars import TarSubjects

from .test_tars import image as png
from .test_tars import write

COUNT, IMAGES, SIZE = 3, 2, 16


def avatars(_: Path) -> SubjectSource:
    return AvatarSubjects(split="train", count=COUNT, images=IMAGES, size=SIZE)


def folders(root: Path) -> SubjectSource:
    for subject in range(COUNT):
        folder = root / f"subject {subject}"
        folder.mkdir(parents=True, exist_ok=True)
        for image in range(IMAGES):
            (folder / f"{image}.png").write_bytes(encoded(subject, image))
    return FolderSubjects(root)


def encoded(subject: int, image: int) -> bytes:
    return png(40 * subject + image, 20, 30)


def tars(root: Path) -> SubjectSource:
    for subject in range(COUNT):
        files = {f"subject {subject}.{i}.png": encoded(subject, i) for i in range(IMAGES)}
        write(root / f"{subject}.tar", files)
    return TarSubjects(root)


def parquet(root: Path) -> SubjectSource:
    pairs = [(subject, image) for subject in range(COUNT) for image in range(IMAGES)]
    table = {"id": [s for s, _ in pairs], "image": [encoded(*pair) for pair in pairs]}
    pq.write_table(pa.table(table), root / "subjects.parquet", row_group_size=3)
    return ParquetSubjects(root)


MAKERS = [avatars, folders, tars, parquet]
rows = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
Make = Callable[[Path], SubjectSource]


@rows
def test_ids_are_distinct_and_stable(tmp_path: Path, make: Make) -> None:
    source = make(tmp_path)
    assert isinstance(source, SubjectSource)
    assert len(set(source.ids)) == COUNT
    assert list(make(tmp_path).ids) == list(source.ids)


@rows
def test_a_subject_has_captioned_photos(tmp_path: Path, make: Make) -> None:
    source = make(tmp_path)
    for subject_id in source.ids:
        subject = source.load(subject_id)
        assert subject.id == subject_id
        assert len(subject.photos) == IMAGES
        assert {tuple(photo.shape) for photo in subject.photos} <= {(20, 30, 3), (SIZE, SIZE, 3)}
        assert {photo.dtype for photo in subject.photos} == {torch.uint8}
        assert len(subject.captions) == IMAGES
        assert all("sks" in caption for caption in subject.captions)
        assert json.loads(json.dumps(dict(subject.attributes))) == subject.attributes


@rows
def test_loading_again_gives_the_same(tmp_path: Path, make: Make) -> None:
    def same(first: Subject, second: Subject) -> bool:
        return (
            first.images.equal(second.images)
            and first.captions == second.captions
            and first.attributes == second.attributes
        )

    source = make(tmp_path)
    forwards = [source.load(name) for name in source.ids]
    backwards = [make(tmp_path).load(name) for name in reversed(source.ids)][::-1]
    assert all(map(same, forwards, backwards))
    assert not same(forwards[0], forwards[1])


@pytest.mark.parametrize("make", MAKERS[1:], ids=lambda make: make.__name__)
def test_the_kind_of_source_is_told_by_what_is_there(tmp_path: Path, make: Make) -> None:
    source = make(tmp_path)
    found = subjects_in(tmp_path)
    assert (type(found), found.root) == (type(source), source.root)
    asked = subjects_in(tmp_path, "a photo of sks person")
    assert asked.load(asked.ids[0]).captions == ["a photo of sks person"] * IMAGES
    first = found.load(found.ids[0])
    assert first.images[:, 0, 0, 0].tolist() == [0, 1]


@pytest.mark.parametrize("make", MAKERS[1:], ids=lambda make: make.__name__)
def test_a_stamp_is_that_of_the_files(tmp_path: Path, make: Make) -> None:
    make(tmp_path)
    source = subjects_in(tmp_path)
    [first, *others] = source.ids
    before = source.stamp([first])
    assert subjects_in(tmp_path).stamp([first]) == before != source.stamp(others)
    assert subjects_in(tmp_path, "another caption").stamp([first]) != before
    for path in tmp_path.rglob("*.*"):
        os.utime(path, ns=(1, 1))
    assert subjects_in(tmp_path).stamp([first]) != before
