"""What is known of one family of base models: a file each in this folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from lorasynth.adapter.names import Table

#: Text encoders by the names that ComfyUI gives to them; those of other names are language models.
CLIP, T5, LANGUAGE = "clip", "t5", "language"

#: The layers of text encoders that files with underscores name.
TEXT_TABLES = {
    CLIP: Table("""
text_projection
text_model.encoder.layers.#:
  self_attn.q_proj
  self_attn.k_proj
  self_attn.v_proj
  self_attn.out_proj
  mlp.fc1
  mlp.fc2
"""),
    T5: Table("""
encoder.block.#.layer.#:
  SelfAttention.q
  SelfAttention.k
  SelfAttention.v
  SelfAttention.o
  DenseReluDense.wi
  DenseReluDense.wi_0
  DenseReluDense.wi_1
  DenseReluDense.wo
"""),
    LANGUAGE: Table("".join(f"""
{start}layers.#:
  self_attn.q_proj
  self_attn.k_proj
  self_attn.v_proj
  self_attn.o_proj
  mlp.gate_proj
  mlp.up_proj
  mlp.down_proj
""" for start in ("", "model.", "model.language_model.", "language_model.model."))),
}  # fmt: skip


#: What ComfyUI reads of every family that it has: the published names, whatever the endings.
_COMFYUI = "lora_unet_ * published; diffusion_model. * published"


def also(*rules: str) -> str:
    """What ComfyUI reads of a family beside the published names."""
    return "; ".join((_COMFYUI, *rules))


@dataclass(frozen=True, eq=False, kw_only=True)
class Family:
    """A family of base models that share the names of their layers.

    Attributes:
        name: what people call it.
        table: its denoiser's layers, see `names`.
        kohya: which of both names kohya's files have: `published` or `diffusers`.
        comfyui: the same of `diffusion_model.` files.
        universal: the format that diffusers and ComfyUI both read exactly, where that is possible.
        diffusers_reads: what diffusers 0.42 reads of the denoiser's layers, see `programs`.
        comfyui_reads: the same of ComfyUI 0.3.75.
        denoiser: the denoiser's name in a diffusers pipeline.
        text: its pipelines' text encoders as ComfyUI names them, in diffusers' order.
        widths: ending of diffusers' names -> input widths that such layers have.
        ratios: ending of diffusers' names -> output width divided by the input's.
        depths: name of a stack of blocks -> the most blocks that it has.
        base_version: kohya's `ss_base_model_version`.
        architecture: of a LoRA in the modelspec (https://github.com/Stability-AI/ModelSpec).
        resolution: side of its images.
        network_module: kohya's script that trains such LoRAs.
        programs: what reads its files beside diffusers, ComfyUI and PEFT.
        linear: endings of diffusers' names of layers that are matrices, though a file may hold them
            as convolutions of 1 x 1.
        pointwise: endings of those that are convolutions of 1 x 1.
        spatial: endings of those that are convolutions of 3 x 3, which some files hold flat.
    """

    name: str
    table: Table
    kohya: str = "published"
    comfyui: str = "published"
    universal: str = "diffusers"
    diffusers_reads: str = "transformer. AB diffusers"
    comfyui_reads: str = _COMFYUI
    denoiser: str = "transformer"
    text: tuple[str, ...] = ()
    widths: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ratios: Mapping[str, float | int] = field(default_factory=dict)
    depths: Mapping[str, int] = field(default_factory=dict)
    base_version: str = ""
    architecture: str = ""
    resolution: str = "1024x1024"
    network_module: str = "networks.lora"
    programs: tuple[str, ...] = ("kohya", "ai-toolkit")
    linear: tuple[str, ...] = ("",)
    pointwise: tuple[str, ...] = ()
    spatial: tuple[str, ...] = ()

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


def component_name(number: int) -> str:
    """Diffusers' name of a pipeline's text encoder, counted from 1."""
    return "text_encoder" if number == 1 else f"text_encoder_{number}"


def component_number(component: str) -> int:
    """The inverse of `component_name`."""
    return int(component.rpartition("_")[2]) if component[-1].isdigit() else 1
