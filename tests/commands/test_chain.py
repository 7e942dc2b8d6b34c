"""From images to images by commands alone."""

import io
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from command_line import Run, call
from lorasynth import Synthesizer
from lorasynth.adapter import Adapter
from lorasynth.core.errors import CollectionError
from lorasynth.hypernet import LatentDiffusion
from lorasynth.images import FolderSubjects, SubjectSource
from lorasynth.library import Library

from .conftest import (
    PRETRAIN,
    QUICK,
    SIDE,
    SUBJECTS,
    World,
    collect_arguments,
    train_arguments,
    write_image,
)


def test_the_library_holds_every_subject_with_its_embeddings(world: World) -> None:
    library = Library.open(world.library)
    assert library.ids == list(SUBJECTS)
    assert library.info.gauge == "shared"
    assert library.info.recipe["rank"] == 2
    [column] = library.columns
    assert column.startswith("tiny_one_")
    assert library.column(column).shape == (3, 2, 6)  # the subjects have 2, 3 and 4 images


def test_collecting_again_trains_nothing(world: World, run: Run) -> None:
    result = run(*collect_arguments(world, world.library))
    assert result.status == 0
    assert "3 adapters, 0 of them new" in result.out


def test_a_recipe_that_trains_both_factors_gets_the_procrustes_gauge(
    world: World, run: Run, tmp_path
) -> None:
    assert not run(*collect_arguments(world, tmp_path / "both"), "--recipe.trained", "both").status
    assert Library.open(tmp_path / "both").info.gauge == "procrustes"


@pytest.fixture(scope="module")
def pretrained(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretraining")
    out = folder / "pretrained"
    common = [world.subjects, "--base", world.base, "--device", "cpu", "--encoder", world.encoder]
    sheet = folder / "sheet.png"
    options = ["-o", out, "--run", folder / "run", "--sheet", sheet, *PRETRAIN]
    assert call(["pretrain", *common, *options]) == 0
    with Image.open(sheet) as image:
        assert image.height == 3 * SIDE + 2 * 2
    return out


def test_a_library_starts_from_a_pretrained_synthesizer(
    world: World, pretrained: Path, run: Run, tmp_path
) -> None:
    synthesizer = Synthesizer.from_pretrained(pretrained)
    arguments = [*collect_arguments(world, tmp_path / "library"), "--init-from", pretrained]
    still = ("--recipe.learning-rate", "1e-12")
    assert run(*arguments, *still).status == 0
    library = Library.open(tmp_path / "library")
    assert library.info.recipe["init_from"] == synthesizer.fingerprint
    source = FolderSubjects(world.subjects)
    predicted = synthesizer.predict([source.load(name) for name in library.ids])
    vectors = library.layout.flatten(library.factors(range(len(library))))
    torch.testing.assert_close(vectors, library.layout.flatten(predicted))


def test_diffusion_is_trained_around_a_pretrained_synthesizer(
    world: World, pretrained: Path, run: Run, tmp_path
) -> None:
    out = tmp_path / "synthesizer"
    where = [*train_arguments(world, out, tmp_path / "run"), "--device", "cpu"]
    assert run(*where, "--residual-of", pretrained).status == 0
    hypernet = Synthesizer.from_pretrained(out).hypernet
    assert isinstance(hypernet, LatentDiffusion)
    assert hypernet.anchor is not None
    where[where.index("-o") + 1] = tmp_path / "other"
    run(*where, "--residual-of", world.synthesizer).is_one_error("regression", "LatentDiffusion")


def test_a_frugal_collection_of_half_precise_numbers_from_a_tar(
    world: World, run: Run, tmp_path
) -> None:
    with tarfile.open(tmp_path / "subjects.tar", "w") as tar:
        for path in sorted(world.subjects.glob("*/*.png")):
            tar.add(path, f"{path.parent.name}.{path.name}")
        bad = tarfile.TarInfo("dan.0.png")
        bad.size = 3
        tar.addfile(bad, io.BytesIO(b"bad"))
    where = [tmp_path / "subjects.tar", "--base", world.base, "--device", "cpu", *QUICK]
    frugal = ("--dtype", "bfloat16", "--gradient-checkpointing", "--attention-slicing")
    arguments = ["collect", "-o", tmp_path / "library", *where, *frugal, "--size", 8]
    prior = ("--recipe.prior.prompt", "a portrait", "--recipe.prior.images", 1)
    prior += ("--recipe.prior.steps", 1)
    result = run(*arguments, *prior, "--fleet", 2)
    assert "3 adapters, 3 of them new" in result.out
    assert f"1 failed ({tmp_path / 'library.failures.json'})" in result.out
    library = Library.open(tmp_path / "library")
    assert library.info.recipe["image_size"] == 8
    assert library.info.recipe["prior"]["prompt"] == "a portrait"
    assert "dan.0.png" in (tmp_path / "library.failures.json").read_text()
    assert "0 failed" in run(*arguments, *prior).out
    assert "1 failed" in run(*arguments, *prior, "--retry-failed").out


def test_images_without_a_caption_have_the_one_that_is_given(
    world: World, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def collected(_: object, source: SubjectSource, *__: object, **___: object) -> None:
        seen.extend(source.load("ann").captions)
        raise CollectionError("enough is known")

    monkeypatch.setattr("lorasynth.collect.collect", collected)
    arguments = collect_arguments(world, tmp_path / "library")
    run(*arguments).is_one_error("enough")
    run(*arguments, "--caption", "a photo of sks person").is_one_error("enough")
    assert seen == ["a portrait of sks"] * 2 + ["a photo of sks person"] * 2


def test_library_info_says_what_it_holds(world: World, run: Run) -> None:
    result = run("library", "info", world.library)
    facts = dict(line.split(maxsplit=1) for line in result.out.splitlines())
    assert facts["adapters"] == "3"
    assert facts["rank"] == "2"
    assert facts["columns"].startswith("tiny_one_")
    assert "rank=2" in facts["recipe"]
    assert "norms" not in facts
    lines = run("library", "info", world.library, "--statistics").out.splitlines()
    facts = dict(line.split(maxsplit=1) for line in lines)
    norms = Library.open(world.library).all_vectors().norm(dim=1)
    assert facts["norms"].startswith(f"{float(norms.median()):.4g} in the median")


def test_the_synthesizer_remembers_its_base_and_trigger(world: World) -> None:
    synthesizer = Synthesizer.from_pretrained(world.synthesizer)
    library = Library.open(world.library)
    assert synthesizer.base_fingerprint == library.info.base_fingerprint
    assert synthesizer.layout == library.layout
    assert synthesizer.trigger_phrase == "sks"


def test_synth_writes_what_python_gives(world: World) -> None:
    adapter = Adapter.load(world.lora)
    again = Synthesizer.from_pretrained(world.synthesizer)(world.photo)
    torch.testing.assert_close(adapter.to_vector(), again.to_vector())
    assert adapter.metadata.synthesised
    assert adapter.metadata.base_fingerprint == Library.open(world.library).info.base_fingerprint


def test_synth_prints_the_path_and_the_time_of_each_stage(world: World, run: Run, tmp_path) -> None:
    out = tmp_path / "me.safetensors"
    result = run("synth", world.photo, "-o", out, "--synthesizer", world.synthesizer)
    assert result.out == f"{out}\n"
    for stage in ("read", "embed", "sample", "decode", "write"):
        assert stage in result.err


@pytest.mark.parametrize(
    ("name", "file"), [("diffusers", "me.safetensors"), ("kohya", "me.safetensors"), ("peft", "me")]
)
def test_every_format_holds_the_same_adapter(world: World, run: Run, tmp_path, name, file) -> None:
    out = tmp_path / file
    options = ("--synthesizer", world.synthesizer, "--format", name)
    assert run("synth", world.photo, "-o", out, *options).status == 0
    expected = Adapter.load(world.lora)
    torch.testing.assert_close(Adapter.load(out).to_vector(), expected.to_vector())


def test_several_photos_are_one_subject(world: World, run: Run, tmp_path) -> None:
    photos = [write_image(tmp_path / "two" / f"{i}.png", i) for i in range(2)]
    by_files, by_folder = tmp_path / "files.safetensors", tmp_path / "folder.safetensors"
    options = ("--synthesizer", world.synthesizer)
    run("synth", *photos, "-o", by_files, *options)
    run("synth", tmp_path / "two", "-o", by_folder, *options)
    both = Adapter.load(by_files).to_vector()
    torch.testing.assert_close(both, Adapter.load(by_folder).to_vector())
    run("synth", photos[0], "-o", by_files, *options)
    assert (Adapter.load(by_files).to_vector() - both).norm() > 1e-4 * both.norm()


def test_a_folder_of_subjects_gives_one_file_each(world: World, run: Run, tmp_path) -> None:
    out = tmp_path / "out"
    result = run("synth", world.subjects, "-o", out, "--synthesizer", world.synthesizer)
    paths = [out / f"{name}.safetensors" for name in SUBJECTS]
    assert result.out.splitlines() == [str(path) for path in paths]
    vectors = [Adapter.load(path).to_vector() for path in paths]
    assert not torch.equal(vectors[0], vectors[1])


def test_a_folder_of_subjects_gives_one_peft_folder_each(world: World, run: Run, tmp_path) -> None:
    options = ("--synthesizer", world.synthesizer, "--format", "peft")
    assert run("synth", world.subjects, "-o", tmp_path, *options).status == 0
    assert [path.name for path in sorted(tmp_path.iterdir())] == list(SUBJECTS)


def image_arguments(world: World, out) -> list[object]:
    return ["images", "--base", world.base, "-o", out, "--steps", 1, "-n", 2, "--device", "cpu"]


def test_a_sheet_has_a_row_for_each_prompt_and_says_it_is_synthetic(
    world: World, run: Run, tmp_path
) -> None:
    out = tmp_path / "sheet.png"
    prompts = ("--prompt", "sks", "--prompt", "sks, smiling", "--prompt", "sks, sad")
    result = run(*image_arguments(world, out), "--lora", world.lora, *prompts)
    assert (result.status, result.out) == (0, f"{out}\n")
    with Image.open(out) as sheet:
        assert sheet.height == 3 * SIDE + 4
        assert sheet.width > 2 * SIDE + 2  # beside the prompts
        assert "synthetic" in sheet.info["Comment"]
        assert sheet.info["Description"].splitlines() == list(prompts[1::2])


def test_a_folder_has_a_file_for_each_image(world: World, run: Run, tmp_path) -> None:
    run(*image_arguments(world, tmp_path / "out"), "--lora", world.lora, "--prompt", "sks")
    files = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in files] == ["00-000000.png", "00-000001.png"]
    with Image.open(files[1]) as image:
        assert image.size == (SIDE, SIDE)
        assert image.info["Seed"] == "1"
        assert "trainedAlgorithmicMedia" in image.info["DigitalSourceType"]


def pixels(path) -> list[int]:
    with Image.open(path) as image:
        return list(image.tobytes())


def test_strength_scales_and_files_add_up(world: World, run: Run, tmp_path) -> None:
    Adapter.load(world.lora).scaled(300.0).save(tmp_path / "strong.safetensors")
    Adapter.load(world.lora).scaled(150.0).save(tmp_path / "half.safetensors")

    def image(*options: object) -> list[int]:
        out = tmp_path / "image.png"
        result = run(*image_arguments(world, out), "--prompt", "sks", *options)
        assert result.status == 0, result.err
        return pixels(out)

    half = ("--lora", tmp_path / "half.safetensors")
    bare, strong = image(), image("--lora", tmp_path / "strong.safetensors")
    assert image(*half, "--strength", 0) == bare
    assert strong != bare
    for same in (image(*half, *half), image(*half, "--strength", 2)):
        difference = [abs(a - b) for a, b in zip(same, strong, strict=True)]
        assert max(difference) <= 1


def test_images_of_another_size_in_half_precision(world: World, run: Run, tmp_path) -> None:
    out = tmp_path / "small.png"
    frugal = ("--dtype", "bfloat16", "--attention-slicing", "--size", 8)
    result = run(*image_arguments(world, out), "--prompt", "sks", "--lora", world.lora, *frugal)
    assert result.status == 0, result.err
    with Image.open(out) as sheet:
        assert sheet.size == (2 * 8 + 2, 8)


def test_rectangles_are_trained_on_whole(world: World, run: Run, tmp_path: Path) -> None:
    sides = [(16, 32), (32, 16), (16, 16)]
    for name in SUBJECTS:
        for index, size in enumerate(sides):
            with Image.open(world.photo) as photo:
                whole = photo.resize(size)
            (tmp_path / "people" / name).mkdir(parents=True, exist_ok=True)
            whole.save(tmp_path / "people" / name / f"{index}.png")
    base, people = ["--base", world.base, "--device", "cpu"], tmp_path / "people"
    library, made, sheet = (tmp_path / name for name in ("library", "made", "sheet.png"))
    collect = ["collect", people, *base, "-o", library, *QUICK]
    assert run(*collect, "--buckets", "--sheet", sheet).status == 0
    assert Library.open(library).ids == list(SUBJECTS)
    with Image.open(sheet) as image:
        assert image.height == 3 * 24 + 2 * 2
    again = run(*collect)
    again.is_one_error("buckets", str(library))
    pretrain = ["pretrain", people, *base, "--encoder", world.encoder, *PRETRAIN, "--buckets"]
    assert run(*pretrain, "-o", made, "--run", tmp_path / "run").status == 0
    shapes = set()
    for path in (tmp_path / "run/encoded").glob("*.safetensors"):
        with safe_open(str(path), framework="pt") as file:
            shapes |= set(map(tuple, file.get_tensor("sides").tolist()))
    assert shapes == {(4, 12), (12, 4), (8, 8)}


def test_another_scheduler(world: World, run: Run, tmp_path: Path) -> None:
    images = ["images", "--prompt", "sad", "-n", 1, "--steps", 2, "--base", world.base]
    images += ["--device", "cpu", "-o", tmp_path / "x.png", "--scheduler"]
    assert run(*images, "DPMSolverMultistepScheduler").status == 0
    run(*images, "Euler").is_one_error("--scheduler must be one of", "EulerDiscrete", "'Euler'")


def test_images_tell_their_progress(
    world: World, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []

    @contextmanager
    def progress(_: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda steps: told.append((steps, total))

    monkeypatch.setattr("lorasynth.commands.images.progress", progress)
    arguments = image_arguments(world, tmp_path / "sheet.png")
    run(*arguments, "--steps", 3, "--lora", world.lora, "--prompt", "sks")
    assert told == [(2, 6)] * 3
