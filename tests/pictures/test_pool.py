"""A pool of drawn avatars: what it says of its pictures is true, and drawing resumes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorasynth.pictures import captions
from lorasynth.pictures.avatars import AvatarSubjects, split_of
from lorasynth.pictures.pool import CAPTIONS, LABELS, Pool, draw_pool, training_subjects

#: One chunk and a bit.
SUBJECTS = AvatarSubjects(split="train", count=66, pictures=2, size=8, series="pool")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pool")


@pytest.fixture(scope="module")
def pool(folder: Path) -> Pool:
    return draw_pool(SUBJECTS, folder, workers=1)


def test_pictures_are_those_of_the_source(pool: Pool) -> None:
    assert len(pool) == 132
    assert pool.subject.tolist() == [i // 2 for i in range(132)]
    for i in (0, 65):
        assert pool.pictures[2 * i : 2 * i + 2].equal(SUBJECTS.draw(SUBJECTS.ids[i]))


def test_labels_are_the_attributes(pool: Pool) -> None:
    names = list(LABELS)
    for i in (0, 1, 40, 131):
        name = SUBJECTS.ids[i // 2]
        shown = {**vars(SUBJECTS.identity(name)), **vars(SUBJECTS.scenes(name)[i % 2])}
        values = [LABELS[n][v] for n, v in zip(names, pool.labels[i].tolist(), strict=True)]
        assert values == [shown[n] for n in names]


def test_captions_say_nothing_false(pool: Pool) -> None:
    assert pool.captions.shape == (132, CAPTIONS)
    for i in range(132):
        name = SUBJECTS.ids[i // 2]
        whole = captions.described(SUBJECTS.identity(name), SUBJECTS.scenes(name)[i % 2])
        for text in pool.captions[i]:
            assert set(text.decode().split(", ")) <= set(whole.split(", "))
    assert len({text for row in pool.captions for text in row}) > 132


def test_no_caption_is_longer_than_is_stored() -> None:
    longest = max(
        len(captions.described(identity, scene).encode())
        for identity, scene in (
            (SUBJECTS.identity(name), SUBJECTS.scenes(name)[0])
            for name in replace(SUBJECTS, count=2000).ids
        )
    )
    assert longest < 200


def test_drawing_resumes(pool: Pool, folder: Path) -> None:
    first, second = sorted(folder.iterdir())
    written = first.stat().st_mtime_ns
    second.unlink()
    again = draw_pool(SUBJECTS, folder, workers=1)
    assert first.stat().st_mtime_ns == written
    for name in ("pictures", "labels", "subject"):
        assert getattr(again, name).equal(getattr(pool, name))
    assert (again.captions == pool.captions).all()


def test_series_of_training_subjects() -> None:
    base, other = (training_subjects(series, 100, seed=0) for series in ("base", "other"))
    assert not set(base.ids) & set(other.ids)
    assert {split_of(base.identity(name).combination) for name in base.ids} == {"train"}
    drawn = torch.tensor(
        [
            base.identity(n).skin == other.identity(m).skin
            for n, m in zip(base.ids, other.ids, strict=True)
        ]
    )
    assert not drawn.any()
