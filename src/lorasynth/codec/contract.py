"""What a codec must do: flat adapter vectors to latents and back.

A codec object is always a fitted one: `fit` is a class method.  It is a `torch.nn.Module` so that
`.to(device)`, `.double()` and gradients through `decode` work as everywhere in torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorasynth.core.config import from_dict, read_json, to_dict
from lorasynth.core.errors import LayoutError, LibraryError
from lorasynth.core.learned import Learned
from lorasynth.core.registry import Registry
from lorasynth.core.weights import CONFIG_FILE, described, load_module, save_module

WEIGHTS_FILE = "codec.safetensors"


@runtime_checkable
class VectorSource(Protocol):
    """Something that holds adapters as rows: a library, or one split of it."""

    def all_vectors(self) -> Float[Tensor, "n D"]:
        """Every vector, in memory."""
        ...


class Codec(nn.Module, ABC):
    """A map between vectors of `width` numbers and `latents` latents.

    Latents are of the order of 1 over the vectors that the codec was fitted to, taken over all
    dimensions together; each codec says what it promises, and how single dimensions differ.

    Args:
        config: an instance of the class's `config_class`.
        width: D, the length of a vector.
        latents: k, the length of a latent.

    Attributes:
        report: figures of the fit, in JSON values; saved with the codec.
        learned: the subjects that it was fitted to; saved with the codec.
    """

    config_class: ClassVar[type[Any]]

    def __init__(self, config: Any, width: int, latents: int) -> None:
        super().__init__()
        self.config = config
        self.width = width
        self.latents = latents
        self.report: dict[str, Any] = {}
        self.learned: Learned = frozenset()

    @classmethod
    @abstractmethod
    def fit(
        cls,
        vectors: Float[Tensor, "n D"] | VectorSource,
        config: Any = None,
        *,
        device: torch.device | str = "cpu",
    ) -> "Codec":
        """Learn a codec from vectors.

        Args:
            vectors: n >= 2 vectors, or what holds them.
            config: an instance of `config_class`; None for its defaults.
            device: where to compute, and where the codec is left.

        Raises:
            LibraryError: fewer than two vectors, or a value that is not finite.
            ConfigError: the config asks for more than the vectors can give.
        """

    @abstractmethod
    def _encode(self, x: Float[Tensor, "n D"]) -> Float[Tensor, "n k"]: ...

    @abstractmethod
    def _decode(self, z: Float[Tensor, "n k"]) -> Float[Tensor, "n D"]: ...

    def encode(self, x: Float[Tensor, "n D"]) -> Float[Tensor, "n k"]:
        """Vectors to latents, in the codec's own precision.

        Raises:
            LayoutError: the vectors have another width than the codec.
        """
        _check(x, self.width, "vectors", "fit a codec for this layout")
        return self._encode(x.to(self.dtype))

    def decode(self, z: Float[Tensor, "n k"]) -> Float[Tensor, "n D"]:
        """Latents to vectors, in the codec's own precision; differentiable.

        Raises:
            LayoutError: the latents are not this codec's.
        """
        _check(z, self.latents, "latents", "use the codec that they come from")
        return self._decode(z.to(self.dtype))

    @property
    def dtype(self) -> torch.dtype:
        """The precision it computes in."""
        weights: Tensor = next(iter(self.state_dict().values()))
        return weights.dtype

    def save(self, folder: Path | str, *, half: bool = False) -> None:
        """Write the codec as a folder; `half` stores its matrices as fp16.

        Raises:
            LorasynthError: the folder cannot be written, or a value does not fit into fp16.
        """
        description = {
            "format": 1,
            "codec": CODECS.name_of(type(self)),
            "width": self.width,
            "latents": self.latents,
            "config": to_dict(self.config),
            "report": self.report,
            "learned": sorted(self.learned),
        }
        save_module(folder, self, WEIGHTS_FILE, description, half=half)


def load_codec(folder: Path | str, device: torch.device | str = "cpu") -> Codec:
    """Read a codec of any kind that `Codec.save` wrote.

    Raises:
        BundleError: the folder is damaged or incomplete.
        ConfigError: its config cannot be read, or names a codec that is not installed.
    """
    folder = Path(folder)
    description = read_json(folder / CONFIG_FILE)
    with described(folder, "a codec"):
        kind = CODECS.get(description["codec"])
        config = from_dict(kind.config_class, description["config"])
        width, latents = int(description["width"]), int(description["latents"])
        codec = load_module(lambda: kind(config, width, latents), folder / WEIGHTS_FILE, device)
        codec.report = dict(description.get("report", {}))
        codec.learned = frozenset(map(str, description.get("learned", ())))
    return codec


def fit_codec(
    name: str,
    vectors: Float[Tensor, "n D"] | VectorSource,
    options: Mapping[str, Any] | None = None,
    *,
    device: torch.device | str = "cpu",
) -> Codec:
    """Fit the codec known as `name` with options from JSON.

    Raises:
        ConfigError: no such codec, or no such option.
        LibraryError: see `Codec.fit`.
    """
    kind = CODECS.get(name)
    return kind.fit(vectors, from_dict(kind.config_class, options or {}), device=device)


def gather(
    vectors: Float[Tensor, "n D"] | VectorSource, device: torch.device | str
) -> Float[Tensor, "n D"]:
    """The vectors to fit to, checked, as float32 on `device`.

    Raises:
        LibraryError: fewer than two vectors, or a value that is not finite.
    """
    x = vectors if isinstance(vectors, Tensor) else vectors.all_vectors()
    require_several(x)
    if not x.isfinite().all():
        bad = int((~x.isfinite()).any(dim=1).nonzero()[0])
        raise LibraryError(
            f"a codec is fitted to finite numbers, but adapter {bad} of {len(x)} has NaN or "
            "infinity: check the library"
        )
    return x.to(device=device, dtype=torch.float32)


def require_several(vectors: Sized) -> None:
    """Refuse what no codec can be fitted to.

    Raises:
        LibraryError: there are fewer than two vectors.
    """
    if len(vectors) < 2:
        raise LibraryError(
            f"a codec is fitted to two or more adapters, but got {len(vectors)}: collect more"
        )


def _check(rows: Tensor, expected: int, what: str, remedy: str) -> None:
    if rows.dim() != 2 or rows.shape[1] != expected:
        raise LayoutError(
            f"this codec takes {what} of shape (n, {expected}), but got {tuple(rows.shape)}: "
            f"{remedy}"
        )


CODECS: Registry[type[Codec]] = Registry(
    "codec",
    "lorasynth.codecs",
    "lorasynth.codec.pca",
    "lorasynth.codec.scaled",
    "lorasynth.codec.vae",
)
