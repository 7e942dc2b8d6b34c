"""Drawings of anything but avatars, which teach an encoder when to refuse: `not-avatars:400`."""

from dataclasses import dataclass

import torch

from lorasynth.avatars.drawing import render_style
from lorasynth.core.config import from_dict
from lorasynth.core.randomness import numpy_stream
from lorasynth.images.contract import Subject

#: DiceBear's styles without a face, and with faces of other kinds, by Lisa Wischofsky (adventurer:
#: CC BY 4.0; lorelei), Micah Lanier (micah: CC BY 4.0), Johan Melin (toon-head: CC BY 4.0), Ashley
#: Seo (big-smile: CC BY 4.0), Zoish, Pablo Stanley (open-peeps) and DiceBear; all others are CC0.
#: What an encoder is tested on is not among them: pixel-art, personas, miniavs, big-ears.
FACELESS = ("identicon", "shapes", "rings", "glass", "icons", "initials", "landscape")
FACES = (
    *("adventurer", "lorelei", "micah", "toon-head", "big-smile", "notionists", "open-peeps"),
    *("cameo", "cutouts", "moods", "line-face", "initial-face", "thumbs", "voxel-art", "critters"),
)
#: Share on white: an encoder whose negatives were all on colours took white for a sign of avatars.
_PLAIN = 0.3


@dataclass(frozen=True, kw_only=True)
class OtherDrawings:
    """A source of `count` drawings of DiceBear's other styles, each a subject."""

    count: int
    size: int = 64
    seed: int = 0

    @property
    def ids(self) -> list[str]:
        """Names such as `not-avatars-0-000017`."""
        return [f"not-avatars-{self.seed}-{i:06d}" for i in range(self.count)]

    def load(self, subject_id: str) -> Subject:
        """Draw one image."""
        rng = numpy_stream(self.seed, subject_id)
        plain = rng.random() < _PLAIN
        background = "#ffffff" if plain else f"#{rng.integers(2**24):06x}"
        options = {"seed": str(rng.integers(2**31)), "backgroundColor": [background]}
        styles = FACES if rng.random() < 0.7 else FACELESS
        image = render_style(str(rng.choice(styles)), options, self.size)
        return Subject(id=subject_id, photos=torch.tensor(image)[None], captions=["a drawing"])


def named_drawings(argument: str, size: int) -> OtherDrawings:
    """The drawings that `not-avatars:400` asks for, after the colon.

    Raises:
        ConfigError: it is not their count.
    """
    return from_dict(OtherDrawings, {"count": argument, "size": size})
