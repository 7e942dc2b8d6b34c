"""What commands write: the same bytes each time, and nothing of whose machine it was."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from command_line import Run
from lorasynth.adapter import Adapter

from .all_commands import FEW, every_command, files_of
from .conftest import World


@pytest.mark.long
def test_two_runs_give_the_same_bytes_and_none_of_them_names_the_user(
    world: World, home: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr("socket.gethostname", lambda: "alice_of_wonderland")
    monkeypatch.setattr("platform.node", lambda: "alice_of_wonderland")
    made = []
    for name in ("one", "another"):
        root = tmp_path / name / "out"
        monkeypatch.chdir(home)
        for words in every_command(world, root, home):
            result = run(*words)
            assert result.status == 0, (words, result.err)
        made.append(files_of(root))
        logs = {str(p): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        for path, data in {**made[-1], **logs}.items():
            assert b"alice_of_wonderland" not in data, path
            assert os.fsencode(tmp_path) not in data, path
    first, second = made
    assert first.keys() == second.keys()
    differ = [name for name in first if first[name] != second[name]]
    assert differ == []


def test_equal_images_in_folders_of_other_names_give_equal_files(
    world: World, run: Run, tmp_path: Path
) -> None:
    for name in ("ann", "bob.v1", "bob.v2"):
        shutil.copytree(world.subjects / "ann", tmp_path / "in" / name)
    places = ("--synthesizer", world.synthesizer, "--library", world.library, "--base", world.base)
    assert (
        run("optimise", "blend", tmp_path / "in", "-o", tmp_path / "out", *places, *FEW).status == 0
    )
    vectors = [Adapter.load(path).to_vector() for path in sorted((tmp_path / "out").iterdir())]
    assert len(vectors) == 3
    for other in vectors[1:]:
        torch.testing.assert_close(other, vectors[0])


def test_a_file_converted_twice_is_the_same_file(world: World, run: Run, tmp_path: Path) -> None:
    adapter = Adapter.load(world.lora)
    adapter.metadata.extra.update({word: word for word in ("one", "two", "three", "four", "five")})
    adapter.save(tmp_path / "a.safetensors", "kohya")
    found = set()
    for number in range(4):
        out = tmp_path / f"{number}.safetensors"
        assert run("convert", tmp_path / "a.safetensors", out, "--format", "diffusers").status == 0
        found.add(out.read_bytes())
    assert len(found) == 1
