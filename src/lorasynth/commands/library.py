"""`lorasynth library`: look into a library, and care for it."""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic.dataclasses import dataclass
from tyro.conf import Positional

from lorasynth.collect.config import GeneratedConfig
from lorasynth.commands.shared import WithBase
from lorasynth.core.command import Command
from lorasynth.core.progress import note

if TYPE_CHECKING:
    from lorasynth.library import Library


@dataclass(frozen=True, kw_only=True)
class OfLibrary(Command):
    """A library.

    Attributes:
        path: Folder of the library.
    """

    group: ClassVar[str] = "Libraries"

    path: Positional[Path]


@dataclass(frozen=True, kw_only=True)
class Check(OfLibrary):
    """Verify every number against its checksum: a line for each damage, and status 2 if any."""

    def run(self) -> None:
        """Check."""
        from lorasynth.library import Library

        report = Library.open(self.path).check()
        for damage in report.damages:
            note(f"damaged: {damage}")
        if report.damages:
            raise SystemExit(2)
        print(f"{self.path}: {report.adapters} adapters in {report.shards} shards, all intact")


@dataclass(frozen=True, kw_only=True)
class Info(OfLibrary):
    """Say what a library holds.

    Attributes:
        statistics: Read all vectors for their norms and standard deviations.
    """

    statistics: bool = False

    def run(self) -> dict[str, object]:
        """Print the facts, and return them."""
        from lorasynth.library import Library

        library = Library.open(self.path)
        ranks = sorted({slot.rank for slot in library.layout.slots})
        facts: dict[str, object] = {
            "adapters": len(library),
            "vector": f"{library.width} numbers ({library.info.dtype})",
            "modules": len(library.layout.modules),
            "rank": ", ".join(map(str, ranks)),
            "gauge": library.info.gauge,
            "base model": library.info.base_fingerprint,
            "columns": ", ".join(library.columns) or "none",
            "table": ", ".join(library.table.column_names),
            "recipe": ", ".join(f"{name}={value}" for name, value in library.info.recipe.items()),
        }
        if self.statistics:
            facts |= _statistics(library)
        for name, value in facts.items():
            print(f"{name:<12}{value}")
        return facts


def _statistics(library: "Library") -> dict[str, str]:
    """The vectors in figures, from one pass."""
    from lorasynth.library import streaming_statistics

    found = streaming_statistics(library)
    mean, deviation = found.moments.mean, found.moments.variance.sqrt()
    least, middle, most = (float(found.norms.quantile(share)) for share in (0.0, 0.5, 1.0))
    return {
        "norms": f"{middle:.4g} in the median, {least:.4g} to {most:.4g}",
        "mean": f"norm {float(mean.norm()):.4g}",
        "deviation": f"{float(deviation.square().mean().sqrt()):.4g} of a number, "
        f"{float(deviation.min()):.4g} to {float(deviation.max()):.4g}",
    }


@dataclass(frozen=True, kw_only=True)
class Annotate(OfLibrary):
    """Add facts about subjects, such as attributes to edit by, or a column split.

    A text has an attribute for each of its values, a number is one; `none` says that a subject has
    nothing of the kind. Values that are missing are allowed, but such a column is no attribute.

    Example: lorasynth library annotate library people.csv

    Attributes:
        table: CSV or Parquet file with a column id and one for each fact.
    """

    table: Positional[Path]

    def run(self) -> list[str]:
        """Annotate; the names of all facts."""
        from lorasynth.library import Library
        from lorasynth.library.annotations import read_facts

        names = Library.open(self.path).annotate(read_facts(self.table))
        print(f"{self.path}: annotated with {', '.join(names)}")
        return names


@dataclass(frozen=True, kw_only=True)
class Embed(OfLibrary, WithBase):
    """Embed the subjects of a library that was imported; run again to go on.

    Where the images that adapters were trained on are not at hand, each adapter shows its subject.
    An encoder of attributes alone needs no images.

    Example: lorasynth library embed library --encoder dlib --base path/to/stable-diffusion-v1-5
    --generated.prompt "a photo of sks person"

    Attributes:
        encoder: Condition encoder: a folder or a name.
        images: The subjects' images, as collect takes them; without it, they are made with the
            adapters.
        generated: How adapters show their subjects.
    """

    encoder: str
    images: str | None = None
    generated: GeneratedConfig = GeneratedConfig()

    def run(self) -> str:
        """Embed; the name of the column."""
        from lorasynth.collect import column_of
        from lorasynth.collect.described import embed_imported
        from lorasynth.condition import load_encoder
        from lorasynth.core.device import pick_device
        from lorasynth.library import Library

        library, encoder = (
            Library.open(self.path),
            load_encoder(self.encoder, pick_device(self.device)),
        )
        embed_imported(library, encoder, self.images, self.load_base, self.generated)
        print(f"{self.path}: {len(library)} subjects embedded as {column_of(encoder)}")
        return column_of(encoder)


@dataclass(frozen=True, kw_only=True)
class Forget(OfLibrary):
    """Remove subjects, with all in the library that was derived from them.

    What was fitted to the library before still holds what it learned from them.

    Attributes:
        subjects: Ids of subjects.
    """

    subjects: Positional[tuple[str, ...]]

    def run(self) -> set[str]:
        """Forget; the ids of those who were there."""
        from lorasynth.collect.failures import Failures
        from lorasynth.core.errors import LibraryError
        from lorasynth.library.forgetting import forget

        failures = Failures(self.path)
        failed = [name for name in self.subjects if name in failures.ids]
        known = {*forget(self.path, self.subjects), *failed}
        failures.update({}, failed)
        if unknown := [name for name in self.subjects if name not in known]:
            raise LibraryError(
                f"a subject must be in the library, but {unknown[0]!r} is not; "
                f"{len(known)} of {len(self.subjects)} were removed: check the name"
            )
        print(
            f"{self.path}: {len(known)} subjects removed, with their factors, vectors, embeddings "
            "and latents. A codec and a hypernetwork that learned from them, and LoRA files of "
            "them, are elsewhere: fit and train again, and delete those files"
        )
        return known


@dataclass(frozen=True, kw_only=True)
class Join(OfLibrary):
    """Join the parts that `lorasynth collect --shard` made: each adapter once, in one order.

    Example: lorasynth library join library

    Attributes:
        parts: The parts' libraries; by default PATH/parts/*.
    """

    parts: Positional[tuple[Path, ...]] = ()

    def run(self) -> Path:
        """Join; the library's path."""
        from lorasynth.collect.shards import join

        report = join(self.path, self.parts)
        with_columns = f", with {', '.join(report.columns)}" if report.columns else ""
        print(
            f"{self.path}: {report.adapters} adapters, {report.joined} of them new, "
            f"{report.failed} failed{with_columns}"
        )
        return self.path
