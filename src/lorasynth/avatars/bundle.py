"""The bundle: everything that the embedded system needs, as one folder.

base/              the embedded Stable Diffusion pipeline
encoders/avatar/          the condition encoder (also inside the synthesizer)
encoders/avatar-second/   the encoder that only judges
judge/             the attribute judge
synthesizer/       see `lorasynth.synthesizer`; trained on the library
pretrained/        another, trained through the base model's loss, which the library started from;
                   absent if the library started from nothing
library/           the library as codec latents
sample/            a few raw adapters as a library
recipe.json        how adapters are trained
MANIFEST.json      commands, seeds, sizes, hashes, metrics
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter import Factors
from lorasynth.avatars.judge import AttributeJudge
from lorasynth.base import BaseModel
from lorasynth.condition import ConditionEncoder, load_encoder
from lorasynth.core import checksums
from lorasynth.core.atomic import write_json
from lorasynth.core.config import from_dict, read_json
from lorasynth.core.errors import BundleError, ConfigError
from lorasynth.core.places import local
from lorasynth.edit.latent_library import LatentLibrary
from lorasynth.engine.recipe import Recipe
from lorasynth.evaluation.trial import Instruments
from lorasynth.library import Library
from lorasynth.synthesizer import Synthesizer

MANIFEST = "MANIFEST.json"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """The loaded parts of a bundle."""

    base: BaseModel
    synthesizer: Synthesizer
    pretrained: Synthesizer | None
    first: ConditionEncoder
    second: ConditionEncoder
    judge: AttributeJudge
    library: LatentLibrary
    sample: Library
    recipe: Recipe

    @property
    def instruments(self) -> Instruments:
        """What makes images, and what judges them."""
        return Instruments(
            base=self.base,
            encoder=self.first,
            second=self.second,
            judge=self.judge,
            condition=self.synthesizer.encoder,
        )

    def canonical(self, adapters: Factors) -> Factors:
        """The canonical form of any stacked adapters, in the library's gauge."""
        layout = self.synthesizer.layout
        return layout.unflatten(self.library.vectors(adapters, layout))

    def encode(self, adapters: Factors) -> Float[Tensor, "n k"]:
        """Latents of any stacked adapters, as the library's are."""
        vectors = self.library.vectors(adapters, self.synthesizer.layout)
        return self.synthesizer.codec.encode(vectors)

    def decode(self, latents: Float[Tensor, "n k"]) -> Factors:
        """Stacked adapters of latents."""
        return self.synthesizer.decode(latents)

    @classmethod
    def open(cls, folder: Path, device: torch.device | str = "cpu") -> "Bundle":
        """Load a bundle after comparing every file with the manifest.

        Raises:
            BundleError: the bundle is incomplete, or a file has changed.
        """
        folder = local(folder)
        verify(folder)
        pretrained = folder / "pretrained"
        return cls(
            base=BaseModel.load(folder / "base", device),
            synthesizer=Synthesizer.from_pretrained(folder / "synthesizer"),
            pretrained=Synthesizer.from_pretrained(pretrained) if pretrained.exists() else None,
            first=load_encoder(folder / "encoders" / "avatar", device),
            second=load_encoder(folder / "encoders" / "avatar-second", device),
            judge=AttributeJudge.load(folder / "judge"),
            library=LatentLibrary.load(folder / "library"),
            sample=Library.open(folder / "sample"),
            recipe=from_dict(Recipe, read_json(folder / "recipe.json")),
        )


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Record `facts` (commands, seeds, dates, metrics) and the size and hash of every file."""
    files = _files(folder)
    entries = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": checksums.file_hash(path),
        }
        for path in files
    }
    total = sum(path.stat().st_size for path in files)
    write_json(folder / MANIFEST, {**facts, "bytes": total, "files": entries})


def verify(folder: Path) -> None:
    """Compare a bundle with its manifest.

    Raises:
        BundleError: there is no manifest, a file is missing, or a file has changed.
    """
    try:
        stated = read_json(folder / MANIFEST)["files"]
    except (ConfigError, KeyError) as error:
        raise BundleError(
            f"a bundle must be a folder with {MANIFEST}, but {folder} is not one ({error}): give "
            "the bundle of this repository, or make one with: make bundle"
        ) from error
    checksums.compare(folder, {name: entry["sha256"] for name, entry in stated.items()})
