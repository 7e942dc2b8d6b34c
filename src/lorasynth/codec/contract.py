"""What a codec must do: flat adapter vectors to latents and back.

A codec object is always a fitted one: `fit` is a class method.  It is a `torch.nn.Module` so that
`.to(device)`, `.double()` and gradients through `decode` work as everywhere in torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorasynth.codec.config import Budget
from lorasynth.codec.sources import TensorSource, require_several
from lorasynth.core.atomic import atomic_directory
from lorasynth.core.checkpoint import forget
from lorasynth.core.config import from_dict, read_json, to_dict
from lorasynth.core.errors import LayoutError
from lorasynth.core.learned import Learned, learned_from
from lorasynth.core.registry import Registry
from lorasynth.core.weights import CONFIG_FILE, described, load_module, save_module
from lorasynth.library.blocks import BlockSource

CodecT = TypeVar("CodecT", bound="Codec")

WEIGHTS_FILE = "codec.safetensors"


class Codec(nn.Module, ABC):
    """A map between vectors of `width` parameters and `latents` latents.

    Latents are of the order of 1 over the vectors that the codec was fitted to, taken over all
    dimensions together; each codec says what it promises, and how single dimensions differ.

    Args:
        config: an instance of the class's `config_class`.
        width: D, the length of a vector.
        latents: k, the length of a latent.

    Attributes:
        figures: names of the files that `draw` writes.
        report: numbers about the fit, in JSON values; saved with the codec.
        learned: the subjects that it was fitted to; saved with the codec.
    """

    config_class: ClassVar[type[Any]]
    figures: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Any, width: int, latents: int) -> None:
        super().__init__()
        self.config = config
        self.width = width
        self.latents = latents
        self.report: dict[str, Any] = {}
        self.learned: Learned = frozenset()

    @classmethod
    def fit(
        cls: type[CodecT],
        source: Float[Tensor, "n D"] | BlockSource,
        config: Any = None,
        budget: Budget | None = None,
    ) -> CodecT:
        """Learn a codec from vectors, which are read in blocks.

        Args:
            source: n >= 2 vectors: a library, a view of one, a `VectorFile`, or a tensor.
            config: an instance of `config_class`; None for its defaults.
            budget: the memory, the device and the folder of checkpoints; None for the defaults.

        Raises:
            LibraryError: fewer than two vectors, a value that is not finite, or those of a library
                have changed since they were written.
            ConfigError: the config asks for more than the vectors can give, or the memory is too
                little for it.
        """
        budget = budget or Budget()
        rows = TensorSource(source) if isinstance(source, Tensor) else source
        require_several(rows)
        if require_intact := getattr(rows, "require_intact", None):
            require_intact()
        codec = cls._fit(rows, cls.config_class() if config is None else config, budget)
        codec.learned = learned_from(getattr(rows, "ids", ()))
        return codec.to(budget.device)

    @classmethod
    @abstractmethod
    def _fit(cls: type[CodecT], source: BlockSource, config: Any, budget: Budget) -> CodecT:
        """Learn from two or more vectors; `fit` says what is given and raised."""

    def draw(self, folder: Path) -> None:
        """Draw the `figures` of the fit into the folder."""

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
    source: Float[Tensor, "n D"] | BlockSource,
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
    return kind.fit(source, from_dict(kind.config_class, options or {}), Budget(device=str(device)))


def fit_into(
    out: Path,
    name: str,
    source: BlockSource,
    config: Any,
    budget: Budget,
    *,
    half: bool = False,
) -> Codec:
    """Fit the codec known as `name` and write it as a folder, with its figures.

    Args:
        out: the folder.
        name: of the codec.
        source: vectors to fit to.
        config: of the codec's kind.
        budget: its checkpoints are kept until the codec is written.
        half: store the codec's matrices as fp16.

    Raises:
        LorasynthError: see `Codec.fit` and `Codec.save`.
    """
    codec = CODECS.get(name).fit(source, config, budget)
    figures = {figure for kind in CODECS.own.values() for figure in kind.figures}
    with atomic_directory(out, also=figures.union(codec.figures)) as folder:
        codec.save(folder, half=half)
        codec.draw(folder)
    if budget.run is not None:
        forget(budget.run, "*")
    return codec


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
