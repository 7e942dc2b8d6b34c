"""Two domains that the embedded base model has never seen, as folders of images.

    python bench/domains.py pixels faces --subjects 600         # people as pixel art
    python bench/domains.py styles styles --subjects 12         # a drawing style in 12 palettes

Then, for example::

    lorasynth encoders train others -o encoder
    lorasynth recipe domain faces --encoder encoder -o runs/faces

Drawn by DiceBear's styles: `pixel-art` (CC0 1.0), and for `styles` all whose licence is CC0 1.0 or
CC BY 4.0 (the licence of each is in its JSON in the package dicebear-styles), each without its
variant that shows a face alone.
"""

import argparse
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lorasynth.avatars.drawing import render_style
from lorasynth.core.progress import progress
from lorasynth.core.randomness import numpy_stream

_COLOURS = {
    "red": "#dc2626", "blue": "#2563eb", "green": "#3f9c3f", "yellow": "#facc15",
    "purple": "#7c3aed", "pink": "#f9a8d4", "orange": "#f97316", "white": "#f5f5f5",
    "black": "#1f2328", "teal": "#2db5a8", "gray": "#8b8f94",
}  # fmt: skip
_SKIN = ("#ffdbac", "#f5cfa0", "#eac393", "#e0b687", "#cb9e6e", "#b68655", "#a26d3d", "#8d5524")
_HAIR = ("#cab188", "#603a14", "#83623b", "#a78961", "#611c17", "#28150a", "#009bbd", "#bd1700")
_STYLES = sorted(
    (one for one in files("dicebear_styles").iterdir() if one.name.endswith(".json")),
    key=lambda one: one.name,
)


def _is_free(style: Any) -> bool:
    licence = json.loads(style.read_text())["meta"].get("license", {}).get("name")
    return licence in ("CC0 1.0", "CC BY 4.0") and not style.name.endswith("-neutral.json")


def variants(style: str) -> dict[str, list[str]]:
    """The variants of each component of a style."""
    found = json.loads((files("dicebear_styles") / f"{style}.json").read_text())["components"]
    return {name: list(part.get("variants", {})) for name, part in found.items()}


def pixel_subject(rng: np.random.Generator, parts: dict[str, list[str]]) -> dict[str, Any]:
    """Who it is: hair or hat, glasses, beard and colours."""
    some = {name: str(rng.choice(parts[name])) for name in ("hair", "hat", "glasses", "beard")}
    options: dict[str, Any] = {f"{name}Variant": value for name, value in some.items()}
    shares = {"hat": 20, "glasses": 35, "beard": 35, "hair": 92, "accessories": 0}
    for name, share in shares.items():
        options[f"{name}Probability"] = 100 * int(rng.integers(100) < share)
    colours = {"skin": _SKIN, "hair": _HAIR, "hat": [*_COLOURS.values()], "glasses": ("#43677d",)}
    return options | {f"{name}Color": [str(rng.choice(values))] for name, values in colours.items()}


def pixel_scene(
    rng: np.random.Generator, parts: dict[str, list[str]]
) -> tuple[dict[str, Any], str]:
    """Expression, clothes and background, and a caption."""
    options: dict[str, Any] = {
        f"{name}Variant": str(rng.choice(parts[name])) for name in ("mouth", "eyes", "clothes")
    }
    clothes, behind = (str(rng.choice([*_COLOURS])) for _ in range(2))
    options |= {"clothingColor": [_COLOURS[clothes]], "backgroundColor": [_COLOURS[behind]]}
    return options, f"a portrait of sks, wearing {clothes} clothes, {behind} background"


def save(folder: Path, number: int, image: np.ndarray, caption: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / f"{number}.png")
    (folder / f"{number}.txt").write_text(caption)


def draw_pixels(out: Path, subjects: int, images: int, size: int, series: int) -> None:
    """People as pixel art: a folder each."""
    parts = variants("pixel-art")
    with progress("draw", subjects) as advance:
        for number in range(subjects):
            who = pixel_subject(numpy_stream(series, "pixels", number), parts)
            for k in range(images):
                rng = numpy_stream(series, "pixels", number, k)
                scene, caption = pixel_scene(rng, parts)
                image = render_style("pixel-art", {"seed": "", **who, **scene}, size)
                save(out / f"face-{series}-{number:05d}", k, image, caption)
            advance()


def draw_styles(out: Path, palettes: int, images: int, size: int, series: int) -> None:
    """One style in the colours of one palette, one folder: what varies is what it shows.

    Every fifth style is in the folder `unseen`, in all palettes, the others are in `known`.
    """
    found = {one.name[:-5]: json.loads(one.read_text()) for one in _STYLES if _is_free(one)}
    with progress("draw", len(found) * palettes) as advance:
        for place, (name, style) in enumerate(found.items()):
            folder = out / ("unseen" if place % 5 == 4 else "known")
            for number in range(palettes):
                rng = numpy_stream(series, "styles", name, number)
                behind, *few = rng.choice([*_COLOURS.values()], 4, replace=False).tolist()
                colours = {f"{one}Color": [str(rng.choice(few))] for one in style["colors"]}
                colours["backgroundColor"] = [behind]
                for k in range(images):
                    options = {"seed": f"{name} {series} {number} {k}", **colours}
                    image = render_style(name, options, size)
                    save(folder / f"{name}-{series}-{number:02d}", k, image, "a portrait of sks")
                advance()


def main() -> None:
    """Draw what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("pixels", "styles"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--subjects", type=int, default=600)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--series", type=int, default=0, help="another one has other subjects")
    asked = parser.parse_args()
    if asked.kind == "pixels":
        draw_pixels(asked.out, asked.subjects, asked.images, asked.size, asked.series)
    else:
        draw_styles(asked.out, asked.subjects, asked.images, asked.size, asked.series)


if __name__ == "__main__":
    main()
