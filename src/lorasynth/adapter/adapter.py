"""One LoRA: its factors and what is known about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from lorasynth import __version__
from lorasynth.adapter import handing
from lorasynth.adapter.factors import Factor, Factors, map_factors, require_finite, scaled
from lorasynth.adapter.layout import Kernel, Layout
from lorasynth.core.card import Card, names_in
from lorasynth.core.errors import ConfigError, LayoutError
from lorasynth.core.hub import Upload, upload


@dataclass(frozen=True, kw_only=True)
class AdapterMetadata:
    """What travels with an adapter in the header of its file."""

    #: Fingerprint of the base model that the adapter changes; empty if unknown.
    base_fingerprint: str = ""
    #: Words that call the subject in a prompt, such as "sks"; empty if there are none.
    trigger_phrase: str = ""
    #: True if a synthesizer made the adapter, False if it was trained.
    synthesised: bool = False
    #: Program and version that wrote it.
    created_by: str = f"lorasynth {__version__}"
    #: Anything else, as text.
    extra: dict[str, str] = field(default_factory=dict)
    #: Entries that the header of its file had from other programs, which new files keep.
    header: Mapping[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, eq=False)
class Adapter:
    """One LoRA without batch axes: module name -> factor, with metadata.

    Modules of the denoiser (U-Net or transformer) have the names that it gives them; those of a
    text encoder are named from `text_encoder.` or `text_encoder_2.` on.

    Attributes:
        factors: ΔW = B·A of each module; a convolution's is the matrix of its flattened patches.
        metadata: what travels with it.
        kernels: height and width of the kernel of each module that is a convolution.

    Raises:
        LayoutError: there is no module, shapes contradict, the rank is 0, or a number is not
            finite.
    """

    factors: Factors
    metadata: AdapterMetadata = field(default_factory=AdapterMetadata)
    kernels: Mapping[str, Kernel] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.factors:
            raise LayoutError("an adapter must have at least one module, but has none")
        for module, factor in self.factors.items():
            _require_shapes(module, factor)
        for module in self.kernels.keys() - self.factors.keys():
            raise LayoutError(f"a kernel must be of a module of the adapter, but {module} is none")
        require_finite(self.factors)

    def __repr__(self) -> str:
        """In one line: its numbers are thousands."""
        ranks, data = {f.A.shape[0] for f in self.factors.values()}, self.metadata
        rank = "-".join(map(str, sorted({min(ranks), max(ranks)})))
        return (
            f"Adapter({len(self.factors)} modules of rank {rank}, {self.dtype}, "
            f"trigger_phrase={data.trigger_phrase!r}, base_fingerprint={data.base_fingerprint!r}, "
            f"synthesised={data.synthesised})"
        )

    @property
    def layout(self) -> Layout:
        """The layout of this adapter's own modules and ranks."""
        return Layout.from_factors(self.factors, self.kernels)

    @classmethod
    def from_vector(
        cls, vector: Float[Tensor, " D"], layout: Layout, metadata: AdapterMetadata | None = None
    ) -> "Adapter":
        """Cut a flat vector into an adapter."""
        return cls(layout.unflatten(vector), metadata or AdapterMetadata(), layout.kernels)

    def to_vector(self, layout: Layout | None = None) -> Float[Tensor, " D"]:
        """Flatten in `layout`, by default the adapter's own."""
        return (layout or self.layout).flatten(self.factors)

    def scaled(self, strength: float) -> "Adapter":
        """The adapter with ΔW multiplied by `strength`."""
        return replace(self, factors=scaled(self.factors, strength))

    @property
    def device(self) -> torch.device:
        """Where its numbers are."""
        return next(iter(self.factors.values())).A.device

    @property
    def dtype(self) -> torch.dtype:
        """Their floating-point type."""
        return next(iter(self.factors.values())).A.dtype

    def to(self, to: torch.dtype | torch.device | str) -> "Adapter":
        """The adapter in another floating-point type, or on another device."""
        return replace(self, factors=map_factors(lambda tensor: tensor.to(to), self.factors))

    def save(self, path: Path | str, format: str = "auto", card: Card | None = None) -> Path:
        """Write a file that other programs load; returns the path that was written.

        Args:
            path: of the file; for `peft`, of a folder.
            format: `auto`, what diffusers and ComfyUI both read exactly; `kohya`, `diffusers`,
                `comfyui` or `peft`.
            card: also write a model card, README.md, beside the file or into the folder.

        Raises:
            ConfigError: no such format.
            LorasynthError: the output cannot be written, or `path` is not named as the format asks.
        """
        from lorasynth.adapter.files import FORMATS

        form, path = FORMATS.get(format), Path(path)
        target = form.target(path)
        if card is not None and not form.suffix and names_in(target):
            (target / "README.md").unlink()  # a folder replaces nothing but what it writes itself
        written = form.write(self, path)
        if card is not None:
            handing.write_lora_card(self, written, format, card)
        return written

    def state_dict(self, format: str = "diffusers") -> dict[str, Tensor]:
        """The tensors of the file that `save` would write, by their keys there.

        Raises:
            ConfigError: no such format.
            FileFormatError: the format has no names for the adapter's layers.
        """
        from lorasynth.adapter.files import FORMATS

        return FORMATS.get(format).spell(self)[0]

    def load_into(self, pipe: Any, name: str = "me", strength: float = 1.0) -> None:
        """Attach the adapter to a diffusers pipeline in memory, as its one active adapter.

        An adapter of that name that is there already is replaced; others stay loaded and are made
        active together by `pipe.set_adapters([...], [...])`.

        Args:
            pipe: any pipeline with `load_lora_weights`.
            name: of the adapter in the pipeline.
            strength: of ΔW.

        Raises:
            LayoutError: the pipeline is of another base model, or loads no LoRA.
        """
        if not hasattr(pipe, "load_lora_weights"):
            raise LayoutError(
                f"a pipeline must load LoRAs, but {type(pipe).__name__} has no load_lora_weights"
            )
        reason = handing.misfit(self, pipe)
        if not reason:
            if name in handing.loaded(pipe):
                pipe.delete_adapters(name)
            pipe.load_lora_weights(self.state_dict(), adapter_name=name)
            reason = "" if name in handing.loaded(pipe) else "it loads none of its layers"
        if reason:
            base = self.metadata.extra.get("base_name") or "another base model"
            raise LayoutError(
                f"an adapter must be for the pipeline's base model, but this one, for {base}, does "
                f"not fit {type(pipe).__name__}: {reason}"
            )
        pipe.set_adapters([name], [strength])

    def push_to_hub(self, name: str, card: Card, **options: Unpack[Upload]) -> str:
        """Upload the adapter with a model card, as `load_lora_weights` reads it from the hub.

        Args:
            name: of the repository, owner/name; made if there is none.
            card: must say whom the adapter shows and that they agreed.
            **options: `private`, `revision`, `create_pr`, `commit_message`, `token`.

        Returns:
            The address of the commit or pull request.

        Raises:
            ConfigError: the card says nothing of consent.
            LorasynthError: the hub refuses it, or is not reached.
        """
        if not card.consent:
            raise ConfigError(
                "a LoRA that is shared shows somebody, so its card must say whom and that they "
                "agreed, but says nothing: give Card(consent=...)"
            )
        with TemporaryDirectory() as folder:
            self.save(folder, "diffusers", card)
            return upload(Path(folder), name, **options)

    @classmethod
    def load(cls, path: Path | str) -> "Adapter":
        """Read a LoRA file or folder in any known spelling.

        Raises:
            FileFormatError: the file is damaged, of an unknown format or of a refused kind.
            LayoutError: its numbers are not finite.
        """
        from lorasynth.adapter.files import read

        return read(path).adapter


def _require_shapes(module: str, factor: Factor) -> None:
    a, b = tuple(factor.A.shape), tuple(factor.B.shape)
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or 0 in a + b:
        raise LayoutError(
            f"A must be (r, in) and B (out, r) with r at least 1, but {module} has A {a} and B {b}"
        )
