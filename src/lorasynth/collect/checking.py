"""A look at all images of a domain before anything is trained on them.

What would make a training worse or a benchmark untrue is found and listed: images that cannot be
read or show nothing that the encoder knows, an image that is there twice, one person under two
names, subjects with too few images.  Each image is read once and let go.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from lorasynth.condition import SHOWN, ConditionEncoder, sphere_mean
from lorasynth.core.errors import ImageError, LibraryError
from lorasynth.core.progress import progress
from lorasynth.core.splits import held_out
from lorasynth.images import PORTRAIT, SubjectSource
from lorasynth.images.chosen import Choice
from lorasynth.library.groups import groups_by_likeness, joined

#: Bits of 256 in which hashes of one image differ at most after it was scaled or saved anew.
_BITS = 7
#: Difference of grey values that counts; what is less comes from saving as JPEG.
_STEP = 2
#: By which colours of the parts of one image differ at most; drawings may differ in them alone.
_COLOUR = 24
#: Images that a subject needs: one that is the condition, one that is denoised or judges.
LEAST = 2
#: Subjects that a domain has at least: two each to learn from, to choose by and to measure on.
_FEWEST = 6
#: Held-out subjects of each kind: this share of all, at most so many.
_SHARE, _MOST = 0.05, 500


@dataclass
class Checked:
    """What was found.

    Attributes:
        photos: by subject, the places of its images that can be used.
        captions: by subject, a caption for each of those; None where it has none of its own.
        faults: by what is wrong, whom or what it concerns.
        groups: by subject, the first subject that shares its split: the same person, or one with
            the same image.
        cosine: of two subjects from which on they may be one person; None: nobody could say.
    """

    photos: dict[str, list[int]] = field(default_factory=dict)
    captions: dict[str, list[str | None]] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    cosine: float | None = None

    @property
    def report(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "subjects": len(self.photos),
            "images": sum(map(len, self.photos.values())),
            "without_caption": sum(text is None for t in self.captions.values() for text in t),
            "alike_from_cosine": self.cosine,
            "faults": self.faults,
        }

    @property
    def table(self) -> str:
        """Some lines for a person."""
        report = self.report
        lines = [
            f"{report['subjects']} subjects with {report['images']} images can be used, "
            f"{report['without_caption']} images have no caption"
        ]
        for what, names in self.faults.items():
            more = ", ..." if len(names) > 3 else ""
            lines.append(f"{len(names):>6} {what}: {', '.join(names[:3])}{more}")
        return "\n".join(lines)

    def fault(self, what: str, name: str) -> None:
        """Note one."""
        self.faults.setdefault(what, []).append(name)

    def choices(self, captions: Mapping[str, Sequence[str]]) -> dict[str, Choice]:
        """All subjects that can be used, with captions and splits.

        Subjects of one group are in one split, so that who is tested is seen by no training.

        Raises:
            ImageError: there are too few to hold some out.
        """
        splits = splits_of(self.groups)
        return {
            name: Choice(photos, captions[name], splits[name])
            for name, photos in self.photos.items()
        }


def check_images(source: SubjectSource, encoder: ConditionEncoder) -> Checked:
    """Look at every image once.

    Args:
        source: the subjects.
        encoder: says what an image shows, and who may be one person.

    Raises:
        ImageError: no subject can be used.
    """
    found, hashes = Checked(), _Hashes()
    means, halves = list[Tensor](), list[float]()
    with progress("check images", len(source.ids)) as advance:
        for name in source.ids:
            seen = _check_subject(source, encoder, name, found, hashes)
            advance()
            if seen is not None:
                means.append(sphere_mean(seen))
                halves.append(float(sphere_mean(seen[::2]) @ sphere_mean(seen[1::2])))
    if not found.photos:
        first = next((names[0] for names in found.faults.values()), "there is none")
        raise ImageError(
            f"some subjects must have {LEAST} images that can be used, but none has: {first}"
        )
    names = list(found.photos)
    rows = {name: row for row, name in enumerate(names)}
    # who shares an image is of one group, too
    pairs = ((rows[a], rows[b]) for a, b in hashes.shared if a in rows and b in rows)
    leader = joined(_alike(found, names, torch.stack(means), halves), pairs)
    found.groups = {name: names[leader[row]] for name, row in rows.items()}
    return found


def _check_subject(
    source: SubjectSource,
    encoder: ConditionEncoder,
    name: str,
    found: Checked,
    hashes: "_Hashes",
) -> Float[Tensor, "k s"] | None:
    """Embeddings of a subject's images that can be used; None, and why, if those are too few."""
    try:
        subject = source.load(name)
        seen = encoder.see(subject.photos)
    except ImageError as error:
        found.fault("subjects with an image that cannot be read", f"{name} ({error})")
        return None
    kept = list[int]()
    for place, photo in enumerate(subject.photos):
        told = f"{name}, image {place + 1}"
        if seen.presence[place] < SHOWN:
            found.fault(f"images without {encoder.domain}", told)
        elif hashes.twice(photo, name, found):
            continue
        else:
            kept.append(place)
    if len(kept) < LEAST:
        found.fault(f"subjects with fewer than {LEAST} images that can be used", name)
        return None
    found.photos[name] = kept
    texts = [subject.captions[place] for place in kept]
    found.captions[name] = [None if text == PORTRAIT else text for text in texts]
    return seen.embeddings[kept].cpu()


class _Hashes:
    """Which images were seen before, also scaled or saved anew."""

    def __init__(self) -> None:
        #: By an eighth of the hash: of hashes that differ in seven bits, one of them is the same.
        self._seen: list[dict[int, list[tuple[int, Any, str]]]] = [{} for _ in range(_BITS + 1)]
        self.shared: list[tuple[str, str]] = []

    def twice(self, photo: UInt8[Tensor, "h w 3"], name: str, found: Checked) -> bool:
        """Whether an image of the same subject was seen; one of another subject is noted."""
        value = difference_hash(photo)
        few = Image.fromarray(photo.numpy()).resize((4, 4), Image.Resampling.BOX)
        colours = np.asarray(few, dtype=np.int16)
        parts = [value >> 32 * i & 0xFFFFFFFF for i in range(_BITS + 1)]
        others = {
            other
            for table, part in zip(self._seen, parts, strict=True)
            for known, seen, other in table.get(part, ())
            if (known ^ value).bit_count() <= _BITS and abs(seen - colours).max() <= _COLOUR
        }
        for other in sorted(others - {name}):
            found.fault("images that two subjects have", f"{other} and {name}")
            self.shared.append((other, name))
        if name in others:
            found.fault("images that a subject has twice", name)
            return True
        for table, part in zip(self._seen, parts, strict=True):
            if part:  # a flat area is in many images
                table.setdefault(part, []).append((value, colours, name))
        return False


def difference_hash(photo: UInt8[Tensor, "h w 3"]) -> int:
    """256 bits that an image keeps when it is scaled or saved anew: which neighbours are brighter.

    Of the image as 17 x 16 grey values (Krawetz's dHash).
    """
    small = Image.fromarray(photo.numpy()).convert("L").resize((17, 16), Image.Resampling.BOX)
    grey = np.asarray(small, dtype=np.int16)
    return int.from_bytes(np.packbits(np.diff(grey, axis=1) >= _STEP).tobytes(), "big")


def _alike(
    found: Checked, names: Sequence[str], means: Float[Tensor, "n s"], halves: Sequence[float]
) -> list[int]:
    """For each subject the row of the first that may be the same person.

    Two subjects may be one where they are as like each other as the halves of the median subject.
    """
    found.cosine = float(np.median(halves))
    try:
        leader = groups_by_likeness(means, found.cosine)
    except LibraryError:
        leader = [0] * len(names)
    if Counter(leader).most_common(1)[0][1] > max(len(names) // 2, 2):
        leader = list(range(len(names)))
        found.fault("encoders that cannot tell the subjects apart", "the given one")
        found.cosine = None
    for row, first in enumerate(leader):
        if row != first:
            found.fault("subjects that may be one", f"{names[first]} and {names[row]}")
    return leader


def splits_of(groups: Mapping[str, str]) -> dict[str, str]:
    """The split of each subject: whole groups, chosen by their hashes.

    Raises:
        ImageError: there are too few groups.
    """
    leaders = list(dict.fromkeys(groups.values()))
    if len(leaders) < _FEWEST:
        raise ImageError(
            f"a domain needs {_FEWEST} subjects or more, so that some can be held out, but "
            f"{len(leaders)} are different ones: give more"
        )
    tests = held_out(leaders, _SHARE, _MOST)
    others = [name for name in leaders if name not in set(tests)]
    split = dict.fromkeys(tests, "test")
    split |= dict.fromkeys(held_out(others, _SHARE, _MOST), "validation")
    return {name: split.get(group, "train") for name, group in groups.items()}
