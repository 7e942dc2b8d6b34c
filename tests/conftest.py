"""Shapes in annotations are checked by beartype while the tests run."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from jaxtyping import install_import_hook

install_import_hook("lorasynth", "beartype.beartype")

import torch

# Tests run beside each other (pytest-xdist); more threads than cores only make them wait.
torch.set_num_threads(1)
