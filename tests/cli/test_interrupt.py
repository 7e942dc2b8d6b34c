"""Ctrl-C in each long command: one line, status 130, and what was finished is whole and kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorasynth.library import Library

from .conftest import Run, World, collect_arguments, train_arguments


def interrupting(function: Callable[..., Any], calls: int) -> Callable[..., Any]:
    """`function`, but Ctrl-C comes in call number `calls`."""
    done = 0

    def wrapper(*arguments: Any, **options: Any) -> Any:
        nonlocal done
        done += 1
        if done == calls:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    return wrapper


def interrupt(monkeypatch: pytest.MonkeyPatch, room: Any, name: str, calls: int = 1) -> None:
    monkeypatch.setattr(room, name, interrupting(getattr(room, name), calls))


def everything_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_collect(world: World, run: Run, tmp_path, monkeypatch) -> None:
    from lorasynth.collect import collector

    arguments = [*collect_arguments(world, tmp_path / "library"), "--fleet", 1]
    with monkeypatch.context() as patch:
        interrupt(patch, collector, "train_fleet", calls=3)
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
    arguments += ["--set", "optimisation.checkpoint_seconds=0"]
    with monkeypatch.context() as patch:
        interrupt(patch, train, "draw_batch", calls=2)
        run(*arguments).is_one_error("run the same command to go on", status=130)
    assert everything_below(tmp_path) == ["run", "run/hypernet.safetensors"]
    assert run(*arguments).status == 0
    assert (tmp_path / "out" / "synthesizer.json").is_file()


def test_fit(world: World, run: Run, tmp_path, monkeypatch) -> None:
    from lorasynth.codec import pca

    interrupt(monkeypatch, pca, "principal_components")
    arguments = ("fit", "pca", world.library, "-o", tmp_path / "codec", "--device", "cpu")
    run(*arguments).is_one_error("interrupted", status=130)
    assert everything_below(tmp_path) == []


@pytest.mark.parametrize("moment", ["sampling", "writing"])
def test_synth(world: World, run: Run, tmp_path, monkeypatch, moment) -> None:
    from lorasynth import atomic
    from lorasynth.hypernet import LatentDiffusion

    moments = {"sampling": (LatentDiffusion, "sample"), "writing": (atomic, "_sync_file")}
    interrupt(monkeypatch, *moments[moment])
    out = tmp_path / "me.safetensors"
    result = run("synth", world.photo, "-o", out, "--synthesizer", world.synthesizer)
    result.is_one_error("interrupted", status=130)
    assert everything_below(tmp_path) == []


@pytest.mark.parametrize("moment", ["sampling", "writing"])
def test_images(world: World, run: Run, tmp_path, monkeypatch, moment) -> None:
    from lorasynth import atomic
    from lorasynth.base import BaseModel

    moments = {"sampling": (BaseModel, "denoise"), "writing": (atomic, "_sync_file")}
    interrupt(monkeypatch, *moments[moment])
    options = ("--base", world.base, "--steps", 1, "-n", 1, "--device", "cpu")
    arguments = ("--lora", world.lora, "--prompt", "sks", "-o", tmp_path / "me.png")
    run("images", *arguments, *options).is_one_error("interrupted", status=130)
    assert everything_below(tmp_path) == []
