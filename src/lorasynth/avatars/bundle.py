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

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lorasynth.avatars.benchmark import Attributes, TestAvatars
from lorasynth.avatars.judge import AttributeJudge
from lorasynth.base import BaseModel
from lorasynth.condition import ConditionEncoder, load_encoder
from lorasynth.core import checksums
from lorasynth.core.atomic import write_json
from lorasynth.core.cache import Cache
from lorasynth.core.config import from_dict, read_json
from lorasynth.core.errors import BundleError, ConfigError
from lorasynth.core.learned import require_unseen
from lorasynth.core.places import local
from lorasynth.edit.latent_library import LatentLibrary
from lorasynth.engine.recipe import Recipe
from lorasynth.evaluation.benchmark import Benchmark
from lorasynth.evaluation.config import BenchmarkConfig
from lorasynth.evaluation.contenders import Parts, contenders_of
from lorasynth.evaluation.metrics import Identity
from lorasynth.evaluation.report import evaluate, tuned
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
    def parts(self) -> Parts:
        """What contenders of a benchmark are made from."""
        return Parts(
            base=self.base,
            synthesizer=self.synthesizer,
            regression=self.pretrained,
            library=self.library,
            recipe=self.recipe,
        )

    def benchmark(self, config: BenchmarkConfig, cache: Cache | None = None) -> Benchmark:
        """Avatars on whom contenders are measured by both encoders and the judge."""
        return Benchmark(
            self.base,
            TestAvatars.of(config, self.base.image_size),
            [Identity([self.first, self.second]), Attributes(self.judge)],
            config,
            conditioners=self.parts.conditioners,
            cache=cache,
        )

    def evaluate(
        self, config: BenchmarkConfig, cache: Cache, *, tune: int = 0, resamples: int = 16
    ) -> dict[str, Any]:
        """Measure all contenders on avatars (`lorasynth evaluate`).

        Args:
            config: subjects and images.
            cache: keeps trained adapters and what was measured.
            tune: validation subjects on whom every contender's strength is chosen; 0: as shipped.
            resamples: see `evaluation.report.evaluate`.
        """
        benchmark = self.benchmark(config, cache)
        require_unseen(self.synthesizer.learned, benchmark.subjects.ids, "the synthesizer")
        contenders = contenders_of(self.parts, benchmark.subjects, cache)
        if tune:
            asked = replace(config, split="validation", subjects=tune)
            practice = self.benchmark(asked, cache)
            best = tuned(practice, contenders_of(self.parts, practice.subjects, cache))
            contenders = [replace(c, strength=best.get(c.name, 1.0)) for c in contenders]
        return evaluate(benchmark, contenders, self.parts, resamples=resamples)

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
