"""Names of lorasynth that programs outside the package import, which no type checker sees."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [*(ROOT / "integrations").rglob("*.py"), *(ROOT / "bench").glob("*.py")]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_name_is_there(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("lorasynth"):
            continue
        module = import_module(str(node.module))
        for name in node.names:
            try:
                found = hasattr(module, name.name) or import_module(f"{node.module}.{name.name}")
            except ImportError:
                found = False
            assert found, f"{node.module} has no {name.name}"
