"""`lorasynth import loras` and `import w2w`: what others trained becomes a library."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from tyro.conf import Positional

from lorasynth.core.command import Command, Out

if TYPE_CHECKING:
    from lorasynth.library.foreign import ImportReport


@dataclass(frozen=True, kw_only=True)
class ImportLoras(Command):
    """Gather LoRA files of any known format into a library; run again to go on.

    A file that cannot be used is skipped, with the reason in skipped.json beside the shards.

    Attributes:
        folder: Folder tree of LoRA files.
        out: Library to make or to go on with.
        gauge: Gauge of a new library.
        workers: Files read at once; default: one for each core.
    """

    group: ClassVar[str] = "Libraries"

    folder: Positional[Path]
    out: Out
    gauge: str = "procrustes"
    workers: Annotated[int, Field(ge=1)] | None = None

    def run(self) -> "ImportReport":
        """Import them."""
        from lorasynth.library.foreign import SKIPPED, import_folder

        workers = self.workers or os.cpu_count() or 1
        report = import_folder(self.folder, self.out, gauge=self.gauge, workers=workers)
        _say_skipped(report)
        print(
            f"{self.out}: {len(report.imported)} adapters imported, {len(report.skipped)} files "
            "skipped"
            + (f" ({self.out / SKIPPED})" if report.skipped else "")
            + (f"; {report.filled} lack modules, which are zero" if report.filled else "")
        )
        return report


def _say_skipped(report: "ImportReport") -> None:
    for skipped, reason in report.skipped.items():
        print(f"skipped {skipped}: {reason}", file=sys.stderr)


@dataclass(frozen=True, kw_only=True)
class ImportW2W(Command):
    """Read weights2weights' published files into a library; run again to go on.

    The table of identities is published as a pickle, which is never loaded: the error says how to
    turn it into a CSV file.

    Attributes:
        source: Folder with all_weights.pt, weight_dimensions.pt and identity_df.csv, or
            hub:Snapchat/weights2weights.
        out: Library to make or to go on with.
        gauge: Gauge of a new library.
        dtype: Of the stored numbers.
        person: Column of the table that says who is shown.
        embeddings: .npy with an embedding of each row's images, to tell people apart.
    """

    group: ClassVar[str] = "Libraries"

    source: Positional[str]
    out: Out
    gauge: str = "procrustes"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    person: str = "identity"
    embeddings: Path | None = None

    def run(self) -> "ImportReport":
        """Import them."""
        from lorasynth.library import Library
        from lorasynth.library.w2w import import_w2w

        report = import_w2w(
            self.source,
            self.out,
            gauge=self.gauge,
            dtype=self.dtype,
            person=self.person,
            embeddings=self.embeddings,
        )
        _say_skipped(report)
        if "split" not in Library.open(self.out).table.column_names:
            print(
                "no split: neither the table nor --embeddings says which rows show one person",
                file=sys.stderr,
            )
        print(
            f"{self.out}: {len(report.imported)} adapters imported, {len(report.skipped)} skipped"
        )
        return report
