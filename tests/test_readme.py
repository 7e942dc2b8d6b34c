"""Blocks of the README and of the quick start, as they stand there, one after the other."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str, containing: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    return next(text for text in found if containing in text)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with what the blocks name."""
    for name in ("bundle", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def test_the_python_block_gives_a_pipeline_with_the_adapter(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clone)
    names: dict[str, object] = {}
    exec(block("python", "from_pretrained"), names)
    pipe = names["pipe"]
    assert pipe.get_list_adapters() == {"unet": ["default_0"]}  # type: ignore[attr-defined]
    assert pipe.unet.dtype == torch.float32  # type: ignore[attr-defined]


def test_the_python_blocks_of_the_quick_start_work_one_after_another(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clone)
    text = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    for some in blocks:
        exec(some, names)


def test_the_commands_work_one_after_another(clone: Path) -> None:
    script = block("sh", "lorasynth synth").replace(". .venv/bin/activate\n", "")
    script = script.replace("--steps 50", "--steps 3")
    commands = [line.split("#")[0].strip() for line in script.splitlines()]
    assert len(commands) == 8
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(commands)],
        check=False,
        cwd=clone,
        env={**os.environ, "PATH": places},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for file in ("me.safetensors", "me.png", "without.safetensors", "better.safetensors"):
        assert (clone / file).is_file(), file
    assert "3 adapters imported" in done.stdout
    assert "all intact" in done.stdout
