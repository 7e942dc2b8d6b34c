"""Which layers the names in a file mean, and which family the file is for."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lorasynth.adapter.components import component_name
from lorasynth.adapter.families import (
    FAMILIES,
    OTHER_UNET,
    TEXT_TABLES,
    Family,
    Verdict,
    decide,
    stated_family,
)
from lorasynth.adapter.families.contract import CLIP, kind_of
from lorasynth.adapter.files.header import MODULES_KEY
from lorasynth.adapter.files.keys import Key
from lorasynth.adapter.layout import Kernel
from lorasynth.adapter.names import Layer
from lorasynth.core.errors import FileFormatError

#: Prefixes under which names are those of diffusers' own model, whatever that is.
_AS_THEY_ARE = ("unet.", "transformer.", "base_model.model.")
_POINT: Kernel = (1, 1)

#: Key of each layer -> its widths (in, out).
Shapes = Mapping[Key, tuple[int, int]]


@dataclass(frozen=True)
class Resolved:
    """What the keys of a file mean.

    Attributes:
        layers: key of a layer -> its modules, named as in an adapter.
        verdict: the families that they fit.
    """

    layers: Mapping[Key, Layer]
    verdict: Verdict

    def kernel(self, module: str, kernel: Kernel | None, width: int) -> Kernel | None:
        """The kernel of a module: files hold matrices as convolutions of 1 x 1, or these flat."""

        def known(endings: str) -> bool:
            families = self.verdict.candidates
            return bool(families) and all(
                f".{module}".endswith(getattr(family, endings)) for family in families
            )

        if kernel == _POINT and known("linear"):
            return None
        if kernel is None and known("pointwise"):
            return _POINT
        if kernel is None and known("spatial"):
            return None if width % 9 else (3, 3)
        return kernel


def resolve(
    path: Path, shapes: Shapes, header: Mapping[str, str], family: Family | None
) -> Resolved:
    """Find the modules of all keys of a file.

    Args:
        path: of the file, for messages.
        shapes: of its layers.
        header: of the file.
        family: that it must be of, if that is said.

    Raises:
        FileFormatError: a name is in no table, or names mean several things.
    """
    candidates = (family,) if family else FAMILIES.values()
    found = {candidate: _all_in(candidate, shapes) for candidate in candidates}
    options = {candidate: layers for candidate, layers in found.items() if layers is not None}
    if family and not options:
        raise FileFormatError(
            f"all layers must be {family.name}'s, but {path} has {_stranger(shapes, [family])}"
        )
    listed = _listed(header, path)
    if not options or listed:
        return _without_family(path, shapes, listed)
    widths = {candidate: _widths(layers, shapes) for candidate, layers in options.items()}
    verdict = decide(widths, stated_family(header))
    first, *others = (options[candidate] for candidate in verdict.candidates)
    if any(other != first for other in others):
        raise FileFormatError(
            f"the layers of a LoRA file must be those of one family, but those in {path} can be "
            f"{verdict.name}'s: say which with --family"
        )
    return Resolved(first, verdict)


def _all_in(family: Family, shapes: Shapes) -> dict[Key, Layer] | None:
    """The layers of all keys if the family has them all."""
    layers: dict[Key, Layer] = {}
    for key, (_, out) in shapes.items():
        layer = _in_family(family, key)
        if layer is None or layer.rows(out) is None:
            return None
        layers[key] = layer
    return layers


def _in_family(family: Family, key: Key) -> Layer | None:
    if key.tag:
        component = key.tag if key.tag.startswith("text_") else family.component(key.tag)
        return _of_text_encoder(key, component) if component else None
    if key.format == "peft" and TEXT_TABLES[CLIP].find(key.name, dotted=True):
        return _of_text_encoder(key, component_name(1))
    return family.table.find(key.name, key.dotted)


def _of_text_encoder(key: Key, component: str) -> Layer | None:
    name = key.name
    if not key.dotted:
        found = (table.find(name, dotted=False) for table in TEXT_TABLES.values())
        layer = next((layer for layer in found if layer), None)
        if layer is None:
            return None
        name = layer.name
    # transformers 5 took the layer text_model out of CLIP; all other programs name it.
    if TEXT_TABLES[CLIP].find(f"text_model.{name}", dotted=True):
        name = f"text_model.{name}"
    return Layer(name, (f"{component}.{name}",))


def _widths(layers: Mapping[Key, Layer], shapes: Shapes) -> dict[str, tuple[int, int]]:
    """Widths of all modules; of a fused layer those that its rows give."""
    return {
        module: (shapes[key][0], out)
        for key, layer in layers.items()
        for module, out in zip(layer.modules, layer.rows(shapes[key][1]) or [], strict=True)
    }


# Names that no family has


def _without_family(path: Path, shapes: Shapes, listed: Mapping[str, str]) -> Resolved:
    """Names as they are, where these are diffusers' or the header lists them."""
    found = _all_in(OTHER_UNET, shapes)
    if found is not None and not listed:
        return Resolved(found, Verdict((OTHER_UNET,), "names"))
    layers = {key: _as_it_is(key, listed) for key in shapes}
    known = {key: layer for key, layer in layers.items() if layer is not None}
    if len(known) < len(layers):
        raise FileFormatError(
            f"the layers of a LoRA file must be those of a known family, but {path} has "
            f"{_stranger(shapes, FAMILIES.values())}: convert it to diffusers' names with the "
            "program that made it"
        )
    return Resolved(known, Verdict((), "no known family has all of its names"))


def _as_it_is(key: Key, listed: Mapping[str, str]) -> Layer | None:
    if not key.tag:
        if key.name in listed:
            return Layer(key.name, (listed[key.name],))
        language = any(table.find(key.name, key.dotted) for table in TEXT_TABLES.values())
        bare = key.prefix in _AS_THEY_ARE and not language
        return Layer(key.name, (key.name,)) if bare else None
    if key.tag.startswith("text_"):
        return _of_text_encoder(key, key.tag)
    if not key.tag.startswith("te") and kind_of(key.tag) != CLIP:  # a pipeline's only one
        return _of_text_encoder(key, component_name(1))
    return _in_family(OTHER_UNET, key)


def _stranger(shapes: Shapes, families: Iterable[Family]) -> str:
    """The first layer that the family that knows the most layers does not know."""
    unknown = [[key for key in shapes if not _in_family(f, key)] for f in families]
    fewest = min(unknown, key=len)
    if not fewest:
        key, (_, out) = next(iter(shapes.items()))
        return f"rows that cannot be shared out ({out} of {key.spelled[:200]})"
    return fewest[0].spelled[:200]


def _listed(header: Mapping[str, str], path: Path) -> dict[str, str]:
    """Underscored name -> module, of those that the header lists."""
    try:
        listed = json.loads(header.get(MODULES_KEY, "[]"))
        return {str(module).replace(".", "_"): str(module) for module in listed}
    except (ValueError, TypeError, RecursionError) as error:
        raise FileFormatError(
            f"the header entry {MODULES_KEY} must be a JSON list of names, but in {path} it is not"
        ) from error
