"""Conditions of several parts: what different encoders see in a photo, and facts in words.

An encoder of identities forgets on purpose what people change, such as hair and glasses; one of
images in general (CLIP, or a reader of attributes) sees them, and so do words.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from lorasynth.condition.contract import ENCODERS, ConditionEncoder, Seen, saved_config
from lorasynth.condition.named import load_encoder
from lorasynth.core import config as configs
from lorasynth.core.atomic import atomic_directory, write_json
from lorasynth.core.errors import ConfigError
from lorasynth.core.weights import CONFIG_FILE
from lorasynth.images.contract import Photos

#: Folder of the encoder beside an encoder of attributes.
_IDENTITY = "identity"


class _Composite(ConditionEncoder):
    """What encoders of several parts share: each part that looks at photos does so once."""

    def __init__(self, name: str, parts: Sequence[ConditionEncoder]) -> None:
        self.name = name
        self.parts = list(parts)
        self.looking = [part for part in parts if part.looks]
        self.looks = bool(self.looking)
        if self.looking:
            self.domain, self.advice = self.looking[0].domain, self.looking[0].advice
        self.finds_faces = any(part.finds_faces for part in parts)
        self.image_size = max((part.image_size for part in parts), default=1)

    def _require_looks(self) -> None:
        if not self.looks:
            raise ConfigError(
                f"the encoder {self.name!r} knows attributes in words and looks at no images: "
                "measure with another one"
            )

    @override
    def presence(self, images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, " b"]:
        """The least that any part finds."""
        ones = torch.ones(len(images))
        return torch.stack([ones, *(part.presence(images) for part in self.looking)]).amin(dim=0)

    @override
    def see(
        self, photos: Photos, *, names: Sequence[str] | None = None, face: int | None = None
    ) -> Seen:
        """What every part that looks sees, side by side; a photo shows what all of them find."""
        self._require_looks()
        found = [
            part.see(photos, names=names, face=face if part.finds_faces else None)
            for part in self.looking
        ]
        return Seen(
            torch.cat([one.embeddings for one in found], dim=1),
            torch.stack([one.presence for one in found]).amin(dim=0),
            next((one.boxes for one in found if any(one.boxes)), found[0].boxes),
        )

    @property
    @override
    def seen_width(self) -> int:
        return sum(part.seen_width for part in self.looking)


@dataclass(frozen=True, kw_only=True)
class _Stated:
    """What a folder says of joined encoders."""

    name: str
    parts: int


class JoinedEncoder(_Composite):
    """The embeddings of several encoders side by side, all with the same weight."""

    def __init__(self, parts: Sequence[ConditionEncoder], name: str | None = None) -> None:
        """Join at least two encoders.

        Raises:
            ConfigError: there are fewer.
        """
        if len(parts) < 2:
            raise ConfigError(f"two encoders or more can be joined, but got {len(parts)}")
        super().__init__(name or "-and-".join(part.name for part in parts), parts)
        self.width = sum(part.width for part in parts)
        self.licence = "; ".join(dict.fromkeys(part.licence for part in parts))
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

    @override
    def embed(self, images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b m"]:
        return self.join([part.embed(images) for part in self.parts])

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
        cut = iter(seen.split([part.seen_width for part in self.looking], dim=1))
        return [next(cut) if part.looks else None for part in self.parts]

    @override
    def save(self, folder: Path) -> None:
        """Write the parts, each to a folder below."""
        stated = {"kind": "joined", "name": self.name, "parts": len(self.parts)}
        with atomic_directory(folder) as temporary:
            write_json(temporary / CONFIG_FILE, stated)
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


@dataclass(frozen=True, kw_only=True)
class AttributesConfig:
    """What is known of subjects.

    Attributes:
        name: written into files that depend on the encoder.
        attributes: name -> the values that it can have, in the order of the condition.
    """

    name: str = "attributes"
    attributes: dict[str, list[str]]

    def __post_init__(self) -> None:
        if not self.attributes or any(len(set(v)) < 2 for v in self.attributes.values()):
            few = [name for name, values in self.attributes.items() if len(set(values)) < 2]
            raise ConfigError(
                "a condition needs attributes that differ between subjects, but "
                + (f"{', '.join(few)} has one value" if few else "got none")
            )

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> "AttributesConfig":
        """The values that attributes have in the rows of a table.

        Raises:
            ConfigError: the table lacks one, or all rows have one value.
        """
        known = rows[0].keys() if rows else ()
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"an attribute must be a column of the table ({', '.join(known)}), but is "
                    f"{name!r}"
                )
        values = {n: sorted({in_words(r[n]) for r in rows if r[n] is not None}) for n in names}
        return cls(attributes=values)


def in_words(value: object) -> str:
    """A value as the command line spells it: 1 for true and for 1.0."""
    return f"{value:g}" if isinstance(value, int | float) else str(value)


class AttributeEncoder(_Composite):
    """Facts as a unit vector, beside another encoder's embedding if there is one.

    Each attribute is a block with a 1 at its value (two values make it binary, as CelebA's
    attributes are); one that is not known is a block of zeros.
    """

    def __init__(self, config: AttributesConfig, identity: ConditionEncoder | None = None) -> None:
        super().__init__(config.name, [] if identity is None else [identity])
        self.config = config
        self.identity = identity
        self.attributes = config.attributes
        self.facts_width = sum(map(len, config.attributes.values()))
        self.width = self.facts_width + sum(part.width for part in self.parts)
        self.licence = "none: no weights" if identity is None else identity.licence

    @override
    def _fingerprint(self) -> str:
        """Of the attributes and the other encoder's weights."""
        seen = "" if self.identity is None else self.identity.fingerprint
        stated = json.dumps([configs.to_dict(self.config), seen])
        return hashlib.sha256(stated.encode()).hexdigest()[:16]

    def describe(
        self, embeddings: Float[Tensor, "k m"] | None, facts: Mapping[str, object]
    ) -> Float[Tensor, "k w"]:
        """Conditions of what is seen and what is known; one row where nothing is seen.

        Args:
            embeddings: by the other encoder; None where there is no image.
            facts: values by attribute; other facts are no part of the condition.

        Raises:
            ConfigError: an attribute cannot have that value, or nothing is seen or known.
        """
        blocks = []
        for name, values in self.config.attributes.items():
            block = torch.zeros(len(values))
            if facts.get(name) is not None:
                value = in_words(facts[name])
                if value not in values:
                    stated = ", ".join(values)
                    raise ConfigError(f"{name} must be one of {stated}, but is {value!r}")
                block[values.index(value)] = 1
            blocks.append(block)
        known = torch.cat(blocks) / math.sqrt(len(blocks))
        if embeddings is None:
            if not known.any():
                raise ConfigError(
                    f"a condition needs an image or one of {', '.join(self.config.attributes)}, "
                    "but got neither: give --attribute NAME=VALUE"
                )
            embeddings = torch.zeros(1, self.width - self.facts_width)
        joined = torch.cat([embeddings, known.expand(len(embeddings), -1)], dim=1)
        return functional.normalize(joined, dim=1)

    @override
    def conditions(
        self, seen: Float[Tensor, "k s"] | None, facts: Mapping[str, object]
    ) -> Float[Tensor, "j m"]:
        """Each photo in three: with the facts, the photo alone, the facts alone.

        So what learns from them needs neither.
        """
        alone = self.describe(None, facts)
        if self.identity is None or seen is None:
            return alone
        seen = self.identity.conditions(seen, facts)
        both, photo = self.describe(seen, facts), self.describe(seen, {})
        return torch.cat([both, photo, alone.expand(len(seen), -1)])

    @override
    def condition(
        self, seen: Float[Tensor, "k s"] | None, facts: Mapping[str, object]
    ) -> Float[Tensor, " m"]:
        """From what is seen and what is stated."""
        if self.identity is None or seen is None:
            return self.describe(None, facts)[0]
        return self.describe(self.identity.condition(seen, facts)[None], facts)[0]

    @override
    def embed(self, images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b m"]:
        """Conditions of images of subjects of whom nothing else is known."""
        self._require_looks()
        return self.describe(self.parts[0].embed(images), {})

    @override
    def save(self, folder: Path) -> None:
        """Write the attributes, and the other encoder below."""
        with atomic_directory(folder) as temporary:
            stated = {"kind": "attributes", **configs.to_dict(self.config)}
            write_json(temporary / CONFIG_FILE, stated)
            for part in self.parts:
                part.save(temporary / _IDENTITY)

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> "AttributeEncoder":
        """Read an encoder from a folder; the other one computes on a device.

        Raises:
            BundleError: the other encoder is not whole.
            ConfigError: its config is not that of an encoder of attributes.
        """
        config = configs.from_dict(AttributesConfig, saved_config(folder))
        identity = folder / _IDENTITY
        return cls(config, load_encoder(identity, device) if identity.exists() else None)


ENCODERS.register("joined")(JoinedEncoder.load)
ENCODERS.register("attributes")(AttributeEncoder.load)
