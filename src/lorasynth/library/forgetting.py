"""Take subjects out of a library, with all in its folder that was derived from them."""

import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from lorasynth.adapter import choose_reference
from lorasynth.core.atomic import atomic_directory
from lorasynth.library.annotations import FILE as FACTS
from lorasynth.library.annotations import stored_facts
from lorasynth.library.columns import hash_numbers
from lorasynth.library.store import Library

#: What is written anew, and made again when it is needed: latents, unfinished parts of embeddings.
_OWN = ("shards/[0-9]*/*", "reference.safetensors", FACTS, "latents/*", ".*.safetensors")
_PART = re.compile(r"[0-9]{8}-[0-9]+\.safetensors")


def forget(path: Path, names: Iterable[str]) -> list[str]:
    """Remove subjects: their factors, vectors, rows of the table and of all columns, and latents.

    The library is written anew beside itself and then takes its own place in one step, so it needs
    its own size of free disk.  If the gauge's reference was made of one of the subjects, it is
    chosen again and all vectors follow.

    Returns:
        The names that were in the library.

    Raises:
        LibraryError: the library is damaged, or another process is writing it.
        LorasynthError: the disk is full.
    """
    gone = set(names)
    library = Library.open(path)
    found = [name for name in library.ids if name in gone]
    if not found:
        return []
    with library.locked(), atomic_directory(path, _OWN) as folder:
        library.require_intact()
        kept = np.flatnonzero([name not in gone for name in library.ids])
        made = _empty_copy(library, folder, gone)
        rows = library.own_table.to_pylist()
        start = 0
        for shard in library.shards:
            some = kept[(kept >= start) & (kept < start + shard.count)]
            if len(some):
                made.append(library.factors(some), [rows[row] for row in some])
            start += shard.count
        for name in library.columns:
            made.attach(name, library.column(name)[torch.from_numpy(kept)])
        facts = stored_facts(library.path)
        others = [row for row, name in enumerate(facts["id"].to_pylist()) if name not in gone]
        if others and len(facts.column_names) > 1:
            made.annotate(facts.take(others))
        _keep_the_rest(library.path, folder)
    return found


def _empty_copy(library: Library, folder: Path, gone: set[str]) -> Library:
    """A library of the same kind, with the same reference unless that was one of the subjects."""
    info, reference = library.info, library.reference
    if reference is not None and library.ids[0] in gone:
        first = choose_reference(library.factors([0]), info.gauge)
        if hash_numbers(library.layout.flatten(first).float()) == info.reference_hash:
            reference = None
    stated = (library.layout, info.base_fingerprint, info.recipe)
    made = Library.create(folder, *stated, gauge=info.gauge, dtype=info.dtype)
    if reference is not None:
        made.freeze(reference)
    return made


def _keep_the_rest(old: Path, new: Path) -> None:
    """Copy what else lies in the folder, such as the parts of a collection."""
    for entry in old.iterdir():
        parts = entry.is_dir() and all(_PART.fullmatch(part.name) for part in entry.iterdir())
        derived = entry.name in ("shards", "columns", "latents", FACTS) or (
            entry.name[0] == "." and parts
        )
        if derived or (new / entry.name).exists():
            continue
        copy: Callable[[Path, Path], object] = shutil.copytree if entry.is_dir() else shutil.copy2
        copy(entry, new / entry.name)
