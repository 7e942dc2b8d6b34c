"""Conditions from facts: attributes of a subject in words, alone or beside what its images show.

Each attribute is a block of the condition with a 1 at its value (two values make it binary, as
CelebA's attributes are); one that is not known is a block of zeros.
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

_IDENTITY = "identity"


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


class AttributeEncoder(ConditionEncoder):
    """Facts as a unit vector, beside another encoder's embedding if there is one."""

    def __init__(self, config: AttributesConfig, identity: ConditionEncoder | None = None) -> None:
        self.config = config
        self.identity = identity
        self.attributes = config.attributes
        self.looks = identity is not None
        if identity is not None:
            self.domain, self.advice = identity.domain, identity.advice
        self.finds_faces = identity is not None and identity.finds_faces
        self.name = config.name
        self.facts_width = sum(map(len, config.attributes.values()))
        self.width = self.facts_width + (0 if identity is None else identity.width)
        self.image_size = 1 if identity is None else identity.image_size
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
                block[self._index(name, in_words(facts[name]))] = 1
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
    def see(
        self, photos: Photos, *, names: Sequence[str] | None = None, face: int | None = None
    ) -> Seen:
        """What the other encoder sees.

        Raises:
            ConfigError: there is no other encoder to look at photos.
        """
        return self._seeing.see(photos, names=names, face=face)

    @property
    @override
    def seen_width(self) -> int:
        return 0 if self.identity is None else self.identity.seen_width

    @override
    def conditions(
        self, seen: Float[Tensor, "k s"] | None, facts: Mapping[str, object]
    ) -> Float[Tensor, "j m"]:
        """Each photo in three: with the facts, the photo alone, the facts alone.

        So what learns from them needs neither.

        Raises:
            ConfigError: a fact is impossible, or there is none.
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
        """From what is seen and what is stated.

        Raises:
            ConfigError: a fact is impossible, or nothing is seen or stated.
        """
        if self.identity is None or seen is None:
            return self.describe(None, facts)[0]
        return self.describe(self.identity.condition(seen, facts)[None], facts)[0]

    def _index(self, name: str, value: str) -> int:
        values = self.config.attributes[name]
        if value not in values:
            raise ConfigError(f"{name} must be one of {', '.join(values)}, but is {value!r}")
        return values.index(value)

    @property
    def _seeing(self) -> ConditionEncoder:
        if self.identity is None:
            raise ConfigError(
                f"the encoder {self.name!r} knows attributes in words and looks at no images: "
                "measure with another one"
            )
        return self.identity

    @override
    def embed(self, images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b m"]:
        """Conditions of images of subjects of whom nothing else is known.

        Raises:
            ConfigError: there is no other encoder to look at them.
        """
        return self.describe(self._seeing.embed(images), {})

    @override
    def presence(self, images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, " b"]:
        return torch.ones(len(images)) if self.identity is None else self.identity.presence(images)

    @override
    def save(self, folder: Path) -> None:
        """Write the attributes, and the other encoder below."""
        stated = {"kind": "attributes", **configs.to_dict(self.config)}
        with atomic_directory(folder) as temporary:
            write_json(temporary / CONFIG_FILE, stated)
            if self.identity is not None:
                self.identity.save(temporary / _IDENTITY)

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


ENCODERS.register("attributes")(AttributeEncoder.load)
