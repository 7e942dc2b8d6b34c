"""Faces that dlib finds and tells apart, on real photos that are changed, with one thread.

    pip download --no-binary :all: --no-deps face_recognition==1.3.0
    tar xzf face_recognition-1.3.0.tar.gz
    OMP_NUM_THREADS=1 python bench/faces.py face_recognition-1.3.0/tests/test_images

The photos of people are not in this repository: the folder has three of one man and one of another,
insightface one of six people and one of an actor, scikit-image one of an astronaut.  Times are of
the processor, so that other load on the machine does not count.

`--centre FILE` writes the mean of the ten people's embeddings, one for each person, which
`faces/dlib_centre.json` holds.
"""

import argparse
import json
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from lorasynth.condition import FaceEncoder, load_encoder
from lorasynth.condition.faces.dlib import _centre
from lorasynth.core.atomic import write_text
from lorasynth.core.errors import ImageError
from lorasynth.images import read_photo, to_image

SAME = ("obama.jpg", "obama2.jpg", "obama3.jpg")


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image))


def in_package(package: str, name: str) -> Tensor:
    found = find_spec(package)
    assert found
    assert found.origin
    return read_photo(Path(found.origin).parent / name)


def portraits(folder: Path) -> dict[str, Tensor]:
    """Six photos of four people."""
    names = ("biden.jpg", *SAME)
    return {name: read_photo(folder / name) for name in names} | {
        "actor": in_package("insightface", "data/images/Tom_Hanks_54745.png"),
        "astronaut": in_package("skimage", "data/astronaut.png"),
    }


def turned(degrees: int) -> Callable[[Tensor, np.ndarray], Tensor]:
    def change(photo: Tensor, _: np.ndarray) -> Tensor:
        return pixels(to_image(photo).rotate(degrees, Image.Resampling.BICUBIC, expand=True))

    return change


def cut(left: float, top: float, right: float, bottom: float) -> Callable[..., Tensor]:
    """A cut, in widths of the face from the corner of its box."""

    def change(photo: Tensor, box: np.ndarray) -> Tensor:
        width = box[2] - box[0]
        corner = np.array([box[0], box[1]])
        (x0, y0), (x1, y1) = (
            np.maximum(corner + width * np.array(at), 0).astype(int)
            for at in ((left, top), (right, bottom))
        )
        return photo[y0:y1, x0:x1]

    return change


def of_width(width: int) -> Callable[[Tensor, np.ndarray], Tensor]:
    """The photo, scaled until its face has a width."""

    def change(photo: Tensor, box: np.ndarray) -> Tensor:
        scale = width / (box[2] - box[0])
        size = max(int(photo.shape[1] * scale), 1), max(int(photo.shape[0] * scale), 1)
        return pixels(to_image(photo).resize(size, Image.Resampling.LANCZOS))

    return change


def in_a_large_photo(photo: Tensor, box: np.ndarray) -> Tensor:
    """A face of 60 pixels in a photo of 2400 x 1800."""
    large = Image.new("RGB", (2400, 1800), (90, 110, 90))
    large.paste(to_image(of_width(60)(photo, box)), (1500, 200))
    return pixels(large)


VARIANTS: dict[str, Callable[[Tensor, np.ndarray], Tensor]] = {
    "as it is": lambda photo, _: photo,
    **{f"turned by {degrees}°": turned(degrees) for degrees in (15, 30, 45, 90, 135, 180, 270)},
    "cut to the face's box": cut(0, 0, 1, 1),
    "cut from eyes to chin": cut(0, 0.1, 1, 0.95),
    "upper 70 % of the face": cut(-0.2, -0.3, 1.2, 0.7),
    "left 62 % of the face": cut(-0.2, -0.3, 0.62, 1.2),
    "a face of 40 pixels": of_width(40),
    "a face of 24 pixels": of_width(24),
    "60 pixels in 2400 x 1800": in_a_large_photo,
}


def raw(encoder: FaceEncoder, photo: Tensor) -> Tensor:
    """dlib's own embedding of the largest face."""
    return encoder._network(encoder.aligned(photo)[None])[0] + torch.from_numpy(_centre())


def distances(embeddings: Tensor) -> Tensor:
    rows, columns = torch.triu_indices(len(embeddings), len(embeddings), 1)
    return (embeddings[rows] - embeddings[columns]).norm(dim=1)


def cosines(embeddings: Tensor, others: Tensor | None = None) -> Tensor:
    """Of all pairs, around the mean of other people; None: of those of no pair."""
    found = []
    for i, j in combinations(range(len(embeddings)), 2):
        rest = [k for k in range(len(embeddings)) if k not in (i, j)]
        centre = (embeddings[rest] if others is None else others).mean(dim=0)
        found.append(
            functional.cosine_similarity(embeddings[i] - centre, embeddings[j] - centre, 0)
        )
    return torch.stack(found)


def show_variants(encoder: FaceEncoder, photos: dict[str, Tensor], console: Console) -> None:
    table = Table("variant", "found", "distance to the photo: median", "largest", "ms")
    boxes, plain = {}, {}
    for name, photo in photos.items():
        face = max(encoder.faces(photo), key=lambda face: face.area)
        boxes[name], plain[name] = np.array(face.box), raw(encoder, photo)
    for variant, change in VARIANTS.items():
        found, taken = [], []
        for name, photo in photos.items():
            changed = change(photo, boxes[name])
            start = time.process_time()
            try:
                square = encoder.aligned(changed)
            except ImageError:
                continue
            finally:
                taken.append(time.process_time() - start)
            there = encoder._network(square[None])[0] + torch.from_numpy(_centre())
            found.append(float((there - plain[name]).norm()))
        far = [f"{np.median(found):.2f}", f"{max(found):.2f}"] if found else ["", ""]
        spent = f"{1000 * np.median(taken):.0f}"
        table.add_row(variant, f"{len(found)} of {len(photos)}", *far, spent)
    console.print(table)


def show_people(people: dict[str, Tensor], same: Tensor, console: Console) -> None:
    table = Table(
        "pairs", "number", "distance: mean (least to most)", "cosine around the others' mean"
    )
    others = torch.stack([row for name, row in people.items() if name != "obama"])
    strangers = torch.stack([*people.values()])
    for name, far, near in (
        ("one person", distances(same), cosines(same, others)),
        ("strangers", distances(strangers), cosines(strangers)),
    ):
        cells = [
            f"{some.mean():.2f} ({some.min():.2f} to {some.max():.2f})" for some in (far, near)
        ]
        table.add_row(name, str(len(far)), *cells)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, help="tests/test_images of face_recognition 1.3.0")
    parser.add_argument("--centre", type=Path, help="write the mean of all people's embeddings")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    encoder, console = load_encoder("dlib"), Console(width=110)
    assert isinstance(encoder, FaceEncoder)
    photos = portraits(arguments.photos)
    same = torch.stack([raw(encoder, read_photo(arguments.photos / name)) for name in SAME])
    people = {name: raw(encoder, photos[name]) for name in ("biden.jpg", "actor", "astronaut")}
    people["obama"] = same.mean(dim=0)
    group = in_package("insightface", "data/images/t1.jpg")
    for i in range(1, len(encoder.faces(group)) + 1):
        square = encoder.aligned(group, face=i)
        people[f"group {i}"] = encoder._network(square[None])[0] + torch.from_numpy(_centre())
    if arguments.centre:
        centre = torch.stack([*people.values()]).mean(dim=0)
        rounded = [round(value, 4) for value in centre.tolist()]
        stated = {"people": len(people), "centre": rounded}
        write_text(arguments.centre, json.dumps(stated) + "\n")
    show_variants(encoder, photos, console)
    show_people(people, same, console)
    squares = torch.stack([encoder.aligned(photo) for photo in photos.values()])
    start = time.process_time()
    encoder.embed_aligned(squares)
    console.print(f"embedding: {1000 * (time.process_time() - start) / len(squares):.0f} ms a face")


if __name__ == "__main__":
    main()
