"""Draw `_static/dataflow.svg`: python docs/draw_dataflow.py.

Things and steps have fills of their own and the rest is mid-grey, so the picture is legible on
light and on dark pages.
"""

from pathlib import Path

#: Columns of things, with the step that leads from each to the next in between.
COLUMNS = {
    "Once for a base model": (
        *("pictures", "collect", "library", "fit", "codec", "train", "hypernetwork"),
    ),
    "Once for a subject": (
        *("photo", "embed", "condition", "hypernetwork", "latent", "codec", "vector"),
        *("layout", "adapter", "write", "LoRA file"),
    ),
    "In any program": (
        *("LoRA file", "load", "pipeline", "generate", "pictures", "measure", "likeness"),
    ),
}
#: What the first column makes and the second uses.
MADE = ("codec", "hypernetwork")

TOP, PITCH = 44, 216
THING_WIDTH, THING = 136, 34
STEP_WIDTH, STEP = 112, 24
GAP = 54  # between two things, with a step in it

STYLE = """
text { font: 15px system-ui, sans-serif; text-anchor: middle; fill: #16202c }
.step text { font-size: 13px; fill: #ffffff }
text.title { font-weight: 600; fill: #737c88 }
.thing rect { fill: #dbe6f3; stroke: #5b7ea6 }
.thing.made rect { fill: #ffe0b3; stroke: #b9751a }
.step rect { fill: #47648a }
.step.made rect { fill: #9a5d0c }
.line { stroke: #7d8794; stroke-width: 2 }
.head { fill: #7d8794 }
"""


def shape(kind: str, word: str, x: float, y: float, width: int, height: int, radius: int) -> str:
    made = " made" if word in MADE else ""
    return (
        f'<g class="{kind}{made}"><rect x="{x - width / 2:g}" y="{y:g}" width="{width}" '
        f'height="{height}" rx="{radius}"/><text x="{x:g}" y="{y + height / 2 + 5:g}">{word}</text>'
        "</g>"
    )


def step(word: str, x: float, y: float) -> str:
    return (
        f'<path class="line" d="M{x:g} {y:g}v{GAP - 9}"/>'
        f'<path class="head" d="M{x:g} {y + GAP:g}l-5.5 -10h11z"/>'
        + shape("step", word, x, y + (GAP - STEP) / 2 - 3, STEP_WIDTH, STEP, 12)
    )


def column(title: str, words: tuple[str, ...], x: float) -> list[str]:
    parts = [f'<text class="title" x="{x:g}" y="{TOP - 20}">{title}</text>']
    for number, word in enumerate(words):
        y = TOP + (number + 1) // 2 * THING + number // 2 * GAP
        if number % 2:
            parts.append(step(word, x, y))
        else:
            parts.append(shape("thing", word, x, y, THING_WIDTH, THING, 6))
    return parts


def drawing() -> str:
    longest = max(len(words) for words in COLUMNS.values())
    height = TOP + (longest + 1) // 2 * THING + longest // 2 * GAP + 10
    width = PITCH * len(COLUMNS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">',
        "<title>How data flows: in one direction</title>",
        f"<style>{STYLE}</style>",
    ]
    for number, (title, words) in enumerate(COLUMNS.items()):
        parts += column(title, words, PITCH * (number + 0.5))
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "_static" / "dataflow.svg").write_text(drawing())
