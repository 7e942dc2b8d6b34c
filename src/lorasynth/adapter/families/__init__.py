"""Families of base models: what their layers are called, and which one an adapter is made for.

A family is one entry of `tables`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lorasynth.adapter.components import component_number, component_of
from lorasynth.adapter.families.contract import Family
from lorasynth.adapter.families.tables import FAMILIES, FLUX1, OTHER_UNET, SD2, TEXT_TABLES
from lorasynth.adapter.layout import Layout
from lorasynth.core.errors import ConfigError

__all__ = [
    "FAMILIES",
    "FLUX1",
    "OTHER_UNET",
    "SD2",
    "TEXT_TABLES",
    "Family",
    "Verdict",
    "decide",
    "family_named",
    "family_of",
    "stated_family",
]

#: Those that say what a file is for.
_HEADER_KEYS = ("modelspec.architecture", "ss_base_model_version")


@dataclass(frozen=True)
class Verdict:
    """Which families an adapter can be made for, and how that is known.

    Attributes:
        candidates: all that fit; one if it is decided, none if no known family does.
        how: the evidence in words.
    """

    candidates: tuple[Family, ...]
    how: str

    @property
    def family(self) -> Family | None:
        """The only candidate, if there is one."""
        return self.candidates[0] if len(self.candidates) == 1 else None

    @property
    def name(self) -> str:
        """What it is called."""
        return " or ".join(family.name for family in self.candidates) or "unknown"

    def shared(self, of: Callable[[Family], str]) -> str | None:
        """What all candidates have in common; None if they differ or there is none."""
        values = {of(family) for family in self.candidates}
        return values.pop() if len(values) == 1 else None


def family_named(name: str | None) -> Family | None:
    """The family that `--family` calls so; None where nothing is said.

    Raises:
        ConfigError: there is none.
    """
    if name is None:
        return None
    if name not in FAMILIES:
        raise ConfigError(f"--family must be one of {', '.join(FAMILIES)}, but is {name!r}")
    return FAMILIES[name]


def stated_family(header: Mapping[str, str]) -> Family | None:
    """The family that a file's header names; None if it names none."""
    for key in _HEADER_KEYS:
        value = header.get(key, "").lower()
        for family in FAMILIES.values():
            if re.match(family.headers or f"{re.escape(family.key)}|{family.architecture}", value):
                return family
    return None


def family_of(layout: Layout, stated: Family | None = None) -> Verdict:
    """The family that an adapter is made for, told by names, then widths, then its file's header.

    Args:
        layout: of the adapter.
        stated: the family that the header names.
    """
    shapes = {slot.module: (slot.in_features, slot.out_features) for slot in layout.slots}
    inside = {module: shape for module, shape in shapes.items() if not component_of(module)}
    # The names of a U-Net's layers say little: its blocks may be of any shape.
    named = [
        family
        for family in FAMILIES.values()
        if all(family.table.layer_of(module) for module in inside)
        and (family.denoiser != "unet" or _fits(family, inside))
    ]
    if not named and all(OTHER_UNET.table.layer_of(module) for module in inside):
        return Verdict((OTHER_UNET,), "names")
    return decide(dict.fromkeys(named, shapes), stated)


def decide(
    options: Mapping[Family, Mapping[str, tuple[int, int]]], stated: Family | None
) -> Verdict:
    """Choose among families whose names fit.

    Args:
        options: each family with the widths (in, out) that its modules then have.
        stated: the family that the header of the file names.
    """
    if len(options) < 2:
        return Verdict(tuple(options), "names")
    fitting = [f for f, shapes in options.items() if _fits(f, shapes)] or list(options)
    if len(fitting) == 1:
        return Verdict(tuple(fitting), "names and shapes")
    if stated is not None and stated in fitting:
        return Verdict((stated,), "the header")
    return Verdict(tuple(fitting), "names and shapes, which leave several")


def _fits(family: Family, shapes: Mapping[str, tuple[int, int]]) -> bool:
    """Whether widths, numbers of blocks and text encoders are such as the family has."""
    return all(_module_fits(family, module, shape) for module, shape in shapes.items())


def _module_fits(family: Family, module: str, shape: tuple[int, int]) -> bool:
    component = component_of(module)
    if component:
        inside = module.removeprefix(f"{component}.")
        number = component_number(component)
        if number > len(family.kinds):
            return False
        kinds = [kind for kind, table in TEXT_TABLES.items() if table.find(inside, dotted=True)]
        return not kinds or family.kinds[number - 1] in kinds
    for stack, number in _STACKS.findall(module):
        if int(number) >= family.depths.get(stack, 1_000):
            return False
    bare = _NUMBERS.sub(".", module)
    width, out = shape
    allowed = [widths for end, widths in family.widths.items() if f".{bare}".endswith(f".{end}")]
    ratios = [ratio for end, ratio in family.ratios.items() if f".{bare}".endswith(f".{end}")]
    return all(width in widths for widths in allowed) and all(
        abs(out - ratio * width) < 0.5 for ratio in ratios
    )


#: A stack of blocks and the number of one.
_STACKS = re.compile(r"(\w+)\.(\d{1,4})(?=\.)")
_NUMBERS = re.compile(r"(?<=blocks)\.\d+\.")
