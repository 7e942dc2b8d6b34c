"""What is known of one family of base models."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from lorasynth.adapter.components import component_name, component_number
from lorasynth.adapter.names import Table

#: Text encoders by the names that ComfyUI gives to them; those of other names are language models.
CLIP, T5, LANGUAGE = "clip", "t5", "language"


@dataclass(frozen=True, eq=False, kw_only=True)
class Family:
    """A family of base models that share the names of their layers.

    Attributes:
        key: what `--family` calls it.
        name: what people call it.
        table: its denoiser's layers, see `names`.
        kohya: which of both names kohya's files have: `published` or `diffusers`.
        comfyui: the same of `diffusion_model.` files.
        universal: the format that diffusers and ComfyUI both read exactly, where that is possible.
        diffusers_reads: what diffusers 0.42 reads of the denoiser's layers, see `programs`.
        comfyui_reads: what ComfyUI 0.3.75 reads beside the published names; None: nothing.
        denoiser: the denoiser's name in a diffusers pipeline.
        text: its pipelines' text encoders as ComfyUI names them, in diffusers' order.
        widths: ending of diffusers' names -> input widths that such layers have.
        ratios: ending of diffusers' names -> output width divided by the input's.
        depths: name of a stack of blocks -> the most blocks that it has.
        headers: expression for what headers call it; default: its names.
        stated: its name in kohya's headers; default: the key.
        modelspec: its name in those of https://github.com/Stability-AI/ModelSpec; the same.
        resolution: side of its images.
        network_module: kohya's script that trains such LoRAs.
        programs: what reads its files beside diffusers, ComfyUI and PEFT.
        linear: endings of diffusers' names of layers that are matrices, though a file may hold them
            as convolutions of 1 x 1.
        pointwise: endings of those that are convolutions of 1 x 1.
        spatial: endings of those that are convolutions of 3 x 3, which some files hold flat.
    """

    key: str
    name: str
    table: Table
    kohya: str = "published"
    comfyui: str = "published"
    universal: str = "diffusers"
    diffusers_reads: str = "transformer. AB diffusers"
    comfyui_reads: str | None = ""
    denoiser: str = "transformer"
    text: tuple[str, ...] = ()
    widths: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ratios: Mapping[str, float | int] = field(default_factory=dict)
    depths: Mapping[str, int] = field(default_factory=dict)
    headers: str = ""
    stated: str = ""
    modelspec: str = ""
    resolution: str = "1024x1024"
    network_module: str = "networks.lora"
    programs: tuple[str, ...] = ("kohya", "ai-toolkit")
    linear: tuple[str, ...] = ("",)
    pointwise: tuple[str, ...] = ()
    spatial: tuple[str, ...] = ()

    @property
    def base_version(self) -> str:
        """Kohya's `ss_base_model_version`."""
        return self.stated or self.key.replace("-", "_")

    @property
    def architecture(self) -> str:
        """Of a LoRA, in the modelspec."""
        return f"{self.modelspec or self.key}/lora"

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each text encoder."""
        return tuple(map(kind_of, self.text))

    def component(self, tag: str) -> str | None:
        """The text encoder that a file means by a tag; None if the family has none of that name.

        Args:
            tag: `te`, `te1`, `te2` or `te3` as in kohya's files, or ComfyUI's name of it.
        """
        number = {"te": 1, "te1": 1, "te2": 2, "te3": 3}.get(tag)
        if number is None:
            number = self.text.index(tag) + 1 if tag in self.text else 0
        elif T5 in self.kinds and number > 1 and len(self.kinds) == 2:
            number = 2  # FLUX.1's T5 is number 3, as in SD3, or 2
        return component_name(number) if 0 < number <= len(self.kinds) else None

    def kohya_prefix(self, component: str) -> str:
        """What the names of a text encoder's layers begin with in kohya's files."""
        index = component_number(component) - 1
        if len(self.kinds) < 2:
            return "lora_te_" if self.kinds == (CLIP,) else "lora_te1_"
        # T5 is number 3 where there are CLIPs, one or two.
        return f"lora_te{3 if self.kinds[index] == T5 else index + 1}_"


def kind_of(text_encoder: str) -> str:
    """The kind of a text encoder that ComfyUI names so."""
    return CLIP if text_encoder.startswith("clip") else T5 if "t5" in text_encoder else LANGUAGE
