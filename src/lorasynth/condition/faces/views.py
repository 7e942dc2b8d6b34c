"""Looking again: what a detector misses in a photo, it may find once that is padded or turned."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64
from PIL import Image

from lorasynth.condition.faces.alignment import inverse, moved, warp
from lorasynth.condition.faces.contract import Face, FaceDetector


@dataclass(frozen=True, kw_only=True)
class View:
    """A way to look at a photo.

    Attributes:
        side: the photo's longer side in pixels.
        turn: by so many degrees, counterclockwise.
        border: black around it, as a share of each side.
    """

    side: int
    turn: float = 0.0
    border: float = 0.0

    def of(self, image: Image.Image) -> tuple[Image.Image, Float64[np.ndarray, "2 3"]]:
        """What is seen, and the map from its pixels to the image's."""
        scale = min(self.side / max(image.size), MAX_GROWTH)
        cos, sin = np.cos(np.radians(self.turn)), np.sin(np.radians(self.turn))
        linear = scale * np.array([[cos, sin], [-sin, cos]])
        extent = np.abs(linear) @ np.array(image.size, dtype=float) * (1 + 2 * self.border)
        width, height = (max(round(float(side)), 1) for side in extent)
        shift = np.array([width, height]) / 2 - linear @ np.array(image.size) / 2
        matrix = np.column_stack([linear, shift])
        return warp(image, matrix, (width, height)), inverse(matrix)


#: A photo is never shown larger than this many times its size.
MAX_GROWTH = 3.0
#: For what is small; a photo whose faces are all smaller than this share of it may have more.
CLOSER, SMALL = View(side=1600), 1 / 6
#: Rounds, until one has a view that shows a face: the photo as it is; a face that fills the frame
#: or is cut off by it; a small one; a photo on its side or head, or a head that leans; a tiny face.
ROUNDS: tuple[tuple[View, ...], ...] = (
    (View(side=640),),
    (View(side=400, border=0.5),),
    (CLOSER,),
    tuple(View(side=640, turn=turn) for turn in (45.0, 90.0, 135.0, 180.0, -135.0, -90.0, -45.0)),
    (View(side=3200),),
)
#: Degrees.  The points of a face that leans further are found again with the head upright.
LEAN = 15.0


def find_faces(
    detector: FaceDetector, image: Image.Image, rounds: Sequence[Sequence[View]] = ROUNDS
) -> list[Face]:
    """The faces of a photo, from left to right.

    Args:
        detector: finds upright faces.
        image: a photo of any size.
        rounds: how to look at it; the surest view of the first round that has any face counts.
    """
    for views in rounds:
        faces = max((_straight(detector, image, view) for view in views), key=_surest)
        if faces:
            faces = _closer(detector, image, faces)
            return sorted(faces, key=lambda face: face.box[0] + face.box[2])
    return []


def _closer(detector: FaceDetector, image: Image.Image, faces: list[Face]) -> list[Face]:
    """These faces or, if all are small and a closer look shows more, those."""
    if max(face.area for face in faces) > (SMALL * max(image.size)) ** 2:
        return faces
    again = _look(detector, image, CLOSER)
    return again if len(again) > len(faces) else faces


def _surest(faces: Sequence[Face]) -> float:
    return max((face.score for face in faces), default=0.0)


def _straight(detector: FaceDetector, image: Image.Image, view: View) -> list[Face]:
    """The faces in a view, or, where the largest leans, those in one turned by as much."""
    faces = _look(detector, image, view)
    if not faces:
        return []
    left, right = max(faces, key=lambda face: face.area).points[:2]
    down = np.degrees(np.arctan2(right[1] - left[1], right[0] - left[0]))
    further = (down - view.turn + 180) % 360 - 180
    if abs(further) < LEAN:
        return faces
    again = _look(detector, image, replace(view, turn=float(down)))
    return again if len(again) >= len(faces) else faces


def _look(detector: FaceDetector, image: Image.Image, view: View) -> list[Face]:
    seen, back = view.of(image)
    return [_moved(face, back) for face in detector(np.asarray(seen))]


def _moved(face: Face, matrix: Float64[np.ndarray, "2 3"]) -> Face:
    """A face under a map; its box is the one around the moved corners."""
    left, top, right, bottom = face.box
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    there = moved(corners, matrix)
    (x0, y0), (x1, y1) = there.min(axis=0), there.max(axis=0)
    box = (float(x0), float(y0), float(x1), float(y1))
    return replace(face, box=box, points=moved(face.points, matrix))
