"""`recipe domain`: from images to a measured synthesizer, through kills and bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from torch import nn
from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
)

from command_line import Run
from lorasynth.collect.captioning import Captioner
from lorasynth.collect.checking import Checked, _Hashes, difference_hash
from lorasynth.core.errors import ConfigError
from lorasynth.images import Subject
from lorasynth.images.files import read_photo
from lorasynth.synthesizer import Synthesizer

from .conftest import QUICK, World, write_image

FAST = (
    *("--predictor.optimisation.steps", 2, "--predictor.optimisation.batch", 2),
    *("--predictor.latents", 2, "--predictor.model.width", 8, "--predictor.samples-every", 0),
    *("--diffusion.optimisation.steps", 2, "--diffusion.optimisation.batch", 2),
    *("--benchmark.images", 2, "--benchmark.sampling-steps", 1, "--latents", 2, "--device", "cpu"),
    *QUICK,
)


def write_photo(path: Path, seed: int) -> None:
    """Soft, as photos are, so that it is known again when it is scaled."""
    with Image.open(write_image(path, seed, side=8)) as noise:
        soft = noise.resize((96, 96), Image.Resampling.BICUBIC)
    soft.save(path)


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve subjects, and much that is wrong."""
    root = tmp_path_factory.mktemp("domain") / "my pets 🐕"
    for index in range(12):
        for image in range(3):
            write_photo(root / f"pet {index}" / f"{image}.png", 100 * index + image)
    with Image.open(root / "pet 0/0.png") as photo:  # again, smaller and as JPEG
        photo.resize((160, 160)).save(root / "pet 0/again.jpg", quality=90)
        photo.resize((64, 64)).save(root / "pet 1/shared.png")
    (root / "pet 2/0.txt").write_text("sks on a sofa")
    (root / "pet 3/2.png").write_bytes(b"no image")
    write_image(root / "alone/0.png", 7)
    for name in (".DS_Store", "pet 4/Thumbs.db", "__MACOSX/x/._0.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def words(world: World, domain: Path, out: Path, *more: object) -> list[object]:
    parts = ["--base", world.base, "--encoder", world.encoder, "-o", out]
    return ["recipe", "domain", domain, *parts, *FAST, *more]


def test_images_become_a_measured_synthesizer_and_a_stage_can_be_made_again(
    world: World, domain: Path, run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done = run(*words(world, domain, out, "--library", 4))
    assert done.status == 0, done.err
    report = json.loads((out / "out/check/report.json").read_text())
    faults = report["faults"]
    assert report["subjects"] == 11
    assert faults["images that a subject has twice"] == ["pet 0"]
    assert faults["images that two subjects have"] == ["pet 0 and pet 1"]
    assert faults["subjects with fewer than 2 images that can be used"] == ["alone"]
    [unreadable] = faults["subjects with an image that cannot be read"]
    assert unreadable.startswith("pet 3 (")
    learn = pq.read_table(out / "out/learn.parquet").to_pylist()
    tests = {row["id"] for row in pq.read_table(out / "work/test.parquet").to_pylist()}
    split = {row["id"]: row["split"] for row in learn}
    assert len(tests) >= 2
    assert not tests & set(split)
    assert len({split.get(name, "test") for name in ("pet 0", "pet 1")}) == 1
    captions = {row["caption"] for row in learn if row["id"] == "pet 2"}
    assert captions <= {"sks on a sofa", "a portrait of sks"}
    methods = [r["method"] for r in json.loads((out / "out/benchmark.json").read_text())["rows"]]
    assert methods == ["base", "direct", "synthesised", "trained", "real"]
    made = Synthesizer.from_pretrained(out / "out/model")
    assert made.learned
    assert "identity similarity, synthesised" in (out / "out/model/README.md").read_text()
    page = (out / "index.html").read_text()
    assert "refresh" not in page
    assert "benchmark.json" in page
    shutil.rmtree(out / "out/model")
    again = run(*words(world, domain, out, "--library", 4))
    assert again.status == 0, again.err
    assert "stage model" in again.err
    assert "stage check" not in again.err
    run(*words(world, domain, out, "--library", 5)).is_one_error("a run must go on", "library")


def test_the_plan_makes_nothing_and_names_a_gpu_that_is_too_small(
    world: World, domain: Path, run: Run, tmp_path: Path
) -> None:
    done = run(*words(world, domain, tmp_path / "run", "--plan", "--gpu", "8GB"))
    assert done.status == 0, done.err
    for said in ("for 8GB: --dtype float32", "predictor", "to do", "TFLOP/s (measured", "disk:"):
        assert said in done.out
    assert not (tmp_path / "run").exists()
    run(*words(world, domain, tmp_path / "run", "--gpu", "1GB")).is_one_error("--gpu 1GB")


def test_domains_that_are_too_small_are_one_line(world: World, run: Run, tmp_path: Path) -> None:
    for index in range(3):
        for image in range(2):
            write_image(tmp_path / f"few/{index}/{image}.png", 10 * index + image)
    write_image(tmp_path / "one/a/0.png", 0)
    for images, more, said in (
        ("few", (), "6 subjects or more"),
        ("one", (), "2 images"),
        ("one", ("--only", "x"), "a stage must be one of"),
    ):
        done = run(*words(world, tmp_path / images, tmp_path / f"run-{images}", *more))
        assert done.status == 2
        assert said in done.err.splitlines()[-1]


def test_a_caption_of_the_command_is_none_of_the_images(
    world: World, domain: Path, run: Run, tmp_path: Path
) -> None:
    more = ("--only", "check", "--caption", "a photo of sks")
    assert run(*words(world, domain, tmp_path / "run", *more)).status == 0
    report = json.loads((tmp_path / "run/out/check/report.json").read_text())
    assert report["without_caption"] == report["images"] - 1


def test_whatever_a_folder_holds_is_looked_at(world: World, run: Run, tmp_path: Path) -> None:
    """Modes and kinds of images that a phone, a scanner or a chat leaves, each used as it shows."""
    root = tmp_path / "pets"
    for index in range(7):
        for image in range(2):
            write_photo(root / f"pet {index}/{image}.png", 10 * index + image)
    turned = Image.Exif()
    turned[0x0112] = 6
    with Image.open(root / "pet 0/0.png") as photo:
        photo.convert("CMYK").save(root / "pet 1/cmyk.jpg")
        grey = np.asarray(photo.convert("L")).astype(np.uint16) * 257
        Image.fromarray(grey).save(root / "pet 2/16 bit.png")
        photo.convert("RGBA").save(root / "pet 3/alpha.png")
        moving = {"save_all": True, "append_images": [photo.rotate(90)], "lossless": True}
        photo.save(root / "pet 4/moving.webp", **moving)
        photo.rotate(90).save(root / "pet 5/turned.jpg", exif=turned, quality=95)
    write_photo(root / "PET 6/0.PNG", 700)
    write_photo(root / "PET 6/1.PNG", 701)
    (root / "pet 6/gone.txt").write_text("of an image that is gone")
    (root / "circle").symlink_to(root)
    done = run(*words(world, root, tmp_path / "run", "--only", "check"))
    assert done.status == 0, done.err
    assert "21 images of 8 subjects" in done.err
    for said in ("1 links in a circle (circle)", "1 captions without an image (gone.txt)"):
        assert said in done.err
    faults = json.loads((tmp_path / "run/out/check/report.json").read_text())["faults"]
    shared = faults["images that two subjects have"]
    # Each shows what "pet 0" shows, upright, and is known as that; 16 bits become others of 8.
    assert {f"pet 0 and pet {index}" for index in (1, 3, 4, 5)} <= {*shared}, shared


def test_the_folder_of_another_recipe_is_left_alone(
    world: World, domain: Path, run: Run, tmp_path: Path
) -> None:
    choices = tmp_path / "run/choices.json"
    choices.parent.mkdir()
    choices.write_text('{"library": "w2w", "claims": []}')
    run(*words(world, domain, tmp_path / "run")).is_one_error("a run must go on", str(choices))
    assert [*choices.parent.iterdir()] == [choices]


def test_a_captioner_says_what_images_without_a_caption_show(
    world: World, domain: Path, run: Run, tmp_path: Path
) -> None:
    """A tiny BLIP with random weights, as transformers saves one."""
    write_blip(tmp_path / "blip")
    more = ("--captioner", tmp_path / "blip", "--only")
    for stage in ("check", "learn.parquet"):
        done = run(*words(world, domain, tmp_path / "run", *more, stage))
        assert done.status == 0, done.err
    said = pq.read_table(tmp_path / "run/out/learn.parquet").to_pylist()
    said += pq.read_table(tmp_path / "run/work/test.parquet").to_pylist()
    assert sum(row["caption"] == "sks on a sofa" for row in said) == 1
    made = [row["caption"] for row in said if row["caption"] != "sks on a sofa"]
    assert made
    for caption in made:
        first, *rest = caption.split(", ")
        assert first == "a portrait of sks"
        assert {word for part in rest for word in part.split()} <= set(_BLIP)
    shutil.rmtree(tmp_path / "run")
    done = run(*words(world, domain, tmp_path / "run", "--captioner", world.base))
    assert done.status == 2
    assert "a model of images to text" in done.err.splitlines()[-1]


def test_a_captioner_that_wants_a_question_is_refused() -> None:
    def processor(images: object, text: str, **_: object) -> None:
        """As those of models that chat."""

    subject = Subject(id="a", photos=[torch.zeros(8, 8, 3, dtype=torch.uint8)], captions=["a"])
    with pytest.raises(ConfigError, match="must need nothing but images, but Linear takes words"):
        Captioner(processor, nn.Linear(1, 1))(subject)


_BLIP = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "red", "dog", "on", "sofa")


def write_blip(folder: Path) -> None:
    vocabulary = {word: place for place, word in enumerate(_BLIP)}
    tokenizer = BertTokenizerFast(
        tokenizer_object=Tokenizer(WordPiece(vocabulary, unk_token="[UNK]")), bos_token="[DEC]"
    )
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(_BLIP), "bos_token_id": 5, "sep_token_id": 3, "pad_token_id": 0}
    config = BlipConfig(
        text_config=small | text | {"encoder_hidden_size": 16, "eos_token_id": 3},
        vision_config=small | {"image_size": 32, "patch_size": 16},
    )
    torch.manual_seed(0)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": 32, "width": 32})
    BlipProcessor(images, tokenizer).save_pretrained(folder)


def test_a_hash_outlives_scaling_and_saving_anew(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", 1, side=17)
    with Image.open(path) as small:
        photo = small.resize((400, 300), Image.Resampling.BICUBIC)
    photo.save(tmp_path / "b.png")
    photo.resize((200, 150)).save(tmp_path / "c.jpg", quality=75)
    whole, same = (difference_hash(read_photo(tmp_path / name)) for name in ("b.png", "c.jpg"))
    assert (whole ^ same).bit_count() <= 7
    other = difference_hash(read_photo(write_image(tmp_path / "d.png", 2, side=40)))
    assert (whole ^ other).bit_count() > 60


def test_drawings_that_differ_in_colours_alone_are_two() -> None:
    hashes, found = _Hashes(), Checked()
    drawn = torch.zeros(64, 64, 3, dtype=torch.uint8)
    drawn[16:48, 16:48] = 200
    other = drawn.clone()
    other[..., 2] += 50
    assert difference_hash(drawn) == difference_hash(other)
    assert not any(hashes.twice(one, name, found) for one, name in ((drawn, "a"), (other, "b")))
    assert not found.faults
    assert hashes.twice(drawn + 1, "a", found)
    assert [*found.faults] == ["images that a subject has twice"]
