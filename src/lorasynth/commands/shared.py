"""Options that several commands have: each stands here once, with its default and its text."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from tyro.conf import Positional, UseAppendAction, arg

from lorasynth.core.command import OnDevice
from lorasynth.core.errors import ConfigError

if TYPE_CHECKING:
    from lorasynth.base import BaseModel, Memory
    from lorasynth.images import SubjectSource

#: What an image shows where nobody says it, with the word that calls the subject.
TRIGGER = "sks"
PORTRAIT = f"a portrait of {TRIGGER}"  # as in lorasynth.images.contract, which imports torch

#: Of which more can be given, each with its own option word.
Repeated = UseAppendAction[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class WithBase(OnDevice):
    """The base model.

    Attributes:
        base: Base model: a pipeline folder, or hub:owner/name.
        dtype: dtype of the base model.
        size: Side of the images in pixels; default: the base model's.
        attention_slicing: Less memory for attention without a fused kernel.
        gradient_checkpointing: Much less memory for training, for a third more time.
        offload: Keep each network in main memory while another one is used.
        quantize: Store the denoiser's large layers in 8 or 4 bits; needs the extra quantize.
    """

    base: str = "bundle/base"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    size: Annotated[int, Field(ge=8)] | None = None
    attention_slicing: bool = False
    gradient_checkpointing: bool = False
    offload: bool = False
    quantize: Literal["int8", "nf4"] | None = None

    @property
    def memory_options(self) -> "Memory":
        """What the base model gives up for memory."""
        from lorasynth.base import Memory

        return Memory(
            gradient_checkpointing=self.gradient_checkpointing,
            attention_slicing=self.attention_slicing,
            offload=self.offload,
            quantize=self.quantize,
        )

    def load_base(self) -> "BaseModel":
        """Load the base model; on the device `meta` without its weights, where these are here.

        Raises:
            ConfigError: there is no such device.
            BaseModelError: the model is not whole, or cannot do what is asked.
        """
        import torch

        from lorasynth.base import BaseModel
        from lorasynth.core.device import pick_device

        size, device, number = self.size, self.device, getattr(torch, self.dtype)
        if device == "meta":  # to compare with, where its weights are here; else they are fetched
            base = BaseModel.load(self.base, device, image_size=size)
            device = device if base.fingerprint else "cpu"
        if device != "meta":
            on, memory = pick_device(device), self.memory_options
            base = BaseModel.load(self.base, on, number, memory=memory, image_size=size)
        if getattr(self, "buckets", False):
            base.use_buckets()
        return base


@dataclass(frozen=True, kw_only=True)
class WithBuckets:
    """How images of training are cut.

    Attributes:
        buckets: Cut images to rectangles near their own ratio, of the area of --size squared,
            rather than to squares around the face.
    """

    buckets: bool = False


@dataclass(frozen=True, kw_only=True)
class OfOtherBase:
    """What was made for another base model.

    Attributes:
        allow_other_base: Use what was made for another base model, such as a distilled one's
            sister, if it fits.
    """

    allow_other_base: bool = False


@dataclass(frozen=True, kw_only=True)
class OfFamily:
    """What LoRA files are for.

    Attributes:
        family: sd1, sdxl, flux1, ...: where names and shapes leave several.
    """

    family: str | None = None


@dataclass(frozen=True, kw_only=True)
class OfSubjects:
    """Images of subjects.

    Attributes:
        images: Subjects: a folder with a folder of images for each, tar files (webdataset's names:
            ann.0.jpg, ann.0.txt), Parquet files (columns id, image, caption, split), or drawn
            avatars, as avatars:200 or avatars:200,images=4,seed=1.
    """

    images: Positional[str]

    def load_images(self, size: int) -> "SubjectSource":
        """The subjects; drawn ones with `size` pixels.

        Raises:
            ImageError: there are none.
            ConfigError: what is asked for of drawn ones cannot be had.
        """
        from lorasynth.images import subjects_in

        return subjects_in(self.images, getattr(self, "caption", PORTRAIT), size)


@dataclass(frozen=True, kw_only=True)
class WithImages(WithBuckets, OfSubjects):
    """Images of subjects, with captions.

    Attributes:
        caption: Of images that have no caption of their own.
    """

    caption: str = PORTRAIT


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """Long work.

    Attributes:
        run_folder: Folder for checkpoints; the same folder resumes.
    """

    run_folder: Annotated[Path, arg(name="run")] = Path("runs")


@dataclass(frozen=True, kw_only=True)
class Overwriting:
    """An output that took long to make.

    Attributes:
        overwrite: Replace an output that is there already.
    """

    overwrite: bool = False

    def require_free(self, out: Path) -> None:
        """Refuse an output that would replace another, before anything is computed.

        Raises:
            ConfigError: it is there, and nobody said that it may be replaced.
        """
        if not self.overwrite and out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(
                f"{out} is there already, and is replaced only with --overwrite: say so, or choose "
                "another -o"
            )


@dataclass(frozen=True, kw_only=True)
class WithFormat:
    """The LoRA file to write.

    Attributes:
        format: auto: what diffusers and ComfyUI both read exactly; or kohya, diffusers, comfyui,
            peft.
    """

    format: str = "auto"


def memory_of(text: str | None, option: str = "--memory") -> int:
    """Bytes of an amount of memory such as 8GB, 500MB or 7.5GiB; half of the machine's for None.

    Raises:
        ConfigError: it is no amount.
    """
    import psutil

    if text is None:
        return int(psutil.virtual_memory().total) // 2
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])(I?)B?", text.strip().upper())
    if match is None:
        raise ConfigError(f"{option} must be a number with its unit, such as 8GB, but is {text!r}")
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** (1 + "KMGT".index(unit)))
