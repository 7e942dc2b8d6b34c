"""A library small enough to ship: each adapter as its codec's latent, with what is known of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth.adapter import Factors, Layout, canonicalise
from lorasynth.codec import Codec
from lorasynth.collect.described import NO_FACTS
from lorasynth.core.atomic import atomic_directory, write_json
from lorasynth.core.config import read_json
from lorasynth.core.errors import BundleError, LayoutError
from lorasynth.core.places import local
from lorasynth.core.weights import fingerprint, read_weights, write_weights
from lorasynth.hypernet.library_data import latents_of
from lorasynth.library import Library

_WEIGHTS = "latents.safetensors"
#: Values of all columns together.
_VALUES = 1 << 23
_SUBJECTS = "subjects.json"


@dataclass(frozen=True, kw_only=True)
class LatentLibrary:
    """N adapters that methods may learn from.

    Attributes:
        ids: of the subjects.
        latents: of their adapters, in the codec's units.
        conditions: embeddings of P images of each; P is 0 where nobody asked for them.
        columns: what else the library's table says of the subjects.
        gauge: of the vectors behind the latents.
        reference: the vector that the gauge aligns with; None if it needs none.
        codec: fingerprint of the codec whose latents they are.
    """

    ids: tuple[str, ...]
    latents: Float[Tensor, "N k"]
    conditions: Float[Tensor, "N P m"]
    columns: Mapping[str, list[Any]] = field(default_factory=dict)
    gauge: str = "none"
    reference: Float[Tensor, " D"] | None = None
    codec: str = ""

    @classmethod
    def encode(cls, library: Library, codec: Codec, column: str | None) -> "LatentLibrary":
        """Encode a library or a part of one; `column` holds the conditions, if they are needed."""
        none = torch.zeros(len(library), 0, 0)
        reference = library.reference
        return cls(
            ids=tuple(library.ids),
            latents=latents_of(library, codec),
            conditions=none if column is None else library.column(column),
            columns={k: v for k, v in library.table.to_pydict().items() if k not in NO_FACTS},
            gauge=library.info.gauge,
            reference=None if reference is None else library.layout.flatten(reference),
            codec=fingerprint(codec),
        )

    @classmethod
    def open(cls, folder: Path, codec: Codec) -> "LatentLibrary":
        """Read a library of latents, or the latents of a library of adapters (without conditions).

        Of a library with splits, the adapters of `train` alone.

        Raises:
            BundleError: the folder is neither.
            LibraryError: it is a damaged library.
            LayoutError: the codec is for adapters of another layout, or not that of the latents.
        """
        if Library.is_at(folder):
            return cls.encode(Library.open(folder).training(quiet=True), codec, column=None)
        library = cls.load(folder)
        if library.codec != fingerprint(codec):
            raise LayoutError(
                f"a library of latents must be of the synthesizer's codec, {fingerprint(codec)}, "
                f"but {folder} is of {library.codec}: give the bundle that both are of"
            )
        return library

    @torch.no_grad()
    def vectors(self, adapters: Factors, layout: Layout) -> Float[Tensor, "n D"]:
        """Canonical vectors of stacked adapters, in the library's gauge.

        Raises:
            LayoutError: they are of another layout, or the gauge refuses them.
        """
        layout.require(adapters)
        reference = None if self.reference is None else layout.unflatten(self.reference)
        return layout.flatten(canonicalise(adapters, self.gauge, reference))

    def save(self, folder: Path) -> None:
        """Write the latents and conditions (fp16) and the rest."""
        with atomic_directory(folder) as temporary:
            tensors = {"latents": self.latents, "conditions": self.conditions}
            if self.reference is not None:
                tensors["reference"] = self.reference
            write_weights(temporary / _WEIGHTS, tensors, half=True)
            facts = {
                "gauge": self.gauge,
                "codec": self.codec,
                "ids": list(self.ids),
                "columns": dict(self.columns),
            }
            write_json(temporary / _SUBJECTS, facts)

    @classmethod
    def load(cls, folder: Path) -> "LatentLibrary":
        """Read what `save` wrote.

        Raises:
            BundleError: the folder is damaged or incomplete.
        """
        folder = local(folder)
        tensors, stated = read_weights(folder / _WEIGHTS), read_json(folder / _SUBJECTS, _VALUES)
        try:
            library = cls(
                ids=tuple(stated["ids"]),
                columns=stated["columns"],
                gauge=stated["gauge"],
                codec=stated["codec"],
                **tensors,
            )
        except (KeyError, TypeError) as error:
            raise BundleError(
                f"{folder} must be a library of latents, but lacks or garbles {error}: fetch or "
                "make it again"
            ) from error
        counts = {len(library.latents), len(library.conditions)}
        counts |= {len(values) for values in library.columns.values()}
        if counts != {len(library.ids)}:
            raise BundleError(
                f"{folder} must hold as many latents, conditions and facts as subjects "
                f"({len(library.ids)}), but does not: fetch or make it again"
            )
        return library
