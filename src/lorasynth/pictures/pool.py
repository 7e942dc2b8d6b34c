"""A pool of drawn avatars on disk, with labels and captions, to train the embedded models from.

A pool is a folder of chunks, each written by one atomic rename, so drawing one with several
processes resumes after a kill.
"""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, Shaped, UInt8
from torch import Tensor

from lorasynth.atomic import atomic_file
from lorasynth.pictures import captions
from lorasynth.pictures.avatars import AvatarSubjects, Identity, Scene, draw
from lorasynth.pictures.vocabulary import (
    CLOTHES,
    COLOURS,
    EYES,
    FACIAL_HAIR,
    GLASSES,
    MOUTHS,
    NONE,
    TOPS,
)
from lorasynth.progress import progress
from lorasynth.randomness import numpy_stream

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

#: Caption variants drawn per picture (each drops other phrases).
CAPTIONS = 4
_SUBJECTS_PER_CHUNK = 64
_CAPTION_BYTES = 200


def labels_of(identity: Identity, scene: Scene) -> list[int]:
    """The discrete attributes of one picture as numbers, in the order of `LABELS`."""
    values = {name: getattr(identity, name) for name in IDENTITY_LABELS}
    values |= {name: getattr(scene, name) for name in SCENE_LABELS}
    return [LABELS[name].index(value) for name, value in values.items()]


@dataclass(frozen=True)
class Pool:
    """All pictures of a pool in memory; picture i shows subject `subject[i]`.

    `captions` are UTF-8 bytes, `CAPTIONS` variants of each picture's.
    """

    pictures: UInt8[Tensor, "n h w 3"]
    labels: Int64[Tensor, "n attributes"]
    subject: Int64[Tensor, " n"]
    captions: Shaped[np.ndarray, "n captions"]

    def __len__(self) -> int:
        return len(self.pictures)


def _draw_chunk(subjects: AvatarSubjects, ids: list[str], path: Path) -> None:
    pictures, labels, texts = [], [], []
    for subject_id in ids:
        identity = subjects.identity(subject_id)
        for j, scene in enumerate(subjects.scenes(subject_id)):
            rng = numpy_stream(subjects.seed, subject_id, "captions", j)
            pictures.append(draw(identity, scene, subjects.size))
            labels.append(labels_of(identity, scene))
            texts.append(
                [captions.training_caption(identity, scene, rng).encode() for _ in range(CAPTIONS)]
            )
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            pictures=np.stack(pictures),
            labels=np.array(labels, np.int16),
            captions=np.array(texts, f"S{_CAPTION_BYTES}"),
        )


def _chunks(subjects: AvatarSubjects, folder: Path) -> Iterator[tuple[list[str], Path]]:
    ids = subjects.ids
    for start in range(0, len(ids), _SUBJECTS_PER_CHUNK):
        chunk = ids[start : start + _SUBJECTS_PER_CHUNK]
        name = f"{chunk[0]}-{len(chunk)}x{subjects.pictures}-siblings{subjects.siblings}"
        yield chunk, folder / f"{name}.npz"


def draw_pool(subjects: AvatarSubjects, folder: Path, workers: int) -> Pool:
    """Draw what is missing of a pool, then load it."""
    chunks = list(_chunks(subjects, folder))
    missing = [(ids, path) for ids, path in chunks if not path.is_file()]
    done = len(chunks) - len(missing)
    with (
        ProcessPoolExecutor(workers) as executor,
        progress("drawing avatars", len(chunks), done) as advance,
    ):
        tasks = [executor.submit(_draw_chunk, subjects, ids, path) for ids, path in missing]
        for task in tasks:
            task.result()
            advance()
    return _load([path for _, path in chunks], subjects.pictures)


def _load(paths: list[Path], per_subject: int) -> Pool:
    parts = [dict(np.load(path, allow_pickle=False)) for path in paths]
    pictures = np.concatenate([part["pictures"] for part in parts])
    labels = np.concatenate([part["labels"] for part in parts]).astype(np.int64)
    return Pool(
        pictures=torch.from_numpy(pictures),
        labels=torch.from_numpy(labels),
        subject=torch.arange(len(pictures)) // per_subject,
        captions=np.concatenate([part["captions"] for part in parts]),
    )


def training_subjects(series: str, count: int, seed: int, siblings: int = 1) -> AvatarSubjects:
    """The subjects that an embedded model is trained on; different series share none."""
    return AvatarSubjects(
        split="train", count=count, pictures=8, seed=seed, series=series, siblings=siblings
    )
