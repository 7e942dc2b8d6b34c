"""Model cards: a README.md that tells people, and by its front matter the hub, what a model is."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorasynth.core.atomic import write_bytes
from lorasynth.core.errors import LorasynthError

FILE, IMAGES = "README.md", "images"
#: What stands for the repository's name in examples of cards.
REPOSITORY = "owner/name"
_MARK = "<!-- Written by lorasynth, which replaces it when it writes here again. -->"


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a card says that no file knows; all may be left out.

    Attributes:
        licence: the hub's name of it, such as apache-2.0.
        consent: whom the model shows or learned from, and that they agreed.
        notes: anything else, in Markdown.
        figures: what was measured, by what it is.
        samples: PNG or JPEG files of images made with it, by their prompts.
    """

    licence: str = ""
    consent: str = ""
    notes: str = ""
    figures: Mapping[str, float | str] = field(default_factory=dict)
    samples: Mapping[str, Path | str] = field(default_factory=dict)


def write_card(
    folder: Path, card: Card, data: Mapping[str, Any], sections: Sequence[tuple[str, str]]
) -> Path:
    """Write a card into a folder; returns its path.

    Args:
        folder: that holds the model.
        card: what its maker says.
        data: front matter beside the licence; None leaves an entry out.
        sections: titles and texts; the first title is the card's.

    Raises:
        LorasynthError: a README.md of somebody else's is there, or it cannot be written.
    """
    from huggingface_hub import ModelCardData

    path = folder / FILE
    if path.exists() and not names_in(folder):
        raise LorasynthError(f"a model card is written to {path}, but another text is there")
    widget = []
    for number, (prompt, sample) in enumerate(card.samples.items()):
        target = folder / IMAGES / f"{number}{Path(sample).suffix}"
        try:
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(sample, target)
        except OSError as error:
            raise LorasynthError(f"a sample of a card must be an image file: {error}") from error
        widget.append({"text": prompt, "output": {"url": f"{IMAGES}/{target.name}"}})
    stated = {"license": card.licence or "unknown", "widget": widget or None, **data}
    front = ModelCardData(**stated).to_yaml()
    (title, first), *more = sections
    parts = [f"---\n{front.strip()}\n---", _MARK, f"# {title}", "<Gallery />" * bool(widget), first]
    figures = [f"| {what} | {value} |" for what, value in card.figures.items()]
    if figures:
        more.append(("Figures", "\n".join(["| figure | value |", "|---|---|", *figures])))
    if card.notes:
        more.append(("Notes", card.notes))
    parts += [f"## {title}\n\n{text}" for title, text in more]
    write_bytes(path, ("\n\n".join(filter(None, parts)) + "\n").encode())
    return path


def names_in(folder: Path | str) -> list[str]:
    """Names of what `write_card` wrote into a folder, as patterns; none where it wrote nothing."""
    try:
        ours = _MARK in (Path(folder) / FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    return [FILE, f"{IMAGES}/*"] if ours else []


def name_repository(folder: Path, name: str) -> None:
    """Put a repository's name into the examples of the card in a folder, if there is one."""
    if names_in(folder):
        text = (folder / FILE).read_text(encoding="utf-8")
        write_bytes(folder / FILE, text.replace(f'{REPOSITORY}"', f'{name}"').encode())


def as_list(facts: Mapping[str, object]) -> str:
    """Facts as a Markdown list, without those that are empty."""
    return "\n".join(
        f"- {name}: {value}" for name, value in facts.items() if value not in ("", None)
    )
