"""Every source of subjects keeps the contract; one row each."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorasynth.pictures import AvatarSubjects, FolderSubjects, Subject, SubjectSource, to_image

COUNT, PICTURES, SIZE = 3, 2, 16


def avatars(_: Path) -> SubjectSource:
    return AvatarSubjects(split="train", count=COUNT, pictures=PICTURES, size=SIZE)


def folders(root: Path) -> SubjectSource:
    for subject in range(COUNT):
        folder = root / f"subject {subject}"
        folder.mkdir(parents=True, exist_ok=True)
        for picture in range(PICTURES):
            colours = torch.full((20, 30, 3), 40 * subject + picture, dtype=torch.uint8)
            to_image(colours).save(folder / f"{picture}.png")
    return FolderSubjects(root, SIZE)


rows = pytest.mark.parametrize("make", [avatars, folders], ids=lambda make: make.__name__)
Make = Callable[[Path], SubjectSource]


@rows
def test_ids_are_distinct_and_stable(tmp_path: Path, make: Make) -> None:
    source = make(tmp_path)
    assert isinstance(source, SubjectSource)
    assert len(set(source.ids)) == COUNT
    assert list(make(tmp_path).ids) == list(source.ids)


@rows
def test_a_subject_has_captioned_pictures_of_one_size(tmp_path: Path, make: Make) -> None:
    source = make(tmp_path)
    for subject_id in source.ids:
        subject = source.load(subject_id)
        assert subject.id == subject_id
        assert subject.pictures.shape == (PICTURES, SIZE, SIZE, 3)
        assert subject.pictures.dtype == torch.uint8
        assert len(subject.captions) == PICTURES
        assert all("sks" in caption for caption in subject.captions)
        assert json.loads(json.dumps(dict(subject.attributes))) == subject.attributes


@rows
def test_loading_again_gives_the_same(tmp_path: Path, make: Make) -> None:
    def same(first: Subject, second: Subject) -> bool:
        return (
            first.pictures.equal(second.pictures)
            and first.captions == second.captions
            and first.attributes == second.attributes
        )

    source = make(tmp_path)
    forwards = [source.load(name) for name in source.ids]
    backwards = [make(tmp_path).load(name) for name in reversed(source.ids)][::-1]
    assert all(map(same, forwards, backwards))
    assert not same(forwards[0], forwards[1])
