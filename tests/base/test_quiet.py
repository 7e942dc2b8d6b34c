"""Loading is silent, and leaves the bars of others as they were."""

from diffusers.utils import logging as of_diffusers
from huggingface_hub.utils.tqdm import are_progress_bars_disabled
from transformers.utils import logging as of_transformers

from lorasynth.base import BaseModel
from lorasynth.base.pipeline_files import without_bars


def test_loading_says_nothing(pipeline_folder, capfd) -> None:
    BaseModel.load(pipeline_folder)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_bars_are_hidden_inside_only_and_downloads_keep_theirs() -> None:
    parts = (of_diffusers, of_transformers)
    before = [part.is_progress_bar_enabled() for part in parts]
    downloads = are_progress_bars_disabled()
    assert all(before)
    with without_bars():
        assert not any(part.is_progress_bar_enabled() for part in parts)
        assert are_progress_bars_disabled() == downloads
    assert [part.is_progress_bar_enabled() for part in parts] == before
