"""Reads a library again and again while another process appends to it."""

import sys
import time
from pathlib import Path

import torch

from lorasynth.library import Library


def read_while_it_grows(path: Path, growth: int = 5) -> None:
    """Read until it has grown by so many adapters, and check that nothing is half or changed."""
    library = Library.open(path)
    seen = library.all_vectors()
    wanted = len(seen) + growth
    while len(library) < wanted:
        library.refresh()
        every = library.all_vectors()
        assert torch.equal(every[: len(seen)], seen), "what was there has changed"
        assert every.isfinite().all()
        assert len(library.ids) == len(every)
        seen = every
        time.sleep(0.001)


if __name__ == "__main__":
    read_while_it_grows(Path(sys.argv[1]))
    print("intact")
