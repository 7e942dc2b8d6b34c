"""What commands do with what is already where they write: nothing of others is ever deleted."""

import shutil
from pathlib import Path

import pytest

from command_line import Run
from lorasynth.library import Library

from .conftest import World, train_arguments


def precious(folder: Path, *names: str) -> dict[str, str]:
    """Files of a user's own."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("precious")
    return texts(folder)


def texts(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text(errors="replace")
        for path in folder.rglob("*")
        if path.is_file()
    }


def fit(world: World, out: Path, run_folder: Path) -> list[object]:
    where = ["-o", out, "--run", run_folder, "--device", "cpu"]
    return ["fit", "pca", world.library, *where, "--latents", 2]


def test_a_codec_in_the_folder_of_its_own_checkpoints_is_refused(
    world: World, run: Run, tmp_path: Path
) -> None:
    for out in (tmp_path / "run/pca", tmp_path / "run", tmp_path / "run/deeper/codec"):
        run(*fit(world, out, tmp_path / "run")).is_one_error("must be apart", str(out))
    assert texts(tmp_path) == {}


def test_fitting_deletes_its_own_checkpoints_alone(world: World, run: Run, tmp_path: Path) -> None:
    names = ("my_lora.safetensors", "basis-of-mine.safetensors", "notes.txt")
    mine = precious(tmp_path / "models/pca", *names)
    assert run(*fit(world, tmp_path / "codec", tmp_path / "models")).status == 0
    assert texts(tmp_path / "models/pca") == mine
    assert (tmp_path / "codec/explained_variance.png").is_file()


def test_a_codec_replaces_a_codec_and_nothing_else(world: World, run: Run, tmp_path: Path) -> None:
    codec, work = tmp_path / "codec", tmp_path / "run"
    for kind, options in (("pca", ["--latents", 2]), ("scaled", []), ("scaled", [])):
        words = ["fit", kind, world.library, "-o", codec, "--run", work, "--device", "cpu"]
        if codec.exists():
            run(*words, *options).is_one_error("is there already", "--overwrite")
        assert run(*words, *options, "--overwrite").status == 0
    assert not (codec / "explained_variance.png").exists()
    mine = precious(tmp_path / "mine", "config.json", "thesis.txt", "drafts/one.txt")
    words = [*fit(world, tmp_path / "mine", work), "--overwrite"]
    run(*words).is_one_error("and 1 more is in the way")
    assert texts(tmp_path / "mine") == mine


def test_a_synthesizer_replaces_an_earlier_one_alone(
    world: World, run: Run, tmp_path: Path
) -> None:
    out, work = tmp_path / "synthesizer", tmp_path / "run"
    words = train_arguments(world, out, work)
    assert run(*words).status == 0
    run(*words).is_one_error("is there already", "--overwrite")
    words += ["--overwrite"]
    assert run(*words).status == 0
    precious(out, "encoder/my notes.txt")
    before = sorted(texts(out))
    run(*words).is_one_error("encoder/my notes.txt is in the way")
    assert sorted(texts(out)) == before


@pytest.mark.parametrize("command", ["convert", "synth"])
def test_a_peft_folder_does_not_replace_a_folder_of_training(
    world: World, run: Run, tmp_path: Path, command: str
) -> None:
    out = tmp_path / "my_training"
    names = ("adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "run/photos.zip")
    mine = precious(out, *names)
    words = {
        "convert": ["convert", world.lora, out],
        "synth": ["synth", world.photo, "-o", out, "--synthesizer", world.synthesizer],
    }[command]
    run(*words, "--format", "peft").is_one_error("optimizer.pt and 1 more is in the way")
    assert texts(out) == mine
    for _ in range(2):
        words[words.index(out)] = tmp_path / "adapter"
        assert run(*words, "--format", "peft").status == 0
        out = tmp_path / "adapter"


def test_a_subject_is_forgotten_with_what_was_derived_of_it(
    world: World, run: Run, tmp_path: Path
) -> None:
    library = shutil.copytree(world.library, tmp_path / "library")
    failures = tmp_path / "library.failures.json"
    failures.write_text('{"dan": {"reason": "none", "attempt": 1}}')
    run("library", "forget", library, "nobody").is_one_error("'nobody' is not")
    result = run("library", "forget", library, "ben", "dan")
    assert result.status == 0, result.err
    assert "2 subjects removed" in result.out
    assert Library.open(library).ids == ["ann", "cyd"]
    assert run("library", "check", library).status == 0
    [column] = Library.open(library).columns
    assert len(Library.open(library).column(column)) == 2
    assert failures.read_text().split() == ["{}"]
    left = [path for path in tmp_path.rglob("*") if path.is_file() and b"ben" in path.read_bytes()]
    assert left == []
