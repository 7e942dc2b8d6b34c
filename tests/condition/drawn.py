"""Faces that are drawn: five dots in five colours, and a detector that sees them if upright."""

from itertools import groupby

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from lorasynth.condition.faces import DETECTORS, Face
from lorasynth.condition.faces.alignment import ARCFACE

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
#: Of a face as wide as its template.
DOTS = ARCFACE


def draw_face(
    image: Image.Image, left: float, top: float, size: float, turn: float = 0.0
) -> np.ndarray:
    """Draw a face in a square, turned clockwise by degrees around its middle; gives the dots."""
    angle = np.radians(turn)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (DOTS - 0.5) @ rotation.T * size + size / 2 + [left, top]
    radius = size / 12
    for (x, y), colour in zip(points, COLOURS, strict=True):
        box = (x - radius - 0.5, y - radius - 0.5, x + radius - 0.5, y + radius - 0.5)
        ImageDraw.Draw(image).ellipse(box, fill=colour)
    return points


def canvas(width: int, height: int, shade: int = 60) -> Image.Image:
    return Image.new("RGB", (width, height), (shade, shade, shade))


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image))


class DrawnDetector:
    """Sees faces beside each other: at least 20 pixels, not at the edge, turned at most 20°."""

    def __init__(self) -> None:
        self.shown: list[tuple[int, ...]] = []

    def __call__(self, image: np.ndarray) -> list[Face]:
        self.shown.append(image.shape)
        dots = [_dots(image, colour) for colour in COLOURS]
        if len({len(found) for found in dots}) != 1:
            return []
        return [face for five in zip(*dots, strict=True) if (face := _face(five, image.shape))]


def _dots(image: np.ndarray, colour: tuple[int, ...]) -> list[np.ndarray]:
    """The middles of the patches of a colour, from left to right."""
    red, green, blue = (
        image[..., i] > 155 if level else image[..., i] < 100 for i, level in enumerate(colour)
    )
    near = red & green & blue
    columns = [int(x) for x in np.flatnonzero(near.any(axis=0))]
    runs = [list(run) for _, run in groupby(enumerate(columns), lambda pair: pair[1] - pair[0])]
    patches = [(run[0][1], run[-1][1] + 1) for run in runs]
    return [
        np.argwhere(near[:, a:b]).mean(axis=0)[::-1] + np.array([a + 0.5, 0.5]) for a, b in patches
    ]


def _face(five: tuple[np.ndarray, ...], shape: tuple[int, ...]) -> Face | None:
    points = np.stack(five)
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    across = points[1] - points[0]
    lean = abs(np.degrees(np.arctan2(across[1], across[0])))
    size = (right - left) * 2
    inside = min(left, top, shape[1] - right, shape[0] - bottom) > size / 5
    if lean > 20 or points[3, 1] < points[2, 1] or size < 20 or not inside:
        return None
    box = (float(left - size / 4), float(top - size / 4), float(right), float(bottom))
    return Face(box=box, score=float(0.6 + 0.3 * np.cos(np.radians(lean))), points=points)


DETECTORS.register("drawn")(lambda _, __: DrawnDetector())
