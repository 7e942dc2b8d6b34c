"""One collection and one training on several processes, by commands."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from command_line import Run, call
from lorasynth import Synthesizer
from lorasynth.commands.collect import WithWorker
from lorasynth.library import Library
from two_processes import launch

from .conftest import PRETRAIN, SUBJECTS, World, collect_arguments, write_image

FSDP2 = ("--use_fsdp", "--fsdp_version=2")


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process collects with fleets of 1.

    With fleets of the same size, numbers round alike; Adam magnifies what is rounded otherwise.
    """
    library = tmp_path_factory.mktemp("cluster") / "whole"
    assert call(cluster_arguments(world, library)) == 0
    return library


def cluster_arguments(world: World, library: Path) -> list[object]:
    return [*collect_arguments(world, library), "--encoder", world.encoder, "--fleet", 1]


def assert_same_library(found: Path, expected: Path) -> None:
    one, other = Library.open(found), Library.open(expected)
    assert one.ids == other.ids == list(SUBJECTS)
    torch.testing.assert_close(one.all_vectors(), other.all_vectors(), rtol=1e-5, atol=1e-7)
    assert one.columns == other.columns
    for name in one.columns:
        torch.testing.assert_close(one.column(name), other.column(name))


def test_shards_are_joined(world: World, whole: Path, run: Run, tmp_path: Path) -> None:
    library = tmp_path / "library"
    for shard in ("2/2", "1/2"):
        result = run(*cluster_arguments(world, library), "--shard", shard)
        assert result.status == 0
        assert f"{library}/parts/{shard.replace('/', '-of-')}" in result.out
    result = run("library", "join", library)
    assert "3 adapters, 3 of them new, 0 failed, with tiny_one" in result.out
    assert_same_library(library, whole)


def test_no_parts_are_told(run: Run, tmp_path: Path) -> None:
    run("library", "join", tmp_path / "library").is_one_error("holds none", "--shard")


def test_workers_in_other_folders_find_what_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base").mkdir()
    Path("faces.onnx").touch()
    given = WithWorker(base="base", encoder="onnx:faces.onnx", init_from="owner/model").anywhere()
    assert given.base == str(tmp_path / "base")
    assert given.encoder == f"onnx:{tmp_path / 'faces.onnx'}"
    assert given.init_from == "owner/model"
    assert replace(given, encoder="clip:owner/model").anywhere().encoder == "clip:owner/model"


def test_a_missing_ray_is_told(
    world: World, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = run(*collect_arguments(world, tmp_path / "library"), "--engine", "ray")
    result.is_one_error(".[cluster]")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_a_local_ray_collects_and_embeds(
    world: World, whole: Path, run: Run, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs lorasynth[cluster]")
    arguments = [*cluster_arguments(world, tmp_path / "library"), "--engine", "ray"]
    run(*arguments, "--address", "127.0.0.1:9").is_one_error("127.0.0.1:9", "cannot be reached")
    result = run(*arguments)
    assert result.status == 0, result.err
    assert_same_library(tmp_path / "library", whole)


def pretrain_words(world: World, out: Path) -> list[object]:
    parts = ["--base", world.base, "--encoder", world.encoder, "-o", out, "--device", "cpu"]
    return ["pretrain", world.subjects, *parts, "--run", f"{out}-run", *PRETRAIN]


def test_two_processes_pretrain_as_one_does(world: World, run: Run, tmp_path: Path) -> None:
    """As a user would: `accelerate launch -m lorasynth pretrain ...`."""
    together, alone = tmp_path / "together", tmp_path / "alone"
    done = launch("-m", "lorasynth", *pretrain_words(world, together))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{together}: trained on 3 subjects\n"
    assert run(*pretrain_words(world, alone)).status == 0
    assert_same_predictor(together, alone)
    odd = ("-m", "lorasynth", *pretrain_words(world, tmp_path / "odd"), "--optimisation.batch", 3)
    done = launch(*odd)
    assert done.returncode
    assert "must be a multiple of the number of processes" in done.stderr


def assert_same_predictor(found: Path, expected: Path) -> None:
    one, other = map(Synthesizer.from_pretrained, (found, expected))
    seen = torch.randn(1, one.encoder.width, generator=torch.Generator().manual_seed(0))
    [made], [known] = (of.from_conditions(seen) for of in (one, other))
    for module, factor in made.factors.items():
        torch.testing.assert_close(factor, known.factors[module], rtol=1e-3, atol=1e-5)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_processes_with_whole_weights_or_parts_pretrain_as_one_does(
    world: World, run: Run, tmp_path: Path
) -> None:
    """FSDP2 on CPUs; begun by one process, gone on with by two, and ended by one."""
    for image in range(20):
        write_image(tmp_path / f"images/{image // 2}/{image}.png", image)
    world = replace(world, subjects=tmp_path / "images")
    often = ("--record-every", 2, "--optimisation.checkpoint-seconds", 0, "--optimisation.steps")
    alone = tmp_path / "alone"
    assert run(*pretrain_words(world, alone), *often, 6).status == 0
    known = rows_of(alone)
    for name, how in {"whole": ("--multi_gpu",), "parts": FSDP2}.items():
        words = [*pretrain_words(world, out := tmp_path / name), *often]
        assert run(*words, 2).status == 0
        shutil.rmtree(out)
        done = launch("-m", "lorasynth", *words, 4, how=how)
        assert done.returncode == 0, done.stderr
        assert "trained on 8 subjects, 2 held out" in done.stdout
        shutil.rmtree(out)
        assert run(*words, 6).status == 0
        assert_same_predictor(out, alone)
        assert rows_of(out) == pytest.approx(known, rel=1e-3)


def rows_of(out: Path) -> list[float]:
    rows = map(json.loads, Path(f"{out}-run/metrics.jsonl").read_text().splitlines())
    return [row[name] for row in rows for name in ("step", "loss", "held_out_loss")]
