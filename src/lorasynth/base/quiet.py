"""Loading and saving without progress bars that only say that a folder is being read."""

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as of_diffusers
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
from transformers.utils import logging as of_transformers


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide the bars of diffusers and transformers; downloads keep theirs."""
    shown = [part for part in (of_diffusers, of_transformers) if part.is_progress_bar_enabled()]
    downloads = not are_progress_bars_disabled()
    for part in shown:
        part.disable_progress_bar()
    if downloads:  # transformers has turned them off, too
        enable_progress_bars()
    try:
        yield
    finally:
        for part in shown:
            part.enable_progress_bar()
