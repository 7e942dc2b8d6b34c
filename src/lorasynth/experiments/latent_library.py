"""A library small enough to ship: each adapter as its codec's latent, with its conditions."""

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from lorasynth.atomic import atomic_directory, write_json
from lorasynth.codec import Codec
from lorasynth.config import read_json
from lorasynth.errors import BundleError
from lorasynth.hypernet.library_data import training_set
from lorasynth.library import Library, LibraryView
from lorasynth.weights import read_weights, write_weights

_WEIGHTS = "latents.safetensors"
_SUBJECTS = "subjects.json"


@dataclass(frozen=True, kw_only=True)
class LatentLibrary:
    """N adapters that methods may learn from.

    Attributes:
        ids: of the subjects.
        latents: of their adapters, in the codec's units.
        conditions: embeddings of P pictures of each.
    """

    ids: tuple[str, ...]
    latents: Float[Tensor, "N k"]
    conditions: Float[Tensor, "N P m"]

    @classmethod
    def encode(cls, library: Library | LibraryView, codec: Codec, column: str) -> "LatentLibrary":
        """Encode a library or a part of one; `column` holds the conditions."""
        data = training_set(library, codec, column)
        assert data.conditions is not None, "a column was named"
        return cls(ids=tuple(library.ids), latents=data.latents, conditions=data.conditions)

    def save(self, folder: Path) -> None:
        """Write the latents and conditions (fp16) and the subjects' names."""
        with atomic_directory(folder) as temporary:
            tensors = {"latents": self.latents, "conditions": self.conditions}
            write_weights(temporary / _WEIGHTS, tensors, half=True)
            write_json(temporary / _SUBJECTS, {"ids": list(self.ids)})

    @classmethod
    def load(cls, folder: Path) -> "LatentLibrary":
        """Read what `save` wrote.

        Raises:
            BundleError: the folder is damaged or incomplete.
        """
        tensors = read_weights(folder / _WEIGHTS)
        ids = tuple(read_json(folder / _SUBJECTS).get("ids", ()))
        if {len(ids)} != {len(tensor) for tensor in tensors.values()}:
            raise BundleError(
                f"{folder} must hold as many latents and conditions as subjects ({len(ids)}), but "
                "does not: fetch or make it again"
            )
        return cls(ids=ids, **tensors)
