"""What commands write: the same bytes each time, and nothing of whose machine it was."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from command_line import Run
from lorasynth.adapter import Adapter

from .conftest import QUICK, World, train_arguments

CPU = ("--device", "cpu")
FEW = ("--steps", 2, *CPU)


def every_command(world: World, root: Path, home: Path) -> list[list[object]]:
    """Commands that write, each into `root`, of what lies in `home`."""
    base, photo, subjects = home / "base", home / "photo.png", home / "subjects"
    encoder, lora, synthesizer = home / "encoder", home / "me.safetensors", home / "synthesizer"
    library, codec = home / "library", home / "codec"
    places = ("--synthesizer", synthesizer, "--library", library, "--base", base)
    sets = [
        word for one in ("optimisation.steps=2", "optimisation.batch=2") for word in ("--set", one)
    ]
    pretrain = ["--recipe", "rank=2", "--set", "latents=2", "--set", "model.width=8"]
    train = train_arguments(world, root / "synthesizer", root / "work/train")
    own = {world.base: base, world.library: library, world.codec: codec, world.encoder: encoder}
    return [
        ["collect", "-o", root / "library", "--folder", subjects, "--base", base, *CPU, *QUICK,
         "--encoder", encoder],
        ["import", "folder", home / "loras", "-o", root / "imported"],
        ["fit", "pca", library, "-o", root / "codec", "--set", "latents=2", *CPU, "--run",
         root / "work/fit"],
        ["fit", "scaled", library, "-o", root / "scaled", *CPU, "--run", root / "work/fit"],
        [own.get(word, word) if isinstance(word, Path) else word for word in train],
        ["pretrain", "--folder", subjects, "--base", base, "--encoder", encoder, "-o",
         root / "pretrained", "--run", root / "work/pretrain", *sets, *pretrain, *CPU],
        ["synth", photo, "-o", root / "me.safetensors", "--synthesizer", synthesizer],
        ["synth", subjects, "-o", root / "all", "--synthesizer", synthesizer],
        ["synth", photo, "-o", root / "peft", "--format", "peft", "--synthesizer", synthesizer],
        ["convert", lora, root / "converted.safetensors", "--format", "diffusers"],
        ["refine", lora, photo, "-o", root / "refined.safetensors", "--base", base, *FEW],
        ["blend", photo, "-o", root / "blended.safetensors", *places, *FEW],
        ["invert", photo, "-o", root / "inverted.safetensors", *places, *FEW],
        ["sample", "-o", root / "sampled", "-n", 1, *places, *CPU],
        ["images", "--prompt", "sks", "-n", 1, "--steps", 1, "--base", base, "--lora", lora, "-o",
         root / "sheet.png", *CPU],
        ["compare", subjects, "-o", root / "table", "--base", base, "--encoder", encoder,
         "--style", f"{lora}=0.5", "--pictures", 2, "--set", "sampling.steps=1", *CPU],
        ["encoders", "make", f"clip:{home / 'clip'}", "-o", root / "vision"],
        ["encoders", "join", encoder, f"clip:{home / 'clip'}", "-o", root / "joined"],
        ["library", "imitate", root / "files", "--rows", 4, "--shrink", 64],
        ["ip-adapter", "train", "--folder", subjects, "--base", base, "--encoder", encoder, "-o",
         root / "ip.safetensors", "--run", root / "work/ip", *sets, *CPU],
        ["fine-tune", photo, "-o", root / "unet", "--base", base, *FEW],
    ]  # fmt: skip


@pytest.fixture(scope="module")
def home(world: World, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that the commands take, in the home folder of a user with a name."""
    home = tmp_path_factory.mktemp("homes") / "alice_of_wonderland"
    for name in ("base", "encoder", "library", "codec", "synthesizer", "subjects"):
        shutil.copytree(getattr(world, name), home / name)
    shutil.copytree(clip, home / "clip")
    (home / "loras").mkdir()
    for source, place in ((world.photo, "photo.png"), (world.lora, "me.safetensors"),
                          (world.lora, "loras/ann.safetensors")):  # fmt: skip
        shutil.copy(source, home / place)
    return home


def files_of(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and "work" not in path.relative_to(root).parts
    }


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


def test_the_output_is_not_what_decides_the_numbers(world: World, run: Run, tmp_path: Path) -> None:
    for command, more in (("refine", (world.lora,)), ("fine-tune", ())):
        found = []
        for name in ("better", "other"):
            out = tmp_path / name / command / f"{name}.safetensors"
            words = (command, *more, world.photo, "-o", out, "--base", world.base, *FEW)
            assert run(*words).status == 0
            found.append(out)
        one, another = (files_of(out) if out.is_dir() else {"": out.read_bytes()} for out in found)
        assert one == another


def test_equal_pictures_in_folders_of_other_names_give_equal_files(
    world: World, run: Run, tmp_path: Path
) -> None:
    for name in ("ann", "bob.v1", "bob.v2"):
        shutil.copytree(world.subjects / "ann", tmp_path / "in" / name)
    places = ("--synthesizer", world.synthesizer, "--library", world.library, "--base", world.base)
    assert run("blend", tmp_path / "in", "-o", tmp_path / "out", *places, *FEW).status == 0
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
