"""One collection and one training on several processes, by commands."""

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

from .conftest import PRETRAIN, SUBJECTS, World, collect_arguments


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


def test_two_processes_pretrain_as_one_does(world: World, run: Run, tmp_path: Path) -> None:
    """As a user would: `accelerate launch -m lorasynth pretrain ...`."""
    together, alone = tmp_path / "together", tmp_path / "alone"

    def words(out: Path) -> list[object]:
        parts = ["--base", world.base, "--encoder", world.encoder, "-o", out, "--device", "cpu"]
        return ["pretrain", world.subjects, *parts, "--run", f"{out}-run", *PRETRAIN]

    done = launch("-m", "lorasynth", *words(together))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{together}: trained on 3 subjects\n"
    assert run(*words(alone)).status == 0
    one, other = (Synthesizer.from_pretrained(path).hypernet for path in (together, alone))
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-3, atol=1e-5)
    odd = launch("-m", "lorasynth", *words(tmp_path / "odd"), "--optimisation.batch", 3)
    assert odd.returncode
    assert "must be a multiple of the number of processes" in odd.stderr
