"""A pool of drawn avatars: what it says of its images is true, and drawing resumes."""

from pathlib import Path

import pytest

from lorasynth.avatars.drawing import AvatarSubjects
from lorasynth.avatars.pool import LABELS, Drawn, Pool

#: One chunk and a bit.
SUBJECTS = AvatarSubjects(split="train", count=66, images=2, size=8, series="pool")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pool")


@pytest.fixture(scope="module")
def pool(folder: Path) -> Pool:
    return Drawn(SUBJECTS, folder).pool()


def test_images_are_those_of_the_source(pool: Pool) -> None:
    assert len(pool) == 132
    for i in (0, 65):
        assert pool.images[2 * i : 2 * i + 2].equal(SUBJECTS.draw(SUBJECTS.ids[i]))


def test_labels_are_the_attributes(pool: Pool) -> None:
    names = list(LABELS)
    for i in (0, 1, 40, 131):
        name = SUBJECTS.ids[i // 2]
        shown = {**vars(SUBJECTS.identity(name)), **vars(SUBJECTS.scenes(name)[i % 2])}
        values = [LABELS[n][v] for n, v in zip(names, pool.labels[i].tolist(), strict=True)]
        assert values == [shown[n] for n in names]


def test_drawing_resumes(pool: Pool, folder: Path) -> None:
    first, second = sorted((folder / "images").iterdir())
    written = first.stat().st_mtime_ns
    second.unlink()
    again = Drawn(SUBJECTS, folder).pool()
    assert first.stat().st_mtime_ns == written
    for name in ("images", "labels"):
        assert getattr(again, name).equal(getattr(pool, name))
