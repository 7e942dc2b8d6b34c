"""Sphinx configuration; `make docs` builds with warnings as errors."""

import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

project = "lorasynth"
author = "the lorasynth authors"
release = metadata.version("lorasynth")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "lorasynth"
html_static_path = ["_static"]
html_copy_source = False

# Docstrings write `code` in single backticks, and shapes as annotations of arguments, which would
# bury a signature of the API page: they stay in the source.
default_role = "code"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
toc_object_entries_show_parents = "hide"
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def escape_markup(*event: Any) -> None:
    """Keep reStructuredText from reading emphasis and substitutions into |x| and a * b."""
    lines: list[str] = event[-1]
    for number, line in enumerate(lines):
        parts = re.split(r"(`[^`]*`)", line)
        parts[::2] = [re.sub(r"[*|]", r"\\\g<0>", text) for text in parts[::2]]
        lines[number] = "".join(parts)


def setup(app: Sphinx) -> None:
    """Write the pages of commands and families; escape before napoleon (priority 500)."""
    sys.path.insert(0, str(Path(__file__).parent))
    import command_pages
    import family_pages

    command_pages.write(Path(__file__).with_name("commands.md"))
    family_pages.write(Path(__file__).with_name("families"))
    app.connect("autodoc-process-docstring", escape_markup, priority=400)
