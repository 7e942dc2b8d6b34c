"""A pool of drawn avatars on disk, with labels, to train the embedded models from.

A pool is a folder of chunks, each written by one atomic rename, so drawing one with several
processes resumes after a kill.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from lorasynth.avatars.drawing import AvatarSubjects, Identity, Scene
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
from lorasynth.core.device import worker_processes
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

#: Subjects.
_IN_CHUNK = 64


def labels_of(identity: Identity, scene: Scene) -> list[int]:
    """The discrete attributes of one image as numbers, in the order of `LABELS`."""
    values = {name: getattr(identity, name) for name in IDENTITY_LABELS}
    values |= {name: getattr(scene, name) for name in SCENE_LABELS}
    return [LABELS[name].index(value) for name, value in values.items()]


@dataclass(frozen=True)
class Pool:
    """Images of a pool in memory, with their discrete attributes in the order of `LABELS`."""

    images: UInt8[Tensor, "n h w 3"]
    labels: Int64[Tensor, "n attributes"]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Drawn:
    """Subjects whose images are drawn into chunks on disk, each once.

    Attributes:
        subjects: whose images.
        run: folder; images are below it.
        workers: processes that draw.
    """

    subjects: AvatarSubjects
    run: Path
    workers: int = 1

    def chunks(self) -> list[Path]:
        """Draw what is missing; the files of the chunks, in the order of the subjects."""
        one = self.subjects
        parts = [one.ids[i : i + _IN_CHUNK] for i in range(0, one.count, _IN_CHUNK)]
        names = (f"{p[0]}-{len(p)}x{one.images}-siblings{one.siblings}-{one.size}px" for p in parts)
        paths = [self.run / "images" / f"{name}.npz" for name in names]
        missing = [(ids, p) for ids, p in zip(parts, paths, strict=True) if not p.is_file()]
        with progress("drawing avatars", len(paths), len(paths) - len(missing)) as advance:
            for _ in self._drawing(missing):
                advance()
        return paths

    def _drawing(self, missing: Sequence[tuple[list[str], Path]]) -> Iterator[None]:
        """Draw chunk after chunk; a single worker is this process, which forks none."""
        if self.workers == 1:
            for ids, path in missing:
                _draw_chunk(self.subjects, ids, path)
                yield
            return
        with worker_processes(self.workers) as executor:
            tasks = [executor.submit(_draw_chunk, self.subjects, *part) for part in missing]
            for task in tasks:
                task.result()
                yield

    def pool(self) -> Pool:
        """All images in memory."""
        named = ((self.subjects.identity(i), self.subjects.scenes(i)) for i in self.subjects.ids)
        labels = [labels_of(identity, scene) for identity, scenes in named for scene in scenes]
        images = torch.cat([load_images(path) for path in self.chunks()])
        return Pool(images=images, labels=torch.tensor(labels))


def _draw_chunk(subjects: AvatarSubjects, ids: list[str], path: Path) -> None:
    images = torch.cat([subjects.draw(subject_id) for subject_id in ids])
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, images=images.numpy())


def load_images(path: Path) -> UInt8[Tensor, "n h w 3"]:
    """The images of one chunk."""
    with np.load(path, allow_pickle=False) as chunk:
        return torch.from_numpy(chunk["images"])
