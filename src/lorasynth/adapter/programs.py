"""What each program reads of a LoRA file.

A family's `diffusers_reads` and `comfyui_reads` are rules, one a spelling, divided by semicolons::

    lora_unet_ du published -norm_out. !proj_out blocks

prefix of the keys (`bare`: none), their endings (`AB`, `du`: down and up, `default`: A and B of an
adapter of that name, `AB+alpha`: alpha in a key beside A and B, `*`: any), whose names the layers
have, and what is lost: `-begin` layers whose diffusers' name begins so (`-*end` ends so), `!begin`
everything where there is such a layer, `blocks` everything where a block lacks one of its layers,
`all` everything where some layer is spelled otherwise.  Braces are alternatives, each a rule.  Each
was measured with the real loaders (tests/adapter/test_table.py, test_comfyui.py).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from lorasynth.adapter.components import component_number, component_of
from lorasynth.adapter.families.contract import CLIP, T5, Family
from lorasynth.adapter.names import Layer, expanded

DIFFUSERS, COMFYUI, A1111 = "diffusers 0.42", "ComfyUI", "A1111, Forge"
KOHYA, PEFT = "kohya", "PEFT"
PROGRAMS = (DIFFUSERS, COMFYUI, A1111, KOHYA, PEFT)
#: What ComfyUI reads of every family that it has, whatever the endings.
_PUBLISHED = "{lora_unet_,diffusion_model.} * published;"
_BLOCK = re.compile(r".*?\.\d+\.")


class Spelling(NamedTuple):
    """How a file spells one layer.

    Attributes:
        prefix: what its key begins with.
        ending: `AB`, `AB+alpha`, `du`, `default` or others.
        names: `published`, `diffusers`, or `same` where both are one.
        name: the layer's own name as spelled.
    """

    prefix: str
    ending: str
    names: str
    name: str


def names_of(family: Family, module: str, layer: Layer) -> str:
    """Whose name of a module a file's layer has, see `Spelling`."""
    published = family.table.layer_of(module)
    if published and published.modules == (published.name,):
        return "same"
    return "published" if published and layer.name == published.name else "diffusers"


@dataclass(frozen=True)
class Reading:
    """How much of a file one program reads.

    Attributes:
        program: its name.
        modules: how many modules it reads exactly.
        of: how many the file has.
        lost: some that it loses, and why.
    """

    program: str
    modules: int
    of: int
    lost: str = ""

    @property
    def whole(self) -> bool:
        """Whether it reads everything."""
        return self.modules == self.of


@dataclass(frozen=True)
class _Rule:
    prefix: str
    ending: str
    names: str
    marks: tuple[str, ...]

    def takes(self, spelling: Spelling) -> bool:
        return (
            self.prefix == (spelling.prefix or "bare")
            and self.ending in ("*", spelling.ending)
            and spelling.names in ("same", self.names)
        )

    def loses(self, module: str) -> bool:
        return any(
            module.endswith(mark[2:]) if mark.startswith("-*") else module.startswith(mark[1:])
            for mark in self.marks
            if mark[0] == "-"
        )

    def fails(self, spelled: Mapping[str, Spelling], family: Family) -> bool:
        fatal = tuple(mark[1:] for mark in self.marks if mark[0] == "!")
        return (
            ("all" in self.marks and not all(map(self.takes, spelled.values())))
            or any(module.startswith(fatal) for module in spelled)
            or ("blocks" in self.marks and _has_gaps(spelled, family))
        )


@cache
def _rules(text: str) -> tuple[_Rule, ...]:
    parts = (one.split() for rule in text.split(";") if rule.strip() for one in expanded(rule))
    return tuple(_Rule(prefix, end, names, tuple(marks)) for prefix, end, names, *marks in parts)


def _has_gaps(modules: Mapping[str, Spelling], family: Family) -> bool:
    """Whether a block lacks layers that the converters of diffusers take for granted."""
    whole: dict[str, set[str]] = {}
    for layer in family.table.layers:
        for module in layer.modules:
            stack, mark, rest = module.partition(".#.")
            if mark and not rest.endswith(("add_k_proj", "add_v_proj")):
                whole.setdefault(stack, set()).add(rest)
    blocks: dict[str, set[str]] = {}
    for module in modules:
        if found := _BLOCK.match(module):
            blocks.setdefault(found[0], set()).add(module[found.end() :])
    return any(not whole[block.split(".")[0]] <= names for block, names in blocks.items())


def unread(family: Family, program: str, spelled: Mapping[str, Spelling]) -> set[str]:
    """Modules that a program loses.

    Args:
        family: that they are of.
        program: one of `PROGRAMS`; A1111, Forge and kohya by their source, not by a run.
        spelled: module -> how the file spells it.
    """
    if program == PEFT:
        return {
            module
            for module, one in spelled.items()
            if one.prefix != "base_model.model." or one.ending == "du" or one.names == "published"
        }
    if program == A1111 and "a1111" in family.programs and family.denoiser != "unet":
        program = COMFYUI  # FLUX.1 in Forge, which has ComfyUI's names
    if program in (A1111, KOHYA):
        return {m for m, one in spelled.items() if not _kohya_reads(family, program, m, one)}
    rules = _rules(family.diffusers_reads)
    if program == COMFYUI:
        rules = () if family.comfyui_reads is None else _rules(_PUBLISHED + family.comfyui_reads)
    denoiser = {module: one for module, one in spelled.items() if not component_of(module)}
    working = [rule for rule in rules if not rule.fails(denoiser, family)]
    return {
        module
        for module, spelling in spelled.items()
        if not (
            _text_is_read(family, program, module, spelling)
            if component_of(module)
            else any(rule.takes(spelling) and not rule.loses(module) for rule in working)
        )
    }


def _text_is_read(family: Family, program: str, module: str, spelling: Spelling) -> bool:
    number = component_number(component_of(module))
    if number > len(family.kinds):
        return False
    kind, prefix = family.kinds[number - 1], spelling.prefix
    if program == COMFYUI:
        if prefix.startswith("text_encoders."):
            return True
        if prefix.startswith("lora_te"):
            return kind in (CLIP, T5)
        return kind == CLIP and number < 3 and spelling.name.startswith("text_model.")
    if kind != CLIP or prefix.startswith("text_encoders.") or not family.diffusers_reads:
        return False
    if prefix.startswith("lora_te"):  # only these have a converter that keeps text encoders
        return family.key in ("flux1", "chroma") or family.denoiser == "unet"
    return number < 3


def _kohya_reads(family: Family, program: str, module: str, spelling: Spelling) -> bool:
    """Whether a layer is spelled as A1111 and kohya's scripts have it, and they have the family."""
    component = component_of(module)
    if (KOHYA if program == KOHYA else "a1111") not in family.programs:
        return False
    if component:
        number = component_number(component)
        return number <= len(family.kinds) and spelling.prefix == family.kohya_prefix(component)
    if (spelling.prefix, spelling.ending) != ("lora_unet_", "du"):
        return False
    return program == A1111 or spelling.names in ("same", family.kohya)
