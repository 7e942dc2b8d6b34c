"""`lorasynth edit`, `interpolate` and `sample`: adapters as points in a codec's latents."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from tyro.conf import Positional, UseAppendAction, arg

from lorasynth.commands.shared import PORTRAIT, WithBase, WithFormat
from lorasynth.core.command import Command, Out, Seeded
from lorasynth.core.errors import ConfigError

if TYPE_CHECKING:
    from lorasynth.adapter import Adapter
    from lorasynth.edit import LatentSpace
    from lorasynth.synthesizer import Synthesizer


@dataclass(frozen=True, kw_only=True)
class InLatents:
    """The latents to work in.

    Attributes:
        synthesizer: Synthesizer, for its codec: a folder, or hub:owner/name.
        library: Library: of adapters, or of latents as in a bundle.
    """

    synthesizer: str = "bundle/synthesizer"
    library: Path = Path("bundle/library")

    def load_space(self) -> "tuple[Synthesizer, LatentSpace]":
        """Load the synthesizer, and the latents of its codec with those of the library.

        Raises:
            LorasynthError: one of them is damaged, or they do not belong together.
        """
        from lorasynth.edit import LatentLibrary, LatentSpace
        from lorasynth.synthesizer import Synthesizer

        loaded = Synthesizer.from_pretrained(self.synthesizer)
        known = LatentLibrary.open(self.library, loaded.codec)
        return loaded, LatentSpace(loaded.layout, loaded.codec, known)


@dataclass(frozen=True, kw_only=True)
class WithStrip(Seeded, WithBase):
    """A strip of images, to look at what was made.

    Attributes:
        strip: PNG to write: an image made with each by the base model, one below the other.
        prompt: Of the strip's images.
    """

    strip: Path | None = None
    prompt: str = PORTRAIT

    def draw_strip(self, adapters: "Sequence[Adapter]", names: Sequence[str]) -> None:
        """Write one image with each adapter, from the same noise, if a strip is asked for."""
        if self.strip is None:
            return
        import torch

        from lorasynth.adapter import stack
        from lorasynth.base.compatibility import require_made_for
        from lorasynth.images.png import contact_sheet, write_synthetic

        model = self.load_base()
        require_made_for(model, adapters[0].metadata.base_fingerprint, "LoRA file")
        images = [model.sample([self.prompt], [self.seed], stack([a.factors])) for a in adapters]
        sheet = contact_sheet(torch.cat(images), 1, names=names)
        write_synthetic(self.strip, sheet, {"Description": self.prompt})
        print(self.strip)


@dataclass(frozen=True, kw_only=True)
class Edit(Command, WithFormat, InLatents, WithStrip):
    """Change attributes of an adapter's subject, all others kept.

    The strip shows the adapter as it was, and changed by a half, the whole and one and a half.

    Example: lorasynth edit me.safetensors --attribute glasses=+1 -o glasses.safetensors

    Attributes:
        lora: LoRA file.
        out: LoRA file (peft: folder) to write.
        attribute: Attribute and by how much it rises: glasses=+1, hair:red=-0.3; repeatable.
    """

    group: ClassVar[str] = "Use"

    lora: Positional[Path]
    out: Out
    attribute: UseAppendAction[tuple[str, ...]]

    def run(self) -> Path:
        """Write the edited adapter."""
        from lorasynth.adapter import Adapter
        from lorasynth.adapter.files import FORMATS

        steps = dict(map(_step, self.attribute))
        writer = FORMATS.get(self.format)
        writer.target(self.out)
        adapter = Adapter.load(self.lora)
        _, space = self.load_space()
        change = space.direction(steps)
        stated = adapter.metadata.extra | {"edited": " ".join(self.attribute)}
        moved = space.moved(adapter, change)
        edited = replace(moved, metadata=replace(adapter.metadata, extra=stated))
        written = writer.write(edited, self.out)
        print(written)
        if self.strip is not None:
            shown = [space.moved(adapter, share * change) for share in (0, 0.5, 1, 1.5)]
            self.draw_strip(shown, ("as it was", "half", "whole", "1.5 times"))
        return written


def _step(text: str) -> tuple[str, float]:
    """An attribute and by how much it rises."""
    name, _, size = text.partition("=")
    try:
        return name.strip(), float(size)
    except ValueError as error:
        raise ConfigError(
            f"--attribute must be NAME=STEP with a number, such as glasses=+1, but is {text!r}"
        ) from error


@dataclass(frozen=True, kw_only=True)
class Interpolate(Command, WithFormat, InLatents, WithStrip):
    """Write adapters on the way from one to another.

    Example: lorasynth edit interpolate a.safetensors b.safetensors --steps 7 -o between

    Attributes:
        start: LoRA file.
        end: LoRA file.
        out: Folder for the LoRA files.
        steps: LoRA files, both ends included.
        path: lerp or slerp.
    """

    group: ClassVar[str] = "Use"

    start: Positional[Path]
    end: Positional[Path]
    out: Out
    steps: Annotated[int, Field(ge=2)] = 7
    path: str = "lerp"

    def run(self) -> list[Path]:
        """Write the adapters."""
        from lorasynth.adapter import Adapter
        from lorasynth.edit import PATHS

        if self.path not in PATHS:
            raise ConfigError(f"--path must be one of {', '.join(PATHS)}, but is {self.path!r}")
        first, last = Adapter.load(self.start), Adapter.load(self.end)
        _, space = self.load_space()
        shares = [step / (self.steps - 1) for step in range(self.steps)]
        between = space.between(first, last, shares, PATHS[self.path])
        written = _write_all(between, self.out, self.format)
        self.draw_strip(between, [path.stem for path in written])
        return written


@dataclass(frozen=True, kw_only=True)
class Sample(Command, WithFormat, InLatents, WithStrip):
    """Sample adapters unconditionally.

    gaussian draws each latent with the library's mean and standard deviation, standard from the
    standard normal distribution, convex mixes three of the library, and diffusion samples without a
    condition.

    Example: lorasynth sample --prior gaussian -n 8 -o samples --strip samples.png

    Attributes:
        out: Folder for the LoRA files.
        number: How many.
        prior: gaussian, standard (a VAE's), convex, or diffusion.
    """

    group: ClassVar[str] = "Use"

    out: Out
    number: Annotated[int, Field(ge=1), arg(aliases=("-n",))] = 4
    prior: str = "diffusion"

    def run(self) -> list[Path]:
        """Write the adapters."""
        from lorasynth.edit import PRIORS
        from lorasynth.hypernet import LatentRegression

        if self.prior not in (known := ["diffusion", *PRIORS.names()]):
            raise ConfigError(f"--prior must be one of {', '.join(known)}, but is {self.prior!r}")
        loaded, space = self.load_space()
        names, strength = [f"{i:03d}" for i in range(self.number)], 1.0
        if self.prior == "diffusion":
            if isinstance(loaded.hypernet, LatentRegression):
                raise ConfigError(
                    f"a synthesizer that is a regression, as {self.synthesizer} is, predicts the "
                    "same without a condition each time: give one that diffuses, or --prior "
                    f"{PRIORS.names()[0]}"
                )
            latents = loaded.latents(None, names, seed=self.seed, temperature=1.0)
            strength = loaded.strength  # of what the hypernetwork predicts; a prior needs none
        else:
            latents = PRIORS.get(self.prior)(space.library.latents, names, self.seed)
        metadata = loaded.metadata(self.seed)
        metadata = replace(metadata, extra=metadata.extra | {"prior": self.prior})
        made = space.adapters(latents, metadata, strength)
        written = _write_all(made, self.out, self.format)
        self.draw_strip(made, [path.stem for path in written])
        return written


def _write_all(adapters: "Sequence[Adapter]", folder: Path, file_format: str) -> list[Path]:
    from lorasynth.adapter.files import FORMATS

    writer, written = FORMATS.get(file_format), []
    for i, adapter in enumerate(adapters):
        written.append(writer.write(adapter, folder / f"{i:03d}{writer.suffix}"))
        print(written[-1])
    return written
