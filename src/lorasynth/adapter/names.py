"""Names of a model's layers in two spellings: diffusers' and the one it was published under.

A `Table` is written as text, one row a layer of the published model::

    double_blocks.# = transformer_blocks.#:
      img_attn.qkv = attn.(to_q+to_k+to_v)
      {img,txt}_mlp.{0,2} = {ff,ff_context}.net.{0.proj,2}
    single_blocks.# = single_transformer_blocks.#:
      linear1 = attn.(to_q+to_k+to_v)+4*proj_mlp
    final_layer.adaLN_modulation.1 ~ norm_out.linear
    proj_out

`#` is a block's number.  Braces are alternatives, each a row, as in a shell; both sides have as
many.  `+` says that diffusers' layers are rows of one published layer, one below the other, `4*`
how many shares of the rows each has; what is beside parentheses belongs to each part.  `~` says
that the halves of the rows (shift and scale) change places, where the layer has two.  A line that
ends with a colon is the beginning of the indented names under it; a name without a partner is the
same in both.

Files spell dots as underscores or keep them.  A name is found by its parts, in time linear in its
length, and only if all of them are in the table.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

#: Numbers of blocks have few digits; anything longer is no number of a block.
_NUMBER = re.compile(r"0|[1-9]\d{0,3}")
_PARTS = re.compile(r"[._]")
_SIDES = re.compile(r"\s*([=~]|$)\s*")
_GROUP = re.compile(r"([\w.#]*)\(([^()]*)\)([\w.]*)")


@dataclass(frozen=True)
class Layer:
    """One published layer and the diffusers layers that are its rows.

    Attributes:
        name: as published, with dots.
        modules: diffusers' names, in the order of their rows.
        shares: how many equal shares of the rows each has.
        swapped: whether the halves of its rows change places.
    """

    name: str
    modules: tuple[str, ...]
    shares: tuple[int, ...] = (1,)
    swapped: bool = False

    def filled(self, numbers: list[str]) -> "Layer":
        """The layer of one block: `#` replaced by its numbers."""
        names = [_filled(name, numbers) for name in (self.name, *self.modules)]
        return Layer(names[0], tuple(names[1:]), self.shares, self.swapped)

    def rows(self, total: int) -> list[int] | None:
        """Rows of each module where all have `total`; None if they cannot be shared out."""
        unit, rest = divmod(total, sum(self.shares))
        return None if rest else [share * unit for share in self.shares]


def _filled(name: str, numbers: list[str]) -> str:
    for number in numbers:
        name = name.replace("#", number, 1)
    return name


class Table:
    """The adaptable layers of one family of models.

    Args:
        text: rows as in the head of this module.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """All rows, with `#` for numbers of blocks."""
        return tuple(_rows(self._text))

    @lru_cache(maxsize=1 << 16)  # noqa: B019 (tables are never dropped; files have the same names)
    def find(self, name: str, dotted: bool) -> Layer | None:
        """What a file means by a name, published or diffusers'; None if there is no such layer.

        Args:
            name: without prefix and ending.
            dotted: whether its parts are separated by dots, not by underscores.
        """
        for index, published in ((self._diffusers, False), (self._published, True)):
            if found := index.find(name, dotted):
                if published:
                    return found.layer.filled(found.numbers)
                module = _filled(found.template, found.numbers)
                return Layer(module, (module,))
        return None

    def layer_of(self, module: str) -> Layer | None:
        """The published layer that one of diffusers' layers is of; None if there is none."""
        found = self._diffusers.find(module, dotted=True)
        return found and found.layer.filled(found.numbers)

    @cached_property
    def _published(self) -> "_Index":
        return _Index((layer.name, layer) for layer in self.layers)

    @cached_property
    def _diffusers(self) -> "_Index":
        return _Index((module, layer) for layer in self.layers for module in layer.modules)


class _Found(NamedTuple):
    layer: Layer
    numbers: list[str]
    template: str


class _Index:
    """Rows by a name of theirs, in which every number is `#`."""

    def __init__(self, rows: Iterable[tuple[str, Layer]]) -> None:
        self._rows: dict[str, list[tuple[list[str], str, Layer]]] = {}
        for template, layer in rows:
            key, numbers = _key(template)
            self._rows.setdefault(key, []).append((numbers, template, layer))

    def find(self, name: str, dotted: bool) -> _Found | None:
        key, numbers = _key(name)
        for wanted, template, layer in self._rows.get(key, ()):
            pairs = list(zip(wanted, numbers, strict=True))
            if all(number in ("#", n) for number, n in pairs):
                free = [n for number, n in pairs if number == "#"]
                whole = _filled(template, free)
                if name == (whole if dotted else whole.replace(".", "_")):
                    return _Found(layer, free, template)
        return None


def _key(name: str) -> tuple[str, list[str]]:
    parts = _PARTS.split(name)
    numbers = [part for part in parts if part == "#" or _NUMBER.fullmatch(part)]
    return "_".join("#" if _NUMBER.fullmatch(part) else part for part in parts), numbers


def expanded(text: str) -> Iterator[str]:
    """All texts that braces with alternatives stand for: `attn{1,2}` is attn1 and attn2."""
    begin, brace, rest = text.partition("{")
    if not brace:
        yield text
        return
    alternatives, _, end = rest.partition("}")
    for one in alternatives.split(","):
        yield from (f"{begin}{one}{other}" for other in expanded(end))


def _pairs(line: str) -> Iterator[tuple[str, str, bool]]:
    """The published names of a line, diffusers' names for them, and whether halves are swapped."""
    published, mark, diffusers = _SIDES.split(line.strip().rstrip(":"), maxsplit=1)
    theirs = list(expanded(published))
    ours = list(expanded(diffusers)) if mark else theirs
    for one, other in zip(theirs, ours, strict=True):
        yield one, _GROUP.sub(_distributed, other), mark == "~"


def _distributed(group: re.Match[str]) -> str:
    return "+".join(f"{group[1]}{part}{group[3]}" for part in group[2].split("+"))


def _rows(text: str) -> Iterator[Layer]:
    beginnings = [("", "")]
    for line in filter(str.strip, text.splitlines()):
        if line.endswith(":"):
            beginnings = [(f"{theirs}.", f"{ours}.") for theirs, ours, _ in _pairs(line)]
            continue
        inside = beginnings if line.startswith("  ") else [("", "")]
        for (theirs, ours), (name, modules, swapped) in itertools.product(inside, _pairs(line)):
            parts = [part.rpartition("*") for part in modules.split("+")]
            yield Layer(
                theirs + name,
                tuple(ours + module for _, _, module in parts),
                tuple(int(share or 1) for share, _, _ in parts),
                swapped,
            )
