"""Alignment: the turn, scale and shift that lay the five points of a face on a template.

A map is a 2 x 3 matrix M that takes the point (x, y) to M @ (x, y, 1).
"""

import numpy as np
from jaxtyping import Float64
from PIL import Image

#: Where ArcFace's networks expect the points, as a share of the side (insightface's `arcface_dst`,
#: which is in a square of 112 pixels).
ARCFACE: Float64[np.ndarray, "5 2"] = (
    np.array(
        [
            [38.2946, 51.6963],
            [73.5318, 51.5014],
            [56.0252, 71.7366],
            [41.5493, 92.3655],
            [70.7299, 92.2041],
        ]
    )
    / 112
)
#: Where dlib's network expects them: in dlib's mean face (`get_face_chip_details`, whose eyes are
#: the mean of six landmarks each), with a quarter of its size around it.
DLIB: Float64[np.ndarray, "5 2"] = (
    np.array(
        [
            [0.225492, 0.215990],
            [0.754761, 0.215990],
            [0.490127, 0.515625],
            [0.254149, 0.780233],
            [0.726104, 0.780233],
        ]
    )
    + 0.25
) / 1.5


def similarity(
    source: Float64[np.ndarray, "n 2"], target: Float64[np.ndarray, "n 2"]
) -> Float64[np.ndarray, "2 3"]:
    """The map without shear or mirroring that takes points nearest to others (Umeyama 1991)."""
    here, there = source.mean(axis=0), target.mean(axis=0)
    centred = source - here
    u, s, vt = np.linalg.svd((target - there).T @ centred)
    sign = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = (u * sign) @ vt
    linear = rotation * (s * sign).sum() / np.square(centred).sum()
    return np.column_stack([linear, there - linear @ here])


def inverse(matrix: Float64[np.ndarray, "2 3"]) -> Float64[np.ndarray, "2 3"]:
    """The map back."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def moved(
    points: Float64[np.ndarray, "n 2"], matrix: Float64[np.ndarray, "2 3"]
) -> Float64[np.ndarray, "n 2"]:
    """Points under a map."""
    there: Float64[np.ndarray, "n 2"] = points @ matrix[:, :2].T + matrix[:, 2]
    return there


def warp(
    image: Image.Image, matrix: Float64[np.ndarray, "2 3"], size: tuple[int, int]
) -> Image.Image:
    """What an image looks like under a map; what comes from outside it is black.

    An image that shrinks is first scaled down as a whole, so that fine patterns vanish in it
    instead of turning into coarse ones.

    Args:
        image: what to move.
        matrix: from the image's pixels to those of the result.
        size: width and height of the result.
    """
    back = inverse(matrix)
    shrinks = float(np.sqrt(abs(np.linalg.det(back[:, :2]))))
    if shrinks > 1:
        small = max(round(image.width / shrinks), 1), max(round(image.height / shrinks), 1)
        ratio = np.array(small) / np.array(image.size)
        image, back = image.resize(small, Image.Resampling.LANCZOS), back * ratio[:, None]
    affine = Image.Transform.AFFINE
    return image.transform(size, affine, tuple(back.ravel()), Image.Resampling.BICUBIC)


def align(
    image: Image.Image,
    points: Float64[np.ndarray, "5 2"],
    template: Float64[np.ndarray, "5 2"],
    size: int,
) -> Image.Image:
    """The square in which a face's points lie on a template, `size` pixels wide."""
    return warp(image, similarity(points, template * size), (size, size))
