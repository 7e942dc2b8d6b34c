"""Drawings without a face, to teach an encoder when to refuse: the source `faceless:400`."""

from dataclasses import dataclass

import torch

from lorasynth.avatars.drawing import render_style
from lorasynth.core.config import from_dict
from lorasynth.core.randomness import numpy_stream
from lorasynth.images.contract import Subject

STYLES = ("identicon", "shapes", "rings", "glass", "icons", "initials", "landscape")


@dataclass(frozen=True, kw_only=True)
class FacelessDrawings:
    """A source of `count` drawings of DiceBear's styles without faces, each a subject."""

    count: int
    size: int = 64
    seed: int = 0

    @property
    def ids(self) -> list[str]:
        """Names such as `faceless-0-000017`."""
        return [f"faceless-{self.seed}-{i:06d}" for i in range(self.count)]

    def load(self, subject_id: str) -> Subject:
        """Draw one image."""
        rng = numpy_stream(self.seed, subject_id)
        background = f"#{rng.integers(2**24):06x}"
        options = {"seed": str(rng.integers(2**31)), "backgroundColor": [background]}
        image = render_style(str(rng.choice(STYLES)), options, self.size)
        return Subject(id=subject_id, photos=torch.tensor(image)[None], captions=["a drawing"])


def named_drawings(argument: str, size: int) -> FacelessDrawings:
    """The drawings that `faceless:400` asks for, after the colon.

    Raises:
        ConfigError: it is not their count.
    """
    return from_dict(FacelessDrawings, {"count": argument, "size": size})
