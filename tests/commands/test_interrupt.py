"""Ctrl-C in each long command: one line, status 130, and what was finished is whole and kept."""

from pathlib import Path

import pytest

from command_line import Run, interrupt
from lorasynth.library import Library

from .conftest import World, collect_arguments, train_arguments


def everything_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_collect(world: World, run: Run, tmp_path, monkeypatch) -> None:
    from lorasynth.collect import worker

    arguments = [*collect_arguments(world, tmp_path / "library"), "--fleet", 1]
    with monkeypatch.context() as patch:
        interrupt(patch, worker, "train_fleet", calls=3)
        result = run(*arguments)
    assert result.status == 130
    assert "2 finished adapters are safe" in result.err.splitlines()[-1]
    library = Library.open(tmp_path / "library")
    assert len(library) == 2
    assert library.check().damages == ()
    result = run(*arguments)
    assert result.status == 0
    assert "3 adapters, 1 of them new" in result.out


def test_train(world: World, run: Run, tmp_path, monkeypatch) -> None:
    from lorasynth.hypernet import train

    arguments = [*train_arguments(world, tmp_path / "out", tmp_path / "run"), "--device", "cpu"]
    arguments += ["--optimisation.checkpoint-seconds", 0]
    with monkeypatch.context() as patch:
        interrupt(patch, train, "draw_batch", calls=2)
        run(*arguments).is_one_error("run the same command to go on", status=130)
    assert everything_below(tmp_path) == ["run", "run/hypernet.safetensors", "run/metrics.jsonl"]
    assert run(*arguments).status == 0
    assert (tmp_path / "out" / "synthesizer.json").is_file()


def test_fit(world: World, run: Run, tmp_path, monkeypatch) -> None:
    from lorasynth.codec import pca

    arguments = ("fit", "pca", world.library, "-o", tmp_path / "codec", "--run", tmp_path / "run")
    with monkeypatch.context() as patch:
        interrupt(patch, pca, "eigen_of_rows")
        run(*arguments, "--device", "cpu").is_one_error("interrupted", status=130)
    kept = [f"run/pca/{name}.safetensors" for name in ("moments", "plan")]
    assert everything_below(tmp_path) == ["run", "run/pca", *kept]
    assert run(*arguments, "--device", "cpu").status == 0


@pytest.mark.parametrize("moment", ["sampling", "writing"])
def test_synth(world: World, run: Run, tmp_path, monkeypatch, moment) -> None:
    from lorasynth.core import atomic
    from lorasynth.hypernet import LatentDiffusion

    moments = {"sampling": (LatentDiffusion, "sample"), "writing": (atomic, "_sync_file")}
    interrupt(monkeypatch, *moments[moment])
    out = tmp_path / "me.safetensors"
    result = run("synth", world.photo, "-o", out, "--synthesizer", world.synthesizer)
    result.is_one_error("interrupted", status=130)
    assert everything_below(tmp_path) == []


@pytest.mark.parametrize("moment", ["sampling", "writing"])
def test_images(world: World, run: Run, tmp_path, monkeypatch, moment) -> None:
    from lorasynth.base import BaseModel
    from lorasynth.core import atomic

    moments = {"sampling": (BaseModel, "_said"), "writing": (atomic, "_sync_file")}
    interrupt(monkeypatch, *moments[moment])
    options = ("--base", world.base, "--steps", 1, "-n", 1, "--device", "cpu")
    arguments = ("--lora", world.lora, "--prompt", "sks", "-o", tmp_path / "me.png")
    run("images", *arguments, *options).is_one_error("interrupted", status=130)
    assert everything_below(tmp_path) == []
