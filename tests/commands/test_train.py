"""From a library to a synthesizer: `fit` and `train`, without a collection before."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from command_line import Run, interrupt
from lorasynth import Synthesizer
from lorasynth.adapter import Factor, Layout
from lorasynth.base import BaseModel
from lorasynth.codec import load_codec
from lorasynth.collect.embedding import column_of
from lorasynth.condition import load_encoder
from lorasynth.core.learned import learned_from
from lorasynth.library import Library
from two_processes import launch

from .conftest import SIDE, save_encoder, write_image

IDS = [f"subject-{number:02d}" for number in range(12)]
SPLITS = ["train"] * 8 + ["validation"] * 2 + ["test"] * 2
CPU = ("--device", "cpu")
BRIEF = (
    "--optimisation.steps", 4, "--optimisation.batch", 4, "--record-every", 2,
    "--model.denoiser-options", '{"width":8,"depth":1,"embedding":8}', *CPU,
)  # fmt: skip


@pytest.fixture(scope="module")
def made(pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a library of random adapters, an encoder and a codec."""
    root = tmp_path_factory.mktemp("made")
    base = BaseModel.load(str(pipeline_folder), "cpu")
    widths = base.target_linears(("to_q",))
    zeros = {
        name: Factor(torch.zeros(1, 2, layer.in_features), torch.zeros(1, layer.out_features, 2))
        for name, layer in widths.items()
    }
    layout = Layout.from_factors(zeros)
    encoder = load_encoder(str(save_encoder(root / "encoder")))
    library = Library.create(root / "library", layout, base.fingerprint)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(len(IDS), layout.size, generator=generator)
    rows = [{"id": name, "split": split} for name, split in zip(IDS, SPLITS, strict=True)]
    library.append(layout.unflatten(vectors), rows)
    width = encoder.width
    library.attach(column_of(encoder), torch.randn(len(IDS), 2, width, generator=generator))
    return root


def train(made: Path, base: Path, out: Path, *more: Any) -> tuple[object, ...]:
    parts = ("--codec", made / "codec", "--encoder", made / "encoder", "--base", base)
    where = ("-o", out, "--run", out.parent / "run")
    return ("train", made / "library", *parts, *where, *BRIEF, *more)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("pca", ("--latents", 3)),
        ("scaled", ("--scale", "global")),
        ("vae", ("--latents", 3, "--epochs", 2, "--memory", "4GB")),
    ],
)
def test_every_codec_is_fitted_to_the_training_split(
    made: Path, run: Run, tmp_path: Path, kind: str, options: tuple[object, ...]
) -> None:
    out = tmp_path / "codec"
    words = ("fit", kind, made / "library", "-o", out, "--run", tmp_path / "run", *CPU)
    result = run(*words, *options)
    assert result.status == 0, result.err
    assert "fitted to 8 adapters" in result.out
    assert load_codec(out).learned == learned_from(IDS[:8])
    run(*words, *options).is_one_error("is there already", "--overwrite")
    assert run(*words, *options, "--overwrite", "--split", "all").status == 0
    assert load_codec(out).learned == learned_from(IDS)


def test_bad_options_are_one_line(made: Path, run: Run, tmp_path: Path) -> None:
    library = made / "library"
    run("fit", "nothing").is_one_error("one of pca, scaled, vae")
    run("fit", "pcx", library).is_one_error("one of pca, scaled, vae")
    words = ("-o", tmp_path / "codec", "--run", tmp_path / "run")
    run("fit", "pca", library, *words, "--latents", 0, *CPU).is_one_error("from 1 to 7 components")
    run("fit", "vae", library, *words, "--beta", -1).is_one_error("--beta: input should be greater")
    run("fit", "pca", library, *words, "--memory", "much").is_one_error("--memory must be")
    run("fit", "pca", library, *words, "--split", "dev").is_one_error("all or one of", "'dev'")
    assert not (tmp_path / "codec").exists()


def fit_codec(made: Path, run: Run, work: Path) -> None:
    if not (made / "codec").exists():
        words = ("fit", "pca", made / "library", "-o", made / "codec", "--latents", 3)
        assert run(*words, "--run", work, *CPU).status == 0


def test_two_processes_go_on_where_one_was_stopped_and_learn_what_it_would(
    made: Path, pipeline_folder: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorasynth.hypernet import train as training

    fit_codec(made, run, tmp_path / "fit")
    both, alone = tmp_path / "both/synthesizer", tmp_path / "alone/synthesizer"
    words = train(made, pipeline_folder, both, "--optimisation.checkpoint-seconds", 0)
    with monkeypatch.context() as patch:
        interrupt(patch, training, "draw_batch", calls=3)
        assert run(*words).status == 130
    done = launch("-m", "lorasynth", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained on 8 adapters") == 1
    assert run(*train(made, pipeline_folder, alone)).status == 0
    expected = Synthesizer.from_pretrained(alone).hypernet
    found = Synthesizer.from_pretrained(both).hypernet
    for row, other in zip(found.history, expected.history, strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-6)
    assert len((tmp_path / "both/run/metrics.jsonl").read_text().splitlines()) == 2


def test_a_synthesizer_is_trained_goes_on_and_is_not_overwritten(
    made: Path, pipeline_folder: Path, run: Run, tmp_path: Path
) -> None:
    fit_codec(made, run, tmp_path / "fit")
    out, base = tmp_path / "synthesizer", pipeline_folder
    result = run(*train(made, base, out, "--strength", 1.25, "--trigger", "sks cat"))
    assert result.status == 0, result.err
    assert "trained on 8 adapters" in result.out
    loaded = Synthesizer.from_pretrained(out)
    assert (loaded.strength, loaded.trigger_phrase) == (1.25, "sks cat")
    assert loaded.learned == learned_from(IDS[:8])
    metrics = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in metrics]
    assert [row["step"] for row in rows] == [2, 4]
    assert {"training", "loss", "rate", "seconds", "x0_error"} <= rows[0].keys()
    run(*train(made, base, out)).is_one_error("is there already", "--overwrite")
    more = run(*train(made, base, out, "--overwrite", "--optimisation.steps", 6))
    assert more.status == 0, more.err
    assert "has done 4 of 4 steps" in more.err
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 3
    for option, value, said in (
        ("--residual-of", out, "pretrain"),
        ("--model.denoiser-options", "{", "--model.denoiser-options"),
        ("--optimisation.lr", 0, "greater than 0"),
    ):
        run(*train(made, base, tmp_path / "other", option, value)).is_one_error(said)


def test_samples_are_watched_where_images_are_given(
    made: Path, pipeline_folder: Path, run: Run, tmp_path: Path
) -> None:
    fit_codec(made, run, tmp_path / "fit")
    for name in (IDS[0], IDS[8], "stranger"):
        for number in range(2):
            write_image(tmp_path / "people" / name / f"{number}.png", number)
    words = train(made, pipeline_folder, tmp_path / "synthesizer")
    result = run(*words, "--watch-images", tmp_path / "people")
    assert result.status == 0, result.err
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(-1 <= row["similarity"] <= 1 for row in rows)
    for step in (2, 4):  # neither of them is learned from
        with Image.open(tmp_path / "run/samples" / f"{step:06d}.png") as strip:
            assert strip.height == 2 * SIDE + 2
    shutil.rmtree(tmp_path / "people" / "stranger")
    shutil.rmtree(tmp_path / "people" / IDS[8])
    words = train(made, pipeline_folder, tmp_path / "other")
    run(*words, "--watch-images", tmp_path / "people").is_one_error("not learned from")
