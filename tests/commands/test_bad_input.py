"""Bad input to commands: one line that says what is wrong, status 2, and nothing lost or left."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from command_line import Run
from lorasynth.adapter import Adapter, AdapterMetadata, Factor
from lorasynth.library import Library

from .conftest import World, collect_arguments, save_encoder, train_arguments, write_image


@pytest.fixture
def below_a_file(tmp_path: Path) -> Path:
    """A folder that cannot be made, even by root."""
    (tmp_path / "file").write_text("in the way")
    return tmp_path / "file" / "out"


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Images


def no_image(path: Path) -> Path:
    path.write_text("no image")
    return path


def truncated(path: Path) -> Path:
    data = write_image(path, 3, side=64).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def huge(path: Path) -> Path:
    Image.new("1", (10_000, 5_000)).save(path)
    return path


@pytest.mark.parametrize(
    ("make", "word"), [(no_image, "image file"), (truncated, "image file"), (huge, "megapixels")]
)
def test_a_image_that_cannot_be_used(world: World, run: Run, tmp_path, make, word) -> None:
    photo = make(tmp_path / "photo.png")
    out = tmp_path / "out" / "me.safetensors"
    result = run("synth", photo, "-o", out, "--synthesizer", world.synthesizer)
    result.is_one_error(word, str(photo))
    assert not out.parent.exists()


def test_an_encoder_that_finds_nobody_is_refused_before_training(
    world: World, run: Run, tmp_path
) -> None:
    blind = save_encoder(tmp_path / "blind", face=False)
    library = tmp_path / "library"
    result = run(*collect_arguments(world, library), "--encoder", blind)
    result.is_one_error(
        "all 3 failed", "finds none in the 2 of 'ann'", "images like those that it was trained on"
    )
    where = [world.subjects, "--base", world.base, "--device", "cpu"]
    options = ["--encoder", blind, "-o", tmp_path / "out", "--run", tmp_path / "run"]
    result = run("pretrain", *where, *options, "--recipe.rank", 2)
    assert result.status == 2
    assert "none of 3 has" in result.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


# Subjects


def test_zero_subjects(world: World, run: Run, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    where = ("--base", world.base, "-o", tmp_path / "library")
    run("collect", tmp_path / "empty", *where).is_one_error("at least one subject")
    result = run("synth", tmp_path / "empty", "-o", tmp_path / "out")
    result.is_one_error("folders of images")
    assert left_in(tmp_path) == ["empty"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--fleet", "many"), ("--fleet", "many")),
        (("--fleet", 0), ("--fleet", "greater than or equal to 1")),
        (("--min-similarity", 0.5), ("--min-similarity needs an encoder",)),
        (("--engine", "dask"), ("--engine", "here", "dask")),
        (("--shard", "3/2"), ("i/n", "3/2")),
        (("--preset", "mine"), ("--preset", "weights2weights", "mine")),
        (("--recipe.ranks", 2), ("recipe.ranks",)),
        (("--recipe.rank", "two"), ("recipe.rank", "two")),
        (("--recipe.rank", 0), ("rank", "greater than or equal to 1")),
        (("--recipe.warmup-steps", 2), ("warmup_steps must be less than steps",)),
        (("--dtype", "float8"), ("bfloat16", "float8")),
        (("--size", 15), ("multiple of 2 pixels", "15")),
    ],
)
def test_options_of_a_collection(world: World, run: Run, tmp_path, options, words) -> None:
    result = run(*collect_arguments(world, tmp_path / "library"), *options)
    result.is_one_error(*words)
    assert left_in(tmp_path) == []


# Damage


def test_a_library_with_a_flipped_bit_in_a_shard(world: World, run: Run, tmp_path) -> None:
    library = shutil.copytree(world.library, tmp_path / "library")
    vectors = library / "shards" / "000000" / "vectors.npy"
    data = bytearray(vectors.read_bytes())
    data[-4] ^= 1  # the last bit of a mantissa
    vectors.write_bytes(data)
    where = ("--codec", world.synthesizer / "codec", "--encoder", world.encoder)
    for command in (
        ("library", "check", library),
        ("fit", "pca", library, "-o", tmp_path / "codec", "--device", "cpu"),
        ("train", library, *where, "--base", world.base, "-o", tmp_path / "made"),
    ):
        run(*command).is_one_error("vectors.npy", "has changed since it was written")
    assert left_in(tmp_path) == ["library"]


def test_a_path_that_is_no_library(run: Run, tmp_path) -> None:
    for command in ("check", "info"):
        run("library", command, tmp_path).is_one_error("library")


def test_a_synthesizer_with_a_changed_byte(world: World, run: Run, tmp_path) -> None:
    synthesizer = shutil.copytree(world.synthesizer, tmp_path / "synthesizer")
    weights = synthesizer / "codec" / "codec.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    out = tmp_path / "me.safetensors"
    result = run("synth", world.photo, "-o", out, "--synthesizer", synthesizer)
    result.is_one_error("codec.safetensors", "changed")
    assert not out.exists()


def test_a_library_where_none_can_be(world: World, run: Run, tmp_path: Path, monkeypatch) -> None:
    """It is told before anything is loaded."""
    broken = replace(world, base=tmp_path / "nothing")
    (tmp_path / "file").touch()
    run(*collect_arguments(broken, tmp_path / "file")).is_one_error("a library is a folder", "file")
    monkeypatch.chdir(tmp_path)
    run(*collect_arguments(broken, Path())).is_one_error("name of its own")
    assert left_in(tmp_path) == ["file"]


def images(world: World, lora: Path, out: Path) -> list[object]:
    quick = ["--steps", 1, "-n", 1, "--device", "cpu"]
    return ["images", "--lora", lora, "--prompt", "sks", "--base", world.base, "-o", out, *quick]


def test_an_adapter_with_nan_or_of_no_family(world: World, run: Run, tmp_path) -> None:
    tensors = load_file(world.lora)
    next(tensor for tensor in tensors.values() if tensor.dim() == 2)[0, 0] = float("nan")
    lora = tmp_path / "nan.safetensors"
    save_file(tensors, lora)
    run(*images(world, lora, tmp_path / "out.png")).is_one_error("nan.safetensors", "finite")
    assert left_in(tmp_path) == ["nan.safetensors"]
    unknown = run(*images(world, world.lora, tmp_path / "out.png"), "--family", "sd9")
    unknown.is_one_error("--family must be one of", "sd9")


# Another base model


def test_a_lora_for_another_base_model(world: World, run: Run, tmp_path) -> None:
    factors = Adapter.load(world.lora).factors
    lora, out = tmp_path / "other.safetensors", tmp_path / "out.png"
    Adapter(factors, AdapterMetadata(base_fingerprint="another")).save(lora)
    run(*images(world, lora, out)).is_one_error("other.safetensors", "another")
    assert not out.exists()
    assert run(*images(world, lora, out), "--allow-other-base").status == 0
    assert out.exists()


def test_a_lora_that_does_not_fit_is_never_used(world: World, run: Run, tmp_path) -> None:
    module = next(iter(Adapter.load(world.lora).factors))
    odd = {module: Factor(torch.ones(1, 3), torch.ones(5, 1))}
    foreign = {"no.such.module": Factor(torch.ones(1, 3), torch.ones(5, 1))}
    for factors in (odd, foreign):
        lora, out = tmp_path / "odd.safetensors", tmp_path / "out.png"
        Adapter(factors).save(lora)
        result = run(*images(world, lora, out), "--allow-other-base")
        result.is_one_error(next(iter(factors)), "another base model")
        assert not out.exists()


def test_a_library_of_another_base_model(world: World, run: Run, tmp_path, make_pipeline) -> None:
    other = make_pipeline(tmp_path / "other")
    path = other / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: 2 * value for name, value in load_file(path).items()}, path, {"format": "pt"})
    for arguments in (
        collect_arguments(world, world.library),
        train_arguments(world, tmp_path / "out", tmp_path / "run"),
    ):
        arguments[arguments.index(world.base)] = other
        run(*arguments).is_one_error("base model")
    assert len(Library.open(world.library)) == 3
    assert left_in(tmp_path) == ["other"]


# Outputs


def test_an_output_that_cannot_be_written(world: World, run: Run, below_a_file: Path) -> None:
    for arguments in (
        collect_arguments(world, below_a_file),
        ["fit", "pca", world.library, "-o", below_a_file],
        train_arguments(world, below_a_file, below_a_file.parents[1] / "run"),
        [
            *("synth", world.photo, "-o", below_a_file.with_suffix(".safetensors")),
            *("--synthesizer", world.synthesizer),
        ],
        images(world, world.lora, below_a_file.with_suffix(".png")),
        images(world, world.lora, below_a_file),
    ):
        run(*arguments).is_one_error("writable", str(below_a_file.parent))
    assert left_in(below_a_file.parents[1]) == ["file"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_too_little_memory(world: World, run: Run, tmp_path, monkeypatch, error) -> None:
    def never(*_: object, **__: object) -> None:
        raise error("out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr("lorasynth.base.BaseModel.sample", never)
    found = run(*images(world, world.lora, tmp_path / "x.png"))
    found.is_one_error("20.00 GiB", "`lorasynth plan`")


def test_more_sampler_steps_than_there_are(world: World, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    result = run("images", "--prompt", "a", "-o", out, "--base", world.base, "--steps", 2000)
    result.is_one_error("from 1 to 1000", "2000")


def test_subjects_that_a_strength_is_tuned_on_are_not_measured(world: World, run: Run) -> None:
    where = ["--base", world.base, "--device", "cpu"]
    result = run("evaluate", world.subjects, "--encoder", world.encoder, "--tune", 2, *where)
    result.is_one_error("at least two subjects, but got 1")
