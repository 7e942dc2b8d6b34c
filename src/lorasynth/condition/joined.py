"""Several encoders as one condition: who it is, and what the picture shows.

An encoder of identities forgets on purpose what people change, such as hair and glasses; one of
pictures in general (CLIP, or a reader of attributes) sees them.
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

from lorasynth import config as configs
from lorasynth.atomic import atomic_directory, write_json
from lorasynth.condition.attributes import AttributeEncoder
from lorasynth.condition.contract import (
    ENCODERS,
    ConditionEncoder,
    EmbedSubject,
    PhotoEncoder,
    Photos,
    saved_config,
    subject_embedding,
)
from lorasynth.condition.named import load_encoder
from lorasynth.errors import ConfigError
from lorasynth.pictures.contract import Subject
from lorasynth.weights import CONFIG_FILE


@dataclass(frozen=True, kw_only=True)
class _Stated:
    """What a folder says of its parts."""

    name: str
    parts: int


class JoinedEncoder:
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
        self.picture_size = max(part.picture_size for part in parts)
        self.licence = "; ".join(dict.fromkeys(part.licence for part in parts))

    @property
    def fingerprint(self) -> str:
        """Identifies the weights of all parts."""
        stated = " ".join(part.fingerprint for part in self.parts)
        return hashlib.sha256(stated.encode()).hexdigest()[:16]

    def join(self, embeddings: Sequence[Float[Tensor, "k _"]]) -> Float[Tensor, "k m"]:
        """Put what each part sees side by side, as unit vectors; one row may stand for all."""
        most = max(map(len, embeddings))
        units = [functional.normalize(one, dim=1) for one in embeddings]
        whole = [one.expand(most, -1) if len(one) == 1 else one for one in units]
        return torch.cat(whole, dim=1) / math.sqrt(len(units))

    def of_photos(
        self, photos: Photos, names: Sequence[str], face: int | None, facts: Mapping[str, object]
    ) -> Float[Tensor, " m"]:
        """The condition of one subject: each part is asked what it can answer.

        Raises:
            PictureError: a part finds nothing in a photo.
            ConfigError: no part looks for faces, or for facts, though one is stated.
        """
        rows = []
        for part in self.parts:
            its_face = None if self._is_for_others(part, PhotoEncoder) else face
            its_facts = {} if self._is_for_others(part, AttributeEncoder) else facts
            rows.append(subject_embedding(part, photos, names, its_face, its_facts)[None])
        return self.join(rows)[0]

    def _is_for_others(self, part: ConditionEncoder, kind: type) -> bool:
        """Whether a question is for parts of a kind: where there is none, each is asked."""
        return not isinstance(part, kind) and any(isinstance(p, kind) for p in self.parts)

    def of_subject(self, subject: Subject, embed: EmbedSubject) -> Float[Tensor, "k m"]:
        """The pictures of a subject that is to be learned from, as every part sees them."""
        return self.join([embed(part, subject) for part in self.parts])

    def embed(self, pictures: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b m"]:
        """Embed each picture with every part."""
        return self.join([part.embed(pictures) for part in self.parts])

    def presence(self, pictures: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, " b"]:
        """The least that any part finds."""
        return torch.stack([part.presence(pictures) for part in self.parts]).amin(dim=0)

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
