"""A pool of drawn avatars on disk, with labels, to train the embedded models from.

A pool is a folder of chunks, each written by one atomic rename, so drawing one with several
processes resumes after a kill.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from lorasynth.avatars.drawing import AvatarSubjects, Identity, Scene, draw
from lorasynth.avatars.vocabulary import (
    CLOTHES,
    COLOURS,
    EYES,
    FACIAL_HAIR,
    GLASSES,
    MOUTHS,
    NONE,
    TOPS,
)
from lorasynth.core.atomic import atomic_file
from lorasynth.core.progress import progress

#: Discrete attributes that a judge can be asked for, with their values in label order.
IDENTITY_LABELS: dict[str, tuple[str, ...]] = {
    "top": tuple(TOPS),
    "facial_hair": (NONE, *FACIAL_HAIR),
    "glasses": (NONE, *GLASSES),
}
SCENE_LABELS: dict[str, tuple[str, ...]] = {
    "mouth": tuple(MOUTHS),
    "eyes": tuple(EYES),
    "clothes": tuple(CLOTHES),
    "clothes_colour": tuple(COLOURS),
    "background": tuple(COLOURS),
}
LABELS = IDENTITY_LABELS | SCENE_LABELS

_SUBJECTS_PER_CHUNK = 64


def labels_of(identity: Identity, scene: Scene) -> list[int]:
    """The discrete attributes of one image as numbers, in the order of `LABELS`."""
    values = {name: getattr(identity, name) for name in IDENTITY_LABELS}
    values |= {name: getattr(scene, name) for name in SCENE_LABELS}
    return [LABELS[name].index(value) for name, value in values.items()]


@dataclass(frozen=True)
class Pool:
    """Images of a pool in memory; image i shows subject `subject[i]`."""

    images: UInt8[Tensor, "n h w 3"]
    labels: Int64[Tensor, "n attributes"]
    subject: Int64[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.images)


def _draw_chunk(subjects: AvatarSubjects, ids: list[str], path: Path) -> None:
    images, labels = [], []
    for subject_id in ids:
        identity = subjects.identity(subject_id)
        for scene in subjects.scenes(subject_id):
            images.append(draw(identity, scene, subjects.size))
            labels.append(labels_of(identity, scene))
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, images=np.stack(images), labels=np.array(labels, np.int16))


def _chunks(subjects: AvatarSubjects, folder: Path) -> Iterator[tuple[list[str], Path]]:
    ids = subjects.ids
    for start in range(0, len(ids), _SUBJECTS_PER_CHUNK):
        chunk = ids[start : start + _SUBJECTS_PER_CHUNK]
        name = f"{chunk[0]}-{len(chunk)}x{subjects.images}-siblings{subjects.siblings}"
        yield chunk, folder / f"{name}-{subjects.size}px.npz"


def draw_pool(subjects: AvatarSubjects, folder: Path, workers: int) -> Pool:
    """Draw what is missing of a pool, then load it."""
    return _load(draw_chunks(subjects, folder, workers), subjects.images)


def draw_chunks(subjects: AvatarSubjects, folder: Path, workers: int) -> list[Path]:
    """Draw what is missing of a pool; the files of its chunks, in the order of the subjects."""
    chunks = list(_chunks(subjects, folder))
    missing = [(ids, path) for ids, path in chunks if not path.is_file()]
    done = len(chunks) - len(missing)
    with progress("drawing avatars", len(chunks), done) as advance:
        for _ in _drawn(subjects, missing, workers):
            advance()
    return [path for _, path in chunks]


def _drawn(
    subjects: AvatarSubjects, missing: Sequence[tuple[list[str], Path]], workers: int
) -> Iterator[None]:
    """Draw chunks, one after another; a single worker is this process, which forks none."""
    if workers == 1:
        for ids, path in missing:
            _draw_chunk(subjects, ids, path)
            yield
        return
    with ProcessPoolExecutor(workers) as executor:
        tasks = [executor.submit(_draw_chunk, subjects, ids, path) for ids, path in missing]
        for task in tasks:
            task.result()
            yield


def load_images(path: Path) -> UInt8[Tensor, "n h w 3"]:
    """The images of one chunk."""
    with np.load(path, allow_pickle=False) as chunk:
        return torch.from_numpy(chunk["images"])


def _load(paths: list[Path], per_subject: int) -> Pool:
    images = torch.cat([load_images(path) for path in paths])
    parts = [np.load(path, allow_pickle=False)["labels"] for path in paths]
    return Pool(
        images=images,
        labels=torch.from_numpy(np.concatenate(parts).astype(np.int64)),
        subject=torch.arange(len(images)) // per_subject,
    )


def training_subjects(
    series: str, count: int, seed: int, siblings: int = 1, size: int = 128
) -> AvatarSubjects:
    """The subjects that an embedded model is trained on; different series share none."""
    return AvatarSubjects(
        split="train",
        count=count,
        images=8,
        seed=seed,
        series=series,
        siblings=siblings,
        size=size,
    )
