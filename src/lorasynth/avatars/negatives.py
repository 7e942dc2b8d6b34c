"""Images without a face, to teach an encoder when to refuse."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from lorasynth.avatars.drawing import render_style

_FACELESS_STYLES = ("identicon", "shapes", "rings", "glass", "icons", "initials", "landscape")


def draw_negative(rng: np.random.Generator, size: int) -> UInt8[np.ndarray, "h w 3"]:
    """Draw one faceless image of `size` pixels."""
    kind = rng.integers(4)
    if kind == 0:
        style = str(rng.choice(_FACELESS_STYLES))
        background = f"#{rng.integers(2**24):06x}"
        return render_style(
            style, {"seed": str(rng.integers(2**31)), "backgroundColor": [background]}, size
        )
    if kind == 1:  # noise at a random scale, from static to soft clouds
        cells = int(rng.integers(1, size + 1))
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        return np.asarray(coarse.resize((size, size), Image.Resampling(int(rng.choice([0, 2])))))
    if kind == 2:  # a gradient between two colours
        ends = rng.integers(0, 256, (2, 1, 1, 3))
        share = np.linspace(0, 1, size).reshape(1, size, 1)
        gradient = np.broadcast_to(ends[0] + share * (ends[1] - ends[0]), (size, size, 3))
        return np.ascontiguousarray(np.rot90(gradient, int(rng.integers(4)))).astype(np.uint8)
    canvas = np.empty((size, size, 3), np.uint8)  # flat rectangles, one over the other
    canvas[:] = rng.integers(0, 256, 3)
    for _ in range(rng.integers(1, 12)):
        (top, bottom), (left, right) = np.sort(rng.integers(0, size, (2, 2)), axis=1)
        canvas[top : bottom + 1, left : right + 1] = rng.integers(0, 256, 3)
    return canvas


def tear(image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """Shuffle a portrait's sixteen tiles, so that its colours stay and its face does not."""
    side = image.shape[0] // 4
    tiles = (
        image[: side * 4, : side * 4]
        .reshape(4, side, 4, side, 3)
        .swapaxes(1, 2)
        .reshape(16, side, side, 3)
    )
    order = rng.permutation(16)
    torn: UInt8[np.ndarray, "h w 3"] = (
        tiles[order].reshape(4, 4, side, side, 3).swapaxes(1, 2).reshape(side * 4, side * 4, 3)
    )
    return torn
