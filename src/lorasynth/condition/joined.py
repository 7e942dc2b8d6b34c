"""Several encoders as one condition: who it is, and what the image shows.

An encoder of identities forgets on purpose what people change, such as hair and glasses; one of
images in general (CLIP, or a reader of attributes) sees them.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from lorasynth.condition.contract import (
    ENCODERS,
    ConditionEncoder,
    Seen,
    saved_config,
)
from lorasynth.condition.named import load_encoder
from lorasynth.core import config as configs
from lorasynth.core.atomic import atomic_directory, write_json
from lorasynth.core.errors import ConfigError
from lorasynth.core.weights import CONFIG_FILE
from lorasynth.images.contract import Photos


@dataclass(frozen=True, kw_only=True)
class _Stated:
    """What a folder says of its parts."""

    name: str
    parts: int


class JoinedEncoder(ConditionEncoder):
    """The embeddings of several encoders side by side, all with the same weight."""

    def __init__(self, parts: Sequence[ConditionEncoder], name: str | None = None) -> None:
        """Join at least two encoders.

        Raises:
            ConfigError: there are fewer.
        """
        if len(parts) < 2:
            raise ConfigError(f"two encoders or more can be joined, but got {len(parts)}")
        self.parts = list(parts)
        self.name = name or "-and-".join(part.name for part in parts)
        self.width = sum(part.width for part in parts)
        self.image_size = max(part.image_size for part in parts)
        self.licence = "; ".join(dict.fromkeys(part.licence for part in parts))
        if looking := self._looking:
            self.domain, self.advice = looking[0].domain, looking[0].advice
        self.looks = any(part.looks for part in parts)
        self.finds_faces = any(part.finds_faces for part in parts)
        self.attributes = {k: v for part in parts for k, v in part.attributes.items()}

    @override
    def _fingerprint(self) -> str:
        stated = " ".join(part.fingerprint for part in self.parts)
        return hashlib.sha256(stated.encode()).hexdigest()[:16]

    def join(self, embeddings: Sequence[Float[Tensor, "k _"]]) -> Float[Tensor, "k m"]:
        """Put what each part says side by side, as unit vectors; one row may stand for all."""
        most = max(map(len, embeddings))
        units = [functional.normalize(one, dim=1) for one in embeddings]
        whole = [one.expand(most, -1) if len(one) == 1 else one for one in units]
        return torch.cat(whole, dim=1) / math.sqrt(len(units))

    @property
    def _looking(self) -> list[ConditionEncoder]:
        return [part for part in self.parts if part.looks]

    @override
    def embed(self, images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b m"]:
        return self.join([part.embed(images) for part in self.parts])

    @override
    def presence(self, images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, " b"]:
        """The least that any part finds."""
        return torch.stack([part.presence(images) for part in self._looking]).amin(dim=0)

    @override
    def see(
        self, photos: Photos, *, names: Sequence[str] | None = None, face: int | None = None
    ) -> Seen:
        """What every part that looks sees, side by side; a photo shows what all of them find."""
        found = [
            part.see(photos, names=names, face=face if part.finds_faces else None)
            for part in self._looking
        ]
        return Seen(
            torch.cat([one.embeddings for one in found], dim=1),
            torch.stack([one.presence for one in found]).amin(dim=0),
            next((one.boxes for one in found if any(one.boxes)), found[0].boxes),
        )

    @override
    def conditions(
        self, seen: Float[Tensor, "k s"] | None, facts: Mapping[str, object]
    ) -> Float[Tensor, "j m"]:
        pairs = zip(self.parts, self._shares(seen), strict=True)
        return self.join([part.conditions(share, facts) for part, share in pairs])

    @override
    def condition(
        self, seen: Float[Tensor, "k s"] | None, facts: Mapping[str, object]
    ) -> Float[Tensor, " m"]:
        pairs = zip(self.parts, self._shares(seen), strict=True)
        return self.join([part.condition(share, facts)[None] for part, share in pairs])[0]

    def _shares(self, seen: Float[Tensor, "k s"] | None) -> list[Float[Tensor, "k _"] | None]:
        """What each part saw of what `see` gave."""
        if seen is None:
            return [None] * len(self.parts)
        widths = [part.seen_width for part in self._looking]
        cut = iter(seen.split(widths, dim=1))
        return [next(cut) if part.looks else None for part in self.parts]

    @property
    @override
    def seen_width(self) -> int:
        return sum(part.seen_width for part in self._looking)

    @override
    def save(self, folder: Path) -> None:
        """Write the parts, each to a folder below."""
        stated = _Stated(name=self.name, parts=len(self.parts))
        with atomic_directory(folder) as temporary:
            write_json(temporary / CONFIG_FILE, {"kind": "joined", **configs.to_dict(stated)})
            for number, part in enumerate(self.parts):
                part.save(temporary / str(number))

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> "JoinedEncoder":
        """Read joined encoders from a folder, which compute on a device.

        Raises:
            BundleError: it lacks one, or one is damaged.
            ConfigError: its config is not that of joined encoders.
        """
        stated = configs.from_dict(_Stated, saved_config(folder))
        parts = [load_encoder(folder / str(number), device) for number in range(stated.parts)]
        return cls(parts, stated.name)


ENCODERS.register("joined")(JoinedEncoder.load)
