"""Appends to a library for ever, slowly enough to be killed at any point of a write."""

import sys
from pathlib import Path

import torch

from lorasynth.library import Library

library = Library.open(Path(sys.argv[1]))
while True:
    number = len(library)
    generator = torch.Generator().manual_seed(number)
    vectors = torch.randn(1, library.width, generator=generator)
    library.append(library.layout.unflatten(vectors), [{"id": f"s{number}"}])
    print("appended", flush=True)
