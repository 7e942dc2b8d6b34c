"""The page's doctor of LoRA files: what one is, and the same LoRA as another program reads it."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from html import escape
from pathlib import Path
from tempfile import mkdtemp

from lorasynth.adapter.files import format_for
from lorasynth.adapter.files.conversion import read_any
from lorasynth.adapter.inspection import inspect_file
from lorasynth.adapter.lowrank import narrowed
from lorasynth.core.errors import escaped

#: The highest rank of what is made of other kinds than LoRA.
_RANK = 128


def findings(path: Path) -> str:
    """What a LoRA file is and who reads it, as HTML.

    Raises:
        LorasynthError: it cannot be read.
    """
    found = inspect_file(path)
    facts = {
        "Family": f"{found.family} (by {found.told_by})",
        "Format": found.format,
        "Rank": ", ".join(map(str, found.ranks)),
        "Modules": f"{found.modules}, with {found.parameters:,} numbers in {found.dtype}",
        "Trigger": found.metadata.trigger_phrase or "not stated",
        "Origin": "synthesised" if found.metadata.synthesised else "not stated to be synthesised",
        **{f"Warning {n}": t for n, t in enumerate((*found.faults, *found.warnings), 1)},
    }
    programs = {
        one.program: "all of it" if one.whole else f"{one.modules} of {one.of} modules"
        for one in found.programs
    }
    return _table("What it is", facts) + _table("Which program reads it", programs)


def _table(title: str, rows: Mapping[str, str]) -> str:
    cells = ((escape(name), escape(escaped(text)[:500])) for name, text in rows.items())
    body = "".join(f'<tr><th scope="row">{name}</th><td>{text}</td></tr>' for name, text in cells)
    return f'<table class="facts"><caption>{title}</caption><tbody>{body}</tbody></table>'


def converted(path: Path, program: str, folder: Path) -> tuple[Path, str]:
    """A LoRA written for a program, in a folder; and what to say of it.  PEFT's folder is a zip.

    Raises:
        LorasynthError: it cannot be read, or the program reads no LoRA of its family.
    """
    made = read_any(path, _RANK)
    found = made.file
    adapter = replace(found.adapter, factors=narrowed(found.adapter.factors, found.dtype))
    form = format_for(program, adapter)
    written = form.write(adapter, Path(mkdtemp(dir=folder)) / f"for-{program}{form.suffix}")
    if written.is_dir():
        written = Path(shutil.make_archive(str(written), "zip", written))
    kinds = " and ".join(made.kinds)
    how = f" It was made of {kinds}, with a relative error of {made.error:.2g}." if kinds else ""
    return written, f"Written for {program}.{how}"
